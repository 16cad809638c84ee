"""The recurrent nets against PyTorch's, with the same weights: outputs, final states and all gradients, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb

torch = pytest.importorskip("torch")

# steps, batch, inputs, hidden: within a chunk of time, whole chunks, a chunk and a part of one
SIZES = [(7, 3, 5, 2), (32, 2, 3, 5), (19, 1, 2, 3)]
KINDS = ["tanh", "relu", "LSTM", "GRU"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_one_direction(kind, sizes):
    compare_nets(kind, sizes)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_options(kind, options):
    compare_nets(kind, SIZES[-1], **options)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step(kind):
    _, batch, inputs, hidden = SIZES[0]
    module, op = of_kind(kind, "Cell", "_cell")
    states = [(batch, hidden)] * (2 if kind == "LSTM" else 1)

    def ours(x, states, weights):
        y = op()(x, *states, *parameters(kind, weights, ""))
        return y if kind == "LSTM" else (y,)

    def theirs(cell, x, states):
        y = cell(x, states if kind == "LSTM" else states[0])
        return y if kind == "LSTM" else (y,)

    compare(ours, theirs, module(inputs, hidden, dtype=torch.float64), (batch, inputs), states)


def compare_nets(kind: str, sizes, batch_first=False, bidirectional=False, bias=True) -> None:
    steps, batch, inputs, hidden = sizes
    module, op = of_kind(kind, "", "")
    options = {"batch_first": batch_first, "bidirectional": bidirectional, "bias": bias}
    directions = range(2 if bidirectional else 1)

    def ours(x, states, weights):
        outputs, lasts = [], []
        for d in directions:
            run = op(axis=1 if batch_first else 0, reverse=d == 1)
            given = parameters(kind, weights, "_l0_reverse" if d else "_l0")
            hs, last = run(x, *(state[d] for state in states), *given)
            outputs.append(hs)
            lasts.append(last if kind == "LSTM" else (last,))
        return jnp.concatenate(outputs, -1), tuple(jnp.stack(parts) for parts in zip(*lasts, strict=True))

    def theirs(net, x, states):
        hs, last = net(x, states if kind == "LSTM" else states[0])
        return hs, last if kind == "LSTM" else (last,)

    x = (batch, steps, inputs) if batch_first else (steps, batch, inputs)
    states = [(len(directions), batch, hidden)] * (2 if kind == "LSTM" else 1)
    compare(ours, theirs, module(inputs, hidden, dtype=torch.float64, **options), x, states)


def of_kind(kind: str, torch_suffix: str, suffix: str) -> tuple:
    """PyTorch's module and our op, both without their sizes and other options."""
    if kind in ("LSTM", "GRU"):
        return getattr(torch.nn, kind + torch_suffix), getattr(mb.ops, kind.lower() + suffix)

    def module(*args, **options):
        return getattr(torch.nn, "RNN" + torch_suffix)(*args, nonlinearity=kind, **options)

    def op(**options):
        return getattr(mb.ops, "rnn" + suffix)(activation=kind, **options)

    return module, op


def parameters(kind: str, weights: dict, suffix: str) -> tuple:
    """PyTorch's as ours: transposed, and of the two biases one, but for that of the recurrent part of a GRU's n."""
    wx, wh = weights["weight_ih" + suffix].T, weights["weight_hh" + suffix].T
    hidden = len(wh)
    bx, bh = (weights.get(name + suffix, jnp.zeros(wh.shape[1])) for name in ("bias_ih", "bias_hh"))
    if kind != "GRU":
        return wx, wh, bx + bh
    return wx, wh, bx + bh.at[2 * hidden :].set(0), bh[2 * hidden :]


def compare(ours, theirs, module, x_shape, state_shapes) -> None:
    """ours(x, states, weights) is theirs(module, x, states), and so are all cotangents."""
    rng = np.random.default_rng(0)
    weights = dict(module.named_parameters())
    for weight in weights.values():
        weight.data = torch.tensor(rng.standard_normal(weight.shape))
    numbers = rng.standard_normal(x_shape), tuple(map(rng.standard_normal, state_shapes))
    values = *jax.tree.map(jnp.asarray, numbers), {name: jnp.asarray(w.detach().numpy()) for name, w in weights.items()}
    y, vjp = jax.vjp(ours, *values)
    dy = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), y)

    x, states = jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), numbers)
    torch_y = theirs(module, x, states)
    torch.autograd.backward(jax.tree.leaves(torch_y), [torch.tensor(d) for d in jax.tree.leaves(dy)])

    assert_close(y, jax.tree.map(lambda leaf: leaf.detach(), torch_y))
    gradients = jax.tree.map(lambda leaf: leaf.grad, (x, states, weights))
    assert_close(vjp(jax.tree.map(jnp.asarray, dy)), gradients)


def assert_close(ours, theirs) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-10 * float(b.abs().max()))
