"""The recurrent nets against PyTorch's, with the same weights: outputs, final states and all gradients, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb

torch = pytest.importorskip("torch")

# steps, batch, inputs, hidden: within a chunk of time, whole chunks, chunks and a part of one
SIZES = [(7, 3, 5, 2), (32, 2, 3, 5), (19, 1, 2, 3)]
KINDS = ["tanh", "relu", "LSTM", "GRU"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def torch_net(kind: str, inputs: int, hidden: int, **options):
    torch.manual_seed(0)
    options["dtype"] = torch.float64
    if kind in ("LSTM", "GRU"):
        return getattr(torch.nn, kind)(inputs, hidden, **options)
    return torch.nn.RNN(inputs, hidden, nonlinearity=kind, **options)


def our_net(kind: str, **options) -> mb.contract.Op:
    if kind in ("LSTM", "GRU"):
        return getattr(mb.ops, kind.lower())(**options)
    return mb.ops.rnn(activation=kind, **options)


def parameters(kind: str, weights: dict, suffix: str) -> tuple:
    """PyTorch's as ours: transposed, and of the two biases one, but for that of the recurrent part of a GRU's n."""
    wx, wh = weights["weight_ih" + suffix].T, weights["weight_hh" + suffix].T
    hidden = len(wh)
    bx, bh = (weights.get(name + suffix, jnp.zeros(wh.shape[1])) for name in ("bias_ih", "bias_hh"))
    if kind != "GRU":
        return wx, wh, bx + bh
    return wx, wh, bx + bh.at[2 * hidden :].set(0), bh[2 * hidden :]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_one_direction(kind, sizes):
    compare(kind, sizes)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_options(kind, options):
    compare(kind, SIZES[-1], **options)


def compare(kind: str, sizes, batch_first: bool = False, bidirectional: bool = False, bias: bool = True) -> None:
    steps, batch, inputs, hidden = sizes
    directions = 2 if bidirectional else 1
    net = torch_net(kind, inputs, hidden, batch_first=batch_first, bidirectional=bidirectional, bias=bias)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, steps, inputs) if batch_first else (steps, batch, inputs))
    states = tuple(rng.standard_normal((directions, batch, hidden)) for _ in range(2 if kind == "LSTM" else 1))

    def ours(x, states, weights):
        outputs, lasts = [], []
        for d in range(directions):
            op = our_net(kind, axis=1 if batch_first else 0, reverse=d == 1)
            suffix = "_l0_reverse" if d else "_l0"
            hs, last = op(x, *(state[d] for state in states), *parameters(kind, weights, suffix))
            outputs.append(hs)
            lasts.append(last if kind == "LSTM" else (last,))
        return jnp.concatenate(outputs, -1), tuple(jnp.stack(parts) for parts in zip(*lasts, strict=True))

    weights = {name: jnp.asarray(value.detach().numpy()) for name, value in net.named_parameters()}
    y, vjp = jax.vjp(ours, jnp.asarray(x), tuple(map(jnp.asarray, states)), weights)
    dy = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), y)
    dx, dstates, dweights = vjp(jax.tree.map(jnp.asarray, dy))

    x, states = (jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), tree) for tree in (x, states))
    hs, last = net(x, states if kind == "LSTM" else states[0])
    theirs = hs, last if kind == "LSTM" else (last,)
    torch.autograd.backward(jax.tree.leaves(theirs), [torch.tensor(d) for d in jax.tree.leaves(dy)])

    assert_close(y, jax.tree.map(lambda leaf: leaf.detach(), theirs))
    assert_close((dx, dstates), jax.tree.map(lambda leaf: leaf.grad, (x, states)))
    assert_close(dweights, {name: value.grad for name, value in net.named_parameters()})


@pytest.mark.parametrize("kind", KINDS)
def test_one_step(kind):
    _, batch, inputs, hidden = SIZES[0]
    rng = np.random.default_rng(0)
    name = f"{kind}Cell" if kind in ("LSTM", "GRU") else "RNNCell"
    options = {} if kind in ("LSTM", "GRU") else {"nonlinearity": kind}
    cell = getattr(torch.nn, name)(inputs, hidden, dtype=torch.float64, **options)
    op = our_net(kind)
    op = getattr(mb.ops, f"{op.name}_cell")(**{"activation": kind} if options else {})
    x = rng.standard_normal((batch, inputs))
    states = tuple(rng.standard_normal((batch, hidden)) for _ in range(2 if kind == "LSTM" else 1))
    weights = {key: jnp.asarray(value.detach().numpy()) for key, value in cell.named_parameters()}

    def ours(x, states, weights):
        return op(x, *states, *parameters(kind, weights, ""))

    y, vjp = jax.vjp(ours, jnp.asarray(x), tuple(map(jnp.asarray, states)), weights)
    dy = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), y)
    dx, dstates, dweights = vjp(jax.tree.map(jnp.asarray, dy))

    x, states = (jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), tree) for tree in (x, states))
    theirs = cell(x, states if kind == "LSTM" else states[0])
    torch.autograd.backward(jax.tree.leaves(theirs), [torch.tensor(d) for d in jax.tree.leaves(dy)])
    assert_close(y, jax.tree.map(lambda leaf: leaf.detach(), theirs))
    assert_close((dx, dstates), jax.tree.map(lambda leaf: leaf.grad, (x, states)))
    assert_close(dweights, {key: value.grad for key, value in cell.named_parameters()})


def assert_close(ours, theirs) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-12)
