"""Sequences. The reference of the recurrent nets is flax, that of the linear recurrence `lax.associative_scan`."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

import manual_backprop as mb
from cases.case import Case, Draw, exactly, layer_case, normal
from manual_backprop.layers import GRU, LSTM, RNN, Apply, LastStep, LinearRecurrentUnit
from manual_backprop.ops.sequence.linear_recurrence import in_rounds
from manual_backprop.ops.sequence.linear_recurrent_unit import constants, pairs_in_rounds, twice

# ── references ───────────────────────────────────────────────────────────────────────────────────────────────────────


def flax_cell(op: str, hidden: int, wx, wh, b, bh=None, activation: str = "tanh") -> tuple[nn.Module, dict]:
    """The cell of flax, and its variables: a matrix a gate."""
    if op == "rnn":
        cell = nn.SimpleCell(hidden, activation_fn=getattr(jax.nn, activation))
        return cell, {"params": {"i": {"kernel": wx, "bias": b}, "h": {"kernel": wh}}}
    names = "ifgo" if op == "lstm" else "rzn"
    params = {}
    for gate, *parts in zip(names, *(jnp.split(v, len(names), -1) for v in (wx, wh, b)), strict=True):
        kernel_x, kernel_h, bias = parts
        on_h = op == "lstm"  # where flax has the bias
        params[f"i{gate}"] = {"kernel": kernel_x} if on_h else {"kernel": kernel_x, "bias": bias}
        params[f"h{gate}"] = {"kernel": kernel_h, "bias": bias} if on_h else {"kernel": kernel_h}
    if op == "gru":
        params["hn"]["bias"] = bh
        return nn.GRUCell(hidden), {"params": params}
    return nn.OptimizedLSTMCell(hidden), {"params": params}


def flax_step(op: str, **options) -> Callable:
    def reference(x, h, *rest):
        state, parameters = ((rest[0], h), rest[1:]) if op == "lstm" else (h, rest)
        cell, variables = flax_cell(op, h.shape[-1], *parameters, **options)
        state, h = cell.apply(variables, state, x)
        return (h, state[0]) if op == "lstm" else h

    return reference


def flax_rnn(op: str, axis: int = 0, reverse: bool = False, **options) -> Callable:
    def reference(x, h, *rest):
        state, parameters = ((rest[0], h), rest[1:]) if op == "lstm" else (h, rest)
        cell, variables = flax_cell(op, h.shape[-1], *parameters, **options)
        net = nn.RNN(cell, time_major=axis == 0, reverse=reverse, keep_order=True, return_carry=True)
        state = jax.tree.map(lambda s: s.astype(jnp.result_type(x, h, *rest)), state)  # flax's carry keeps its dtype
        state, hs = net.apply({"params": {"cell": variables["params"]}}, x, initial_carry=state)
        return hs, state[::-1] if op == "lstm" else state

    return reference


def flax_layer(op: str, states: int = 1, **options) -> Callable:
    """(params, x) → all h, from zero."""
    function = flax_rnn(op, axis=-2, **options)

    def reference(p, x):
        zero = jnp.zeros((*x.shape[:-2], p["wh"].shape[0]), x.dtype)
        return function(x, *[zero] * states, *(p[name] for name in ("wx", "wh", "b", "bh") if name in p))[0]

    return reference


def scan_recurrence(axis: int = 0, reverse: bool = False) -> Callable:
    def then(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    def reference(x, a, h=None):
        shape, dtype = x.shape, jnp.result_type(x, a)
        a, x = (jnp.moveaxis(jnp.broadcast_to(v, shape), axis, 0).astype(dtype) for v in (a, x))
        if h is not None:  # as a step of its own
            ends = (0, 1) if reverse else (1, 0)
            a = jnp.pad(a, (ends, *[(0, 0)] * h.ndim))
            x = jnp.concatenate([x, h[None]] if reverse else [h[None], x])
        hs = lax.associative_scan(then, (a, x), reverse=reverse)[1]
        if h is not None:
            hs = hs[:-1] if reverse else hs[1:]
        return jnp.moveaxis(hs, 0, axis)

    return reference


def scan_unit(axis: int = 0, reverse: bool = False) -> Callable:
    """The linear recurrent unit, of complex numbers."""
    function = scan_recurrence(axis, reverse)

    def reference(*args):
        x, nu, theta, *h = map(jnp.asarray, args)
        complexes = [lax.complex(*jnp.split(v.astype(jnp.promote_types(v.dtype, jnp.float32)), 2, -1)) for v in (x, *h)]
        nu, theta = (v.astype(complexes[0].real.dtype) for v in (nu, theta))
        decay, gamma = jnp.exp(-jnp.exp(nu) + 1j * theta), jnp.sqrt(-jnp.expm1(-2 * jnp.exp(nu)))
        hs = function(gamma * complexes[0], decay, *complexes[1:])
        return jnp.concatenate([hs.real, hs.imag], -1).astype(x.dtype)

    return reference


def of_parts(function: Callable) -> Callable:
    """A function of complex numbers as one of their real and imaginary parts."""

    def on_parts(x, y, a, b):
        h = function(x + 1j * y, a + 1j * b)
        return h.real, h.imag

    return on_parts


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def recurrent(op: str, x: tuple[int, ...], hidden: int, axis: int | None = 0, scale: float = 1.0) -> Draw:
    """x, states and parameters, whose products with unit vectors are of size one."""
    k, features = GATES[op], x[-1]
    batch = list(x[:-1])
    if axis is not None:
        del batch[axis % len(x)]

    def draw(rng):
        states = [rng.standard_normal((*batch, hidden)) for _ in range(2 if op == "lstm" else 1)]
        wx = rng.standard_normal((features, k * hidden)) / features**0.5
        wh = rng.standard_normal((hidden, k * hidden)) / hidden**0.5
        bias = [rng.standard_normal(k * hidden)] + [rng.standard_normal(hidden)] * (op == "gru")
        return scale * rng.standard_normal(x), *states, wx, wh, *bias

    return draw


def cell(op: str, **options) -> Case:
    """A row of one step."""
    name = ", ".join([f"{op}_cell", *map(str, options.values())])
    unit = getattr(mb.ops, f"{op}_cell")(**options)
    large = recurrent(op, (256, 256), 512, None)
    return Case(name, unit, flax_step(op, **options), recurrent(op, (7, 5), 3, None), large)


def sequence(op: str, name: str, x: tuple[int, ...], large=None, **options) -> Case:
    unit = getattr(mb.ops, op)(**options)
    return Case(name, unit, flax_rnn(op, **options), recurrent(op, x, 3, options.get("axis", 0)), large)


def decays(x: tuple[int, ...], a: tuple[int, ...] | None = None, h: tuple[int, ...] | None = None) -> Draw:
    """x, a between -1 and 1, and the state before them if it has a shape."""

    def draw(rng):
        rest = () if h is None else (rng.standard_normal(h),)
        return rng.standard_normal(x), rng.uniform(-1, 1, x if a is None else a), *rest

    return draw


def unit_of(x: tuple[int, ...], axis: int = 0, initial: bool = False) -> Draw:
    """x, ν such that |λ| is 0.4 … 0.9, θ, and the state before them if there is one."""
    before = [size for i, size in enumerate(x) if i != axis % len(x)]

    def draw(rng):
        rest = (rng.standard_normal(before),) if initial else ()
        d = x[-1] // 2
        return rng.standard_normal(x), np.log(rng.uniform(0.1, 0.9, d)), rng.uniform(-3, 3, d), *rest

    return draw


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

OPS: list[Case] = [
    cell("rnn"),
    cell("rnn", activation="relu"),
    cell("lstm"),
    cell("gru"),
    Case("lstm_cell, one vector", mb.ops.lstm_cell(), flax_step("lstm"), recurrent("lstm", (5,), 3, None)),
    sequence(
        "rnn", "rnn", (19, 2, 5), large=recurrent("rnn", (128, 32, 128), 256)
    ),  # a chunk of time, and a part of one
    sequence("rnn", "rnn, relu, batch first", (2, 7, 5), activation="relu", axis=-2, reverse=True),
    sequence("lstm", "lstm", (19, 2, 5), large=recurrent("lstm", (128, 32, 128), 256)),
    sequence("lstm", "lstm, batch first, reverse", (2, 32, 5), axis=-2, reverse=True),
    sequence("lstm", "lstm, one sequence", (7, 5), reverse=True),
    sequence("gru", "gru", (19, 2, 5), large=recurrent("gru", (128, 32, 128), 256)),
    sequence("gru", "gru, batch first, reverse", (2, 19, 5), axis=-2, reverse=True),
    Case(
        "linear_recurrence",
        mb.ops.linear_recurrence(),
        scan_recurrence(),
        decays((7, 2, 5)),
        large=decays((4096, 4, 64)),
    ),
    Case(
        "linear_recurrence, last axis, one a, reverse",
        mb.ops.linear_recurrence(axis=-1, reverse=True),
        scan_recurrence(-1, True),
        decays((2, 5, 7), (5, 1)),
    ),
    Case(
        "linear_recurrence, initial",
        mb.ops.linear_recurrence(axis=1, initial=True),
        scan_recurrence(1),
        decays((2, 7, 5), h=(2, 5)),
    ),
    Case(
        "linear_recurrence, initial, reverse",
        mb.ops.linear_recurrence(initial=True, reverse=True),
        scan_recurrence(reverse=True),
        decays((7, 5), h=(5,)),
    ),
    Case(
        "linear_recurrent_unit",
        mb.ops.linear_recurrent_unit(),
        scan_unit(),
        unit_of((7, 2, 10)),
        large=unit_of((4096, 4, 128)),
    ),
    Case(
        "linear_recurrent_unit, batch first, reverse",
        mb.ops.linear_recurrent_unit(axis=-2, reverse=True),
        scan_unit(-2, True),
        unit_of((2, 7, 10), -2),
    ),
    Case(
        "linear_recurrent_unit, initial",
        mb.ops.linear_recurrent_unit(axis=1, initial=True),
        scan_unit(1),
        unit_of((2, 7, 10), 1, True),
    ),
    Case(
        "linear_recurrent_unit, initial, one sequence, reverse",
        mb.ops.linear_recurrent_unit(initial=True, reverse=True),
        scan_unit(reverse=True),
        unit_of((7, 6), 0, True),
    ),
]

LAYERS: list[Case] = [
    layer_case("RNN", RNN(3), flax_layer("rnn"), normal((2, 7, 5))),
    layer_case("LSTM", LSTM(3, reverse=True), flax_layer("lstm", 2, reverse=True), normal((2, 7, 5))),
    layer_case("GRU", GRU(3), flax_layer("gru"), normal((2, 7, 5))),
    layer_case(
        "Apply, linear_recurrence",
        Apply(mb.ops.linear_recurrence(axis=-2)),
        lambda p, x: scan_recurrence(-2)(*x),
        lambda rng: decays((2, 7, 5))(rng),
    ),
    layer_case(
        "LinearRecurrentUnit",
        LinearRecurrentUnit(),
        lambda p, x: scan_unit(-2)(x, p["nu"], p["theta"]),
        normal((2, 7, 10)),
    ),
    layer_case("LastStep", LastStep(), lambda p, x: x[:, -1], normal((2, 7, 5))),
]


def rotations(rng):
    """Complex inputs, and numbers of modulus one, in parts."""
    angle = rng.uniform(-3, 3, (19, 5))
    return *normal((19, 5), (19, 5))(rng), np.cos(angle), np.sin(angle)


def units(nu: float) -> Draw:
    """The same ν for all."""
    return lambda rng: (rng.standard_normal((7, 2, 10)), np.full(5, nu), rng.uniform(-3, 3, 5))


def rounds(reverse: bool) -> Callable:
    """The recurrence in the order for many processors, which no CPU takes."""
    return lambda x, a, h: in_rounds(a, x, h, reverse)


def unit_in_rounds(x, nu, theta, h):
    """The same of a linear recurrent unit."""
    _, decay, gamma = constants(nu, theta, x.dtype)
    wide = gamma.dtype
    return pairs_in_rounds(decay, twice(gamma) * x.astype(wide), h.astype(wide), False).astype(x.dtype)


ONE_STEP = normal((1, 2, 5), (1, 2, 5))
ZEROS_AND_ONES = (np.linspace(-3.0, 4.0, 14).reshape(7, 2), np.array([0.0, 1.0, -1.0, 1.0, 0.0, 1.0, -1.0])[:, None])

EXTREMES: list[Case] = [
    Case("saturated rnn", mb.ops.rnn(), flax_rnn("rnn"), recurrent("rnn", (3, 2, 5), 3, scale=1e4)),
    Case("saturated rnn_cell", mb.ops.rnn_cell(), flax_step("rnn"), recurrent("rnn", (2, 5), 3, None, scale=1e4)),
    Case("saturated lstm", mb.ops.lstm(), flax_rnn("lstm"), recurrent("lstm", (3, 2, 5), 3, scale=1e4)),
    Case("saturated lstm_cell", mb.ops.lstm_cell(), flax_step("lstm"), recurrent("lstm", (2, 5), 3, None, scale=1e4)),
    Case("saturated gru", mb.ops.gru(), flax_rnn("gru"), recurrent("gru", (3, 2, 5), 3, scale=1e4)),
    Case("saturated gru_cell", mb.ops.gru_cell(), flax_step("gru"), recurrent("gru", (2, 5), 3, None, scale=1e4)),
    Case("nearly saturated lstm", mb.ops.lstm(), flax_rnn("lstm"), recurrent("lstm", (3, 2, 5), 3, scale=10)),
    sequence("rnn", "rnn, one step", (1, 2, 5)),
    sequence("lstm", "lstm, one step", (1, 2, 5)),
    sequence("gru", "gru, one step", (1, 2, 5)),
    sequence("lstm", "lstm, a whole chunk", (16, 2, 5), reverse=True),
    Case("a decay of 0, 1 and -1", mb.ops.linear_recurrence(), scan_recurrence(), exactly(*ZEROS_AND_ONES)),
    Case("no decay at all", mb.ops.linear_recurrence(), scan_recurrence(), exactly(np.ones((7, 2)), np.ones(()))),
    Case("growth", mb.ops.linear_recurrence(), scan_recurrence(), exactly(np.ones((5, 2)), np.full((5, 2), 30.0))),
    Case("a decay to denormals", mb.ops.linear_recurrence(), scan_recurrence(), exactly(np.ones((5, 2)), np.full((5, 2), 1e-8))),
    Case("one step of a recurrence", mb.ops.linear_recurrence(), scan_recurrence(), ONE_STEP),
    Case("a recurrence in rounds", rounds(False), scan_recurrence(), decays((7, 2, 5), h=(2, 5))),
    Case("a recurrence in rounds, reverse", rounds(True), scan_recurrence(reverse=True), decays((7, 5), h=(5,))),
    Case("a unit that hardly forgets", mb.ops.linear_recurrent_unit(), scan_unit(), units(-20.0)),
    Case("a unit that forgets at once", mb.ops.linear_recurrent_unit(), scan_unit(), units(6.0)),
    Case("a unit beyond float32", mb.ops.linear_recurrent_unit(), scan_unit(), units(-120.0)),
    Case("a unit of no memory", mb.ops.linear_recurrent_unit(), scan_unit(), units(120.0)),
    Case("one step of a unit", mb.ops.linear_recurrent_unit(), scan_unit(), unit_of((1, 2, 10))),
    Case("a unit in rounds", unit_in_rounds, scan_unit(), unit_of((7, 2, 10), 0, True)),
    Case("complex rotations", of_parts(mb.ops.linear_recurrence()), of_parts(scan_recurrence()), rotations),
]  # fmt: skip

EMPTY: list[Case] = [
    Case("rnn_cell, no examples", mb.ops.rnn_cell(), flax_step("rnn"), recurrent("rnn", (0, 5), 3, None)),
    Case("lstm_cell, no examples", mb.ops.lstm_cell(), flax_step("lstm"), recurrent("lstm", (0, 5), 3, None)),
    Case("gru_cell, no examples", mb.ops.gru_cell(), flax_step("gru"), recurrent("gru", (0, 5), 3, None)),
    sequence("rnn", "rnn, no examples", (7, 0, 5)),
    sequence("lstm", "lstm, no examples", (7, 0, 5)),
    sequence("gru", "gru, no examples", (7, 0, 5)),
    sequence("rnn", "rnn, no steps", (0, 2, 5)),
    sequence("lstm", "lstm, no steps", (0, 2, 5)),
    sequence("gru", "gru, no steps", (0, 2, 5)),
    Case("linear_recurrence, no examples", mb.ops.linear_recurrence(), scan_recurrence(), decays((7, 0, 5))),
    Case("linear_recurrence, no steps", mb.ops.linear_recurrence(), scan_recurrence(), decays((0, 2, 5))),
    Case("linear_recurrent_unit, no examples", mb.ops.linear_recurrent_unit(), scan_unit(), unit_of((7, 0, 10))),
    Case("linear_recurrent_unit, no steps", mb.ops.linear_recurrent_unit(), scan_unit(), unit_of((0, 2, 10))),
]


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    op = draw(st.sampled_from(["rnn", "lstm", "gru", "linear_recurrence", "linear_recurrent_unit"]))
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    time, features, hidden = draw(st.integers(1, 35)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    axis, reverse = draw(st.sampled_from([0, -2])), draw(st.booleans())
    x = (time, *batch, features) if axis == 0 else (*batch, time, features)
    if op == "linear_recurrence":
        unit = mb.ops.linear_recurrence(axis=axis, reverse=reverse)
        a = tuple(draw(st.sampled_from([1, size])) for size in x)
        return Case(op, unit, scan_recurrence(axis, reverse), decays(x, a))
    if op == "linear_recurrent_unit":
        initial, x = draw(st.booleans()), (*x[:-1], 2 * features)
        op = mb.ops.linear_recurrent_unit(axis=axis, reverse=reverse, initial=initial)
        return Case(op.name, op, scan_unit(axis, reverse), unit_of(x, axis, initial))
    if draw(st.booleans()):
        unit = getattr(mb.ops, f"{op}_cell")()
        return Case(f"{op}_cell", unit, flax_step(op), recurrent(op, (*batch, features), hidden, None))
    unit = getattr(mb.ops, op)(axis=axis, reverse=reverse)
    return Case(op, unit, flax_rnn(op, axis=axis, reverse=reverse), recurrent(op, x, hidden, axis))


# ── what a user gets wrong, and the part of the one line that says so ────────────────────────────────────────────────

X, H, WX, WH, B = (jnp.ones(shape) for shape in ((7, 2, 5), (2, 3), (5, 3), (3, 3), (3,)))


def tiled(gates: int) -> tuple:
    """The parameters for so many gates."""
    return tuple(jnp.concatenate([v] * gates, -1) for v in (WX, WH, B))


MISTAKES: dict = {
    "rnn: x of another size": (
        lambda: mb.ops.rnn()(X[..., :4], H, WX, WH, B),
        "rnn: x has shape (7, 2, 4), wx (5, 3); x's last axis must be 5",
    ),
    "rnn: wx of another size": (
        lambda: mb.ops.rnn()(X, H, jnp.ones((5, 4)), WH, B),
        "rnn: wx has shape (5, 4), wh (3, 3); wx must be [in, 3]",
    ),
    "rnn: wh that is not square": (
        lambda: mb.ops.rnn_cell()(X, H, WX, jnp.ones((5, 3)), B),
        "rnn_cell: wh has shape (5, 3); wants [hidden, hidden]",
    ),
    "lstm: wh of one gate": (
        lambda: mb.ops.lstm()(X, H, H, WX, WH, B),
        "lstm: wh has shape (3, 3); wants [hidden, 4 hidden]",
    ),
    "gru: b of another size": (
        lambda: mb.ops.gru()(X, H, *tiled(3)[:2], B, B),
        "gru: b has shape (3,); wants (9,), [3 hidden]",
    ),
    "gru: bh of another size": (
        lambda: mb.ops.gru()(X, H, *tiled(3), jnp.ones(9)),
        "gru: bh has shape (9,); wants (3,), [hidden]",
    ),
    "gru_cell: an integer bh": (lambda: mb.ops.gru_cell()(X[0], H, *tiled(3), jnp.ones(3, int)), "gru_cell: bh is int32"),
    "lstm: no time": (
        lambda: mb.ops.lstm()(X[0, 0], H, H, *tiled(4)),
        "lstm: x has shape (5,); wants [time, ..., in]",
    ),
    "lstm: a state for each step": (
        lambda: mb.ops.lstm()(X, H, jnp.ones((7, 2, 3)), *tiled(4)),
        "lstm: c has shape (7, 2, 3); wants (2, 3), from x (7, 2, 5) and wh (3, 12)",
    ),
    "lstm: batch first, not said": (
        lambda: mb.ops.lstm()(jnp.ones((2, 7, 5)), H, H, *tiled(4)),
        "lstm: h has shape (2, 3); wants (7, 3), from x (2, 7, 5) and wh (3, 12)",
    ),
    "lstm_cell: a state of another batch": (
        lambda: mb.ops.lstm_cell()(X[0], H[:1], H, *tiled(4)),
        "lstm_cell: h has shape (1, 3); wants (2, 3)",
    ),
    "rnn: time among the features": (
        lambda: mb.ops.rnn(axis=-1)(X, H, WX, WH, B),
        "rnn: axis -1 of x (7, 2, 5) holds the features; wants that of time",
    ),
    "rnn: an axis that is not there": (lambda: mb.ops.rnn(axis=3)(X, H, WX, WH, B), "rnn: axis 3 is out of range"),
    "rnn: another activation": (
        lambda: mb.ops.rnn(activation="tan"),
        "rnn: activation is 'tan'; wants 'tanh' or 'relu'",
    ),
    "rnn_cell: another activation": (lambda: mb.ops.rnn_cell(activation="gelu"), "rnn_cell: activation is 'gelu'; wants 'tanh' or 'relu'"),
    "rnn: integers": (lambda: mb.ops.rnn()(X.astype(int), H, WX, WH, B), "rnn: x is int32; wants floating point"),
    "rnn_cell: a scalar": (lambda: mb.ops.rnn_cell()(X[0, 0, 0], H, WX, WH, B), "rnn_cell: x has shape (); wants [..., in]"),
    "linear_recurrence: a of another length": (
        lambda: mb.ops.linear_recurrence()(jnp.ones((7, 5)), jnp.ones((6, 5))),
        "linear_recurrence: a has shape (6, 5), x (7, 5); a must broadcast to (7, 5)",
    ),
    "linear_recurrence: a larger than x": (
        lambda: mb.ops.linear_recurrence()(jnp.ones(7), jnp.ones((7, 5))),
        "linear_recurrence: a has shape (7, 5), x (7,)",
    ),
    "linear_recurrence: h with time": (
        lambda: mb.ops.linear_recurrence(initial=True)(X, X, X),
        "linear_recurrence: h has shape (7, 2, 5); wants (2, 5), x's without time",
    ),
    "linear_recurrence: integers": (
        lambda: mb.ops.linear_recurrence()(X.astype(int), X),
        "linear_recurrence: x is int32; wants floating point",
    ),
    "linear_recurrence: no time": (
        lambda: mb.ops.linear_recurrence()(jnp.ones(()), jnp.ones(())),
        "linear_recurrence: x has shape (); wants an axis of time",
    ),
    "linear_recurrence: an axis that is not there": (
        lambda: mb.ops.linear_recurrence(axis=2)(jnp.ones((7, 5)), jnp.ones((7, 5))),
        "linear_recurrence: axis 2 is out of range",
    ),
    "linear_recurrent_unit: an odd number": (
        lambda: mb.ops.linear_recurrent_unit()(jnp.ones((7, 5)), jnp.ones(2), jnp.ones(2)),
        "linear_recurrent_unit: x has shape (7, 5); wants [time, ..., 2 d], real and imaginary parts",
    ),
    "linear_recurrent_unit: nu for each real number": (
        lambda: mb.ops.linear_recurrent_unit()(jnp.ones((7, 6)), jnp.ones(6), jnp.ones(3)),
        "linear_recurrent_unit: nu has shape (6,); wants (3,), half the last axis of x (7, 6)",
    ),
    "linear_recurrent_unit: time among the features": (
        lambda: mb.ops.linear_recurrent_unit(axis=-1)(jnp.ones((7, 6)), jnp.ones(3), jnp.ones(3)),
        "linear_recurrent_unit: axis -1 of x (7, 6) holds the features; wants that of time",
    ),
    "linear_recurrent_unit: h with time": (
        lambda: mb.ops.linear_recurrent_unit(initial=True)(jnp.ones((7, 6)), jnp.ones(3), jnp.ones(3), jnp.ones((7, 6))),
        "linear_recurrent_unit: h has shape (7, 6); wants (6,), x's without time",
    ),
    "linear_recurrent_unit: complex": (
        lambda: mb.ops.linear_recurrent_unit()(jnp.ones((7, 6), complex), jnp.ones(3), jnp.ones(3)),
        "linear_recurrent_unit: x is complex64; wants floating point",
    ),
    "LinearRecurrentUnit: an odd number": (
        lambda: LinearRecurrentUnit().init(jax.random.key(0), X),
        "LinearRecurrentUnit: x has shape (7, 2, 5); wants [..., time, 2 d], an even last axis",
    ),
    "LinearRecurrentUnit: a ring inside out": (
        lambda: LinearRecurrentUnit(smallest=0.9, largest=0.5),
        "LinearRecurrentUnit: the ring is 0.9 … 0.5; wants 0 ≤ smallest < largest ≤ 1",
    ),
    "LastStep: no time": (lambda: LastStep().init(jax.random.key(0), X) and LastStep().apply({}, (), X[0, 0]), "LastStep: x has shape (5,)"),
    "LSTM: carried backwards": (lambda: LSTM(3, carried=True, reverse=True), "LSTM: reverse starts at the end"),
    "LSTM: carried to another batch size": (
        lambda: LSTM(3, carried=True).apply(*LSTM(3, carried=True).init(jax.random.key(0), X), X[:4]),
        "LSTM: the carried state has shape (7, 3), x (4, 2, 5); wants (4, 3): a state is for one batch size, that of init",
    ),
    "GRU: carried, no state": (
        lambda: GRU(3, carried=True).apply(GRU(3).init(jax.random.key(0), X)[0], (), X),
        "GRU: got 0 arrays of state; wants 1, as of init",
    ),
    "RNN: carried is no bool": (lambda: RNN(3, carried=1), "RNN: carried is 1; wants True or False"),
    "LSTM: no time": (lambda: LSTM(3).init(jax.random.key(0), jnp.ones(5)), "LSTM: x has shape (5,); wants [..., time, in]"),
    "LSTM: no hidden units": (lambda: LSTM(0), "LSTM: hidden is 0; wants a whole number, at least 1"),
    "RNN: integers": (lambda: RNN(3).init(jax.random.key(0), X.astype(int)), "RNN: x is int32"),
    "GRU: a tuple": (lambda: GRU(3).init(jax.random.key(0), (X, H)), "GRU: x is a tuple of 2"),
}  # fmt: skip
