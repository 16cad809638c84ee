"""PyTorch's functions of this family, in our ops."""

import manual_backprop as mb
from torch_samples import Skip


def sigmoid(input):
    return mb.ops.sigmoid()(input)


def tanh(input):
    return mb.ops.tanh()(input)


def nn_functional_logsigmoid(input):
    return mb.ops.log_sigmoid()(input)


def nn_functional_relu(input, inplace=False):
    return mb.ops.relu()(input)


def nn_functional_relu6(input, inplace=False):
    return mb.ops.relu6()(input)


def nn_functional_leaky_relu(input, negative_slope=0.01, inplace=False):
    return mb.ops.leaky_relu(negative_slope=negative_slope)(input)


def nn_functional_prelu(input, weight):
    """Its slopes are of axis 1; ours broadcast."""
    if weight.ndim == 1 and input.ndim < 2:
        weight = weight[0]
    elif weight.ndim == 1:
        weight = weight.reshape(-1, *[1] * (input.ndim - 2))
    return mb.ops.prelu()(input, weight)


def nn_functional_elu(input, alpha=1.0, inplace=False):
    return mb.ops.elu(alpha=alpha)(input)


def nn_functional_selu(input, inplace=False):
    return mb.ops.selu()(input)


def nn_functional_celu(input, alpha=1.0, inplace=False):
    return mb.ops.celu(alpha=alpha)(input)


def nn_functional_softplus(input, beta=1, threshold=20):
    return mb.ops.softplus(beta=beta, threshold=threshold)(input)


def nn_functional_softsign(input):
    return mb.ops.softsign()(input)


def nn_functional_silu(input, inplace=False):
    return mb.ops.silu()(input)


def nn_functional_mish(input, inplace=False):
    return mb.ops.mish()(input)


def nn_functional_gelu(input, approximate="none"):
    return mb.ops.gelu(approximate=approximate == "tanh")(input)


def nn_functional_glu(input, dim=-1):
    return mb.ops.glu(axis=dim)(input)


def nn_functional_hardsigmoid(input, inplace=False):
    if input.size > 1:
        raise Skip("PyTorch's vectorised float64 gradient rounds 1/6 to float32")
    return mb.ops.hard_sigmoid()(input)


def nn_functional_hardswish(input, inplace=False):
    return mb.ops.hard_silu()(input)


def nn_functional_hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    return mb.ops.hard_tanh(low=min_val, high=max_val)(input)


def nn_functional_hardshrink(input, lambd=0.5):
    return mb.ops.hardshrink(threshold=lambd)(input)


def nn_functional_softshrink(input, lambd=0.5):
    return mb.ops.softshrink(threshold=lambd)(input)


def nn_functional_tanhshrink(input):
    return mb.ops.tanhshrink()(input)


def nn_functional_threshold(input, threshold, value, inplace=False):
    return mb.ops.threshold(threshold=threshold, value=value)(input)
