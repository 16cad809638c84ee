"""Recurrent models: against flax with the same parameters; a state that is carried; truncation; ∂C/∂hₜ at every step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
from cases import random_like, squared_error
from cases.sequence import flax_rnn, scan_unit
from manual_backprop.inspection import hidden_sensitivities, through_time
from manual_backprop.layers import GRU, LSTM, RNN, Apply, BatchNorm, Dense, LinearRecurrentUnit
from manual_backprop.models import recurrent
from manual_backprop.testing import check_vjp
from peers import flax_recurrent

COST = Apply(mb.ops.squared_error())
MODELS = {
    "lstm": {"cell": "lstm", "depth": 2},
    "lstm, ids": {"cell": "lstm", "depth": 3, "vocabulary": 11},
    "gru": {"cell": "gru", "depth": 2},
    "gru, last": {"cell": "gru", "last": True},
    "rnn": {"cell": "rnn", "depth": 2},
    "state space": {"cell": "state_space", "depth": 3},
    "state space, ids, last": {"cell": "state_space", "depth": 2, "vocabulary": 11, "last": True},
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def batch_of(options, seed=0, dtype=None):
    """Two chunks of time and a part of one."""
    ids = jnp.asarray(np.random.default_rng(seed).integers(0, 11, (3, 37)))
    x = ids if "vocabulary" in options else normal(3, 37, 5, seed=seed).astype(dtype)
    return x, normal(*((3, 2) if options.get("last") else (3, 37, 2)), seed=seed + 1).astype(dtype)


def start(layer, x, seed=1):
    """Parameters of numbers that hide nothing, and the state."""
    params, state = layer.init(jax.random.key(seed), x)
    noise = random_like(params, seed)
    return jax.tree.map(lambda p, e: (p + 0.2 * e).astype(e.dtype), params, noise), state


SLOW = {"lstm", "gru", "state space, ids, last"}  # each has a sister that is not


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS])
def both(request, float64):
    """(objective, params, state, batch), flax's cost of its parameters, and the way from ours to those."""
    options = MODELS[request.param]
    objective = mb.Objective(recurrent(hidden=7, outputs=2, **options), COST)
    batch, peer = batch_of(options), flax_recurrent.Recurrent(hidden=7, outputs=2, **options)
    params, state = start(objective, batch)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)  # an embedding's table is of float32
    to_flax = lambda params: flax_recurrent.to_flax(peer, params[0])
    yield (objective, params, state, batch), lambda p: squared_error(peer.apply(p, batch[0]), batch[1]), to_flax


def largest_difference(ours, theirs) -> float:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def assert_same(ours, theirs, rtol=1e-12):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert largest_difference(ours, theirs) <= rtol


# ── against flax ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_gradient_is_flaxs(both):
    (objective, params, state, batch), flax_cost, to_flax = both
    (cost, _), gradient = jax.jit(mb.value_and_grad(objective))(params, state, batch)
    expected, theirs = jax.jit(jax.value_and_grad(flax_cost))(to_flax(params))
    assert abs(cost - expected) <= 1e-13 * expected
    assert_same(to_flax(gradient), theirs, 1e-11)
    assert abs(objective.apply(params, state, batch) - expected) <= 1e-13 * expected


def test_ten_steps_end_where_flaxs_do(both):
    (objective, ours, state, batch), flax_cost, to_flax = both
    optimizer, theirs = optax.sgd(0.005, momentum=0.9), to_flax(ours)
    begin = theirs

    def step(gradient):
        def run(params, optimizer_state):
            updates, optimizer_state = optimizer.update(gradient(params), optimizer_state, params)
            return optax.apply_updates(params, updates), optimizer_state

        return jax.jit(run)

    our_step = step(lambda params: mb.value_and_grad(objective)(params, state, batch)[1])
    their_step = step(jax.grad(flax_cost))
    our_state, their_state = optimizer.init(ours), optimizer.init(theirs)
    for _ in range(10):
        ours, our_state = our_step(ours, our_state)
        theirs, their_state = their_step(theirs, their_state)
    assert_same(to_flax(ours), theirs, 1e-11)
    assert largest_difference(begin, theirs) > 0.1  # it moved


@pytest.mark.slow  # in 16 bits every model is a row of test_precision.py too
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "state_space"])
def test_in_bfloat16_the_oracle_finds_nothing(cell):
    options = {"cell": cell, "hidden": 3, "outputs": 2}
    objective = mb.Objective(recurrent(**options), COST)
    x, target = normal(2, 7, 5).astype(jnp.bfloat16), normal(2, 7, 2).astype(jnp.bfloat16)
    params, state = start(objective, (x, target))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    peer = flax_recurrent.Recurrent(**options)

    def reference(params, state, batch):
        return squared_error(peer.apply(flax_recurrent.to_flax(peer, params[0]), batch[0]), batch[1])

    report = check_vjp(objective, reference, params, state, (x, target), effort="quick")
    assert report, f"\n{report}"


# ── a state that is carried ──────────────────────────────────────────────────────────────────────────────────────────

CARRIED = {
    "RNN": RNN(3, activation="tanh", carried=True),
    "LSTM": LSTM(3, carried=True),
    "GRU, time first": GRU(3, axis=0, carried=True),
    "LinearRecurrentUnit": LinearRecurrentUnit(carried=True),
    "Repeat": mb.Repeat(LSTM(6, carried=True), 2),
    "several": mb.Serial(Dense(4), GRU(3, carried=True), LSTM(5, carried=True)),
}


def plain(layer):
    """The same, which starts from zero."""
    if isinstance(layer, mb.Serial):
        return mb.Serial(*map(plain, layer.layers))
    if isinstance(layer, mb.Repeat):
        return mb.Repeat(plain(layer.layer), layer.n)
    return type(layer)(**{**vars(layer), "carried": False}) if hasattr(layer, "carried") else layer


@pytest.mark.parametrize("layer", CARRIED.values(), ids=CARRIED)
def test_two_halves_are_the_whole(layer, float64):
    axis = getattr(layer, "axis", -2)
    x = normal(2, 14, 6) if axis == -2 else normal(14, 2, 6)
    params, zero = start(layer, x)
    whole, _, _ = plain(layer).forward(params, plain(layer).init(jax.random.key(0), x)[1], x)
    state, halves = zero, []
    for half in jnp.split(x, 2, axis):
        inference = layer.apply(params, state, half)
        y, state, _ = layer.forward(params, state, half)
        assert_same(inference, y, 1e-14)
        halves.append(y)
    assert_same(jnp.concatenate(halves, axis), whole)
    assert jax.tree.structure(state) == jax.tree.structure(zero)


REFERENCES = {"RNN": flax_rnn("rnn", -2), "LSTM": flax_rnn("lstm", -2), "GRU": flax_rnn("gru", -2)}


def function(layer):
    """(params, state, x) → (y, state), of independent code."""
    if isinstance(layer, LinearRecurrentUnit):

        def unit(params, h, x):
            y = scan_unit(-2)(x, params["nu"], params["theta"], h)
            return y, y[:, -1]

        return unit
    names = ("wx", "wh", "b", "bh")
    run = REFERENCES[type(layer).__name__]
    return lambda params, state, x: run(x, *jax.tree.leaves(state), *(params[n] for n in names if n in params))


EACH = {"argnames": "layer", "argvalues": [RNN(3, carried=True), LSTM(3, carried=True), GRU(3, carried=True), LinearRecurrentUnit(carried=True)], "ids": repr}  # fmt: skip


@pytest.mark.parametrize(**EACH)
def test_a_carried_state_has_no_gradient(layer, float64):
    """Two batches of a sequence, one after the other, against jax.grad with stop_gradient between them."""
    x, run = normal(2, 14, 6), function(layer)
    params, zero = start(layer, x[:, :7])
    dy = random_like(layer.apply(params, zero, x[:, :7]), 2)

    def cost(params, x):
        first, middle = run(params, zero, x[:, :7])
        second, _ = run(params, jax.lax.stop_gradient(middle), x[:, 7:])
        return jnp.vdot(first, dy) + jnp.vdot(second, 2 * dy)

    _, middle, residuals = layer.forward(params, zero, x[:, :7])
    p, dx = layer.backward(params, residuals, dy)
    _, _, residuals = layer.forward(params, middle, x[:, 7:])
    q, dx_after = layer.backward(params, residuals, 2 * dy)
    expected, dx_expected = jax.grad(cost, (0, 1))(params, x)
    assert_same(jax.tree.map(jnp.add, p, q), expected)
    assert_same(jnp.concatenate([dx, dx_after], 1), dx_expected)


def test_the_state_keeps_its_dtype_under_another_precision():
    layer = mb.Precision(LSTM(3, carried=True))
    x = normal(2, 7, 5)
    params, state = layer.init(jax.random.key(0), x)
    y, after, _ = layer.forward(params, state, x)
    assert y.dtype == jnp.bfloat16 and {leaf.dtype for leaf in after} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "layer",
    [RNN(3, carried=True), LSTM(3, carried=True), GRU(3, carried=True), LinearRecurrentUnit(carried=True)],
    ids=repr,
)
def test_no_steps_leave_the_state_as_it_was(layer):
    params, state = layer.init(jax.random.key(0), jnp.zeros((3, 5, 4)))
    state = random_like(state, 1)
    x = jnp.zeros((3, 0, 4))
    y, after, residuals = layer.forward(params, state, x)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert y.shape[:2] == layer.backward(params, residuals, y)[1].shape[:2] == (3, 0)
    assert through_time(layer, params, x, y, state).h.shape == y.shape


def test_without_carried_the_program_is_that_of_the_op():
    x = normal(2, 7, 5)
    layer = LSTM(3)
    params, state = layer.init(jax.random.key(0), x)
    zero = jnp.zeros((2, 3))

    def ours(params, x):
        y, _, residuals = layer.forward(params, state, x)
        return y, layer.backward(params, residuals, y)

    def op(params, x):
        (y, _), residuals = layer.op.forward(x, zero, zero, params["wx"], params["wh"], params["b"])
        return y, layer.op.backward(residuals, (y, (zero, zero)))

    flops = lambda f: jax.jit(f).lower(params, x).compile().cost_analysis()["flops"]
    assert state == () and flops(ours) <= flops(op)


def test_an_lstm_that_keeps_its_state_has_one_open_gate():
    params, _ = recurrent("lstm", 3, 2).init(jax.random.key(0), normal(2, 7, 5))
    np.testing.assert_array_equal(params[0]["b"], [0] * 3 + [1] * 3 + [0] * 6)


# ── truncation ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(**EACH)
@pytest.mark.parametrize("carried", [False, True], ids=["from zero", "carried"])
def test_truncated_is_stop_gradient_between_the_parts(layer, carried, float64):
    x, run = normal(2, 21, 6), function(layer)
    truncated = mb.Truncated(layer, 7, carried)
    params, state = start(truncated, x)
    begin = layer.init(jax.random.key(0), x)[1]
    if carried:
        begin = state = random_like(begin, 5)
    y, after, residuals = jax.jit(truncated.forward)(params, state, x)
    dy = random_like(y, 2)

    def reference(params, x):
        memory, parts = begin, []
        for part in jnp.split(x, 3, 1):
            y, memory = run(params, memory, part)
            memory = jax.lax.stop_gradient(memory)
            parts.append(y)
        return jnp.concatenate(parts, 1), memory

    (expected, memory), pull = jax.vjp(reference, params, x)
    assert_same((y, after), (expected, memory if carried else ()))
    assert_same(jax.jit(truncated.backward)(params, residuals, dy), pull((dy, jax.tree.map(jnp.zeros_like, memory))))
    assert_same(truncated.apply(params, state, x[:, :13]), y[:, :13])  # inference takes any length
    whole = plain(layer)
    _, residuals = whole.forward(params, (), x)[1:]
    assert largest_difference(whole.backward(params, residuals, dy)[0], pull((dy, memory))[0]) > 1e-3


def test_truncated_models_of_one_part_are_the_models(float64):
    x, dy = normal(2, 7, 5), normal(2, 7, 2, seed=3)

    @partial(jax.jit, static_argnums=0)
    def run(model, params):
        y, _, residuals = model.forward(params, model.init(jax.random.key(0), x)[1], x)
        return y, model.backward(params, residuals, dy)

    for cell in ("lstm", "state_space"):
        model, one, several = (recurrent(cell, 3, 2, depth=2, truncate=steps) for steps in (None, 7, 1))
        params, _ = start(one, x)
        same = (params[0], *params[1], params[2]) if cell == "state_space" else (*params[0], params[1])
        y, (dparams, dx) = run(one, params)
        expected = run(model, same)
        assert largest_difference((y, dparams, dx), expected) <= 1e-12
        assert largest_difference(run(several, params)[1][0], dparams) > 1e-3


# ── ∂C/∂hₜ ───────────────────────────────────────────────────────────────────────────────────────────────────────────

LAYERS = [
    RNN(3),
    RNN(3, activation="relu", reverse=True),
    GRU(3),
    GRU(3, reverse=True),
    LSTM(3),
    LSTM(3, reverse=True),
    LinearRecurrentUnit(),
    LinearRecurrentUnit(reverse=True),
    LSTM(3, carried=True),
]


def perturbed(layer, params, state, x, ph, pc):
    """y, with ph added to every h where it arises, and pc to every c: x [batch, time, in], one cell after another."""
    h, c = (state or (jnp.zeros_like(ph[:, 0]),) * 2) if isinstance(layer, LSTM) else (jnp.zeros_like(ph[:, 0]), None)
    order, hs = range(x.shape[1]), {}
    for t in reversed(order) if layer.reverse else order:
        if isinstance(layer, LinearRecurrentUnit):
            h = jnp.concatenate(_turned(params, h, x[:, t]), -1)
        elif isinstance(layer, RNN):
            z = x[:, t] @ params["wx"] + h @ params["wh"] + params["b"]
            h = jnp.tanh(z) if layer.activation == "tanh" else jax.nn.relu(z)
        elif isinstance(layer, GRU):
            ar, az, an = jnp.split(x[:, t] @ params["wx"] + params["b"], 3, -1)
            ur, uz, un = jnp.split(h @ params["wh"], 3, -1)
            z = jax.nn.sigmoid(az + uz)
            h = (1 - z) * jnp.tanh(an + jax.nn.sigmoid(ar + ur) * (un + params["bh"])) + z * h
        else:
            i, f, g, o = jnp.split(x[:, t] @ params["wx"] + h @ params["wh"] + params["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g) + pc[:, t]
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        hs[t] = h = h + ph[:, t]
    return jnp.stack([hs[t] for t in order], 1)


def _turned(params, h, x):
    (a, b), (u, v) = jnp.split(h, 2, -1), jnp.split(x, 2, -1)
    size, angle = jnp.exp(-jnp.exp(params["nu"])), params["theta"]
    gamma = jnp.sqrt(1 - size**2)
    return (
        size * (jnp.cos(angle) * a - jnp.sin(angle) * b) + gamma * u,
        size * (jnp.sin(angle) * a + jnp.cos(angle) * b) + gamma * v,
    )


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_through_time_is_the_gradient_of_an_addition_to_every_state(layer, float64):
    x = normal(2, 7, 6)
    params, state = start(layer, x)
    state = random_like(state, 4)
    y = layer.apply(params, state, x)
    nothing, dy = jnp.zeros_like(y), random_like(y, 3)
    cost = lambda ph, pc: jnp.vdot(perturbed(layer, params, state, x, ph, pc), dy)
    assert_same(perturbed(layer, params, state, x, nothing, nothing), y)
    dh, dc = jax.grad(cost, (0, 1))(nothing, nothing)
    found = through_time(layer, params, x, dy, state)
    assert_same(found.h, dh)
    assert (found.c is None) == (not isinstance(layer, LSTM))
    if found.c is not None:
        assert_same(found.c, dc)


SENSITIVE = {
    "one": ({}, ["model[0]"]),
    "deep": ({"depth": 3}, ["model[0]", "model[1]"]),
    "truncated": ({"depth": 3, "truncate": 5}, ["model[0][0]", "model[0][1]"]),
}


@pytest.mark.parametrize("cell", [LSTM, pytest.param(GRU, marks=pytest.mark.slow), RNN])
@pytest.mark.parametrize("case", SENSITIVE)
def test_sensitivities_of_a_whole_model(cell, case, float64):
    """Layer by layer by hand, from the last one down."""
    options, places = SENSITIVE[case]
    x, target = normal(2, 15, 4), normal(2, 15, 3, seed=1)
    name = cell.__name__
    model = recurrent(name.lower(), 4, 3, **options)
    objective = mb.Objective(model, COST)
    params, state = start(objective, (x, target))
    found = jax.jit(lambda p, s, b: hidden_sensitivities(objective, p, s, b))(params, state, (x, target))
    assert list(found) == [f"{place} {name}" for place in places]
    cells = params[0][0] if "truncate" in options else params[0][:-1]
    cells = [cells] if isinstance(cells, dict) else list(cells)
    if len(cells) > 1:
        cells[1:] = [jax.tree.map(lambda leaf, i=i: leaf[i], cells[1]) for i in range(2)]
    head, inputs, parts = params[0][-1], [x], options.get("truncate", 15)
    layer = cell(4, carried=True)

    def run(p, x):
        """All parts: y, and a function of dy to dx and the lengths."""
        memory, ys, kept = layer.init(jax.random.key(0), x)[1], [], []
        for part in jnp.split(x, 15 // parts, 1):
            before = memory
            y, memory, residuals = layer.forward(p, memory, part)
            ys.append(y)
            kept.append((before, part, residuals))

        def back(dy):
            pieces = list(zip(kept, jnp.split(dy, 15 // parts, 1), strict=True))
            lengths = [
                jnp.linalg.norm(through_time(layer, p, part, d, before).h, axis=-1) for (before, part, _), d in pieces
            ]
            dx = [layer.backward(p, residuals, d)[1] for (_, _, residuals), d in pieces]
            return jnp.concatenate(dx, 1), jnp.mean(jnp.concatenate(lengths, 1), 0)

        return jnp.concatenate(ys, 1), back

    backs = []
    for p in cells:
        y, back = run(p, inputs[-1])
        inputs.append(y)
        backs.append(back)
    dy = jax.grad(lambda y: squared_error(y @ head["w"] + head["b"], target))(inputs[-1])
    lengths = []
    for back in reversed(backs):
        dy, length = back(dy)
        lengths.insert(0, length)
    expected = [lengths[0]] if len(lengths) == 1 else [lengths[0], jnp.stack(lengths[1:])]
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert_same(ours, theirs)


def test_sensitivities_under_other_combinators(float64):
    """Residual, Recompute, Precision and Tied: as those of the plain model with the same parameters."""
    x, target = normal(2, 7, 6), normal(2, 7, 6, seed=1)
    dense, unit = Dense(6), LinearRecurrentUnit()
    inner = mb.Serial(dense, unit)
    plain_one = mb.Objective(mb.Serial(mb.Residual(inner), dense), COST)
    params, state = start(plain_one, (x, target))
    expected = hidden_sensitivities(plain_one, params, state, (x, target))["model[0][1] LinearRecurrentUnit"]
    other = mb.Objective(mb.Serial(mb.Recompute(mb.Residual(mb.Precision(inner, "float64", "float64"))), dense), COST)
    found = hidden_sensitivities(other, params, state, (x, target))
    assert_same(found, {"model[0][1] LinearRecurrentUnit": expected})
    params[0][1]["w"] = params[0][0][0]["w"]
    tied = mb.Tied(plain_one, (0, 0, 0, "w"), (0, 1, "w"))
    expected = hidden_sensitivities(plain_one, params, state, (x, target))
    params[0][1]["w"] = None
    assert_same(hidden_sensitivities(tied, params, state, (x, target)), expected)


def test_the_vanilla_gradient_vanishes_and_that_of_the_others_does_not():
    """After a hundred steps, at the start of training."""
    x, target = normal(4, 100, 2), normal(4, 1)
    left = {}
    for cell in ("rnn", "lstm", "state_space"):
        objective = mb.Objective(recurrent(cell, 16, 1, last=True), COST)
        params, state = objective.init(jax.random.key(0), (x, target))
        (lengths,) = hidden_sensitivities(objective, params, state, (x, target)).values()
        left[cell] = float(lengths.ravel()[0] / lengths.ravel()[-1])
    assert left["rnn"] < 1e-3 < 0.05 < left["state_space"] and left["rnn"] < left["lstm"] / 10


# ── what a user gets wrong ───────────────────────────────────────────────────────────────────────────────────────────

X = jnp.ones((2, 20, 5))
KEPT = LSTM(3, carried=True)


def run(layer, x=X):
    return layer.forward(*layer.init(jax.random.key(0), X), x)


MISTAKES = {
    "another cell": (lambda: recurrent("ltsm", 3, 2), "recurrent: cell 'ltsm' is unknown; did you mean 'lstm'?"),
    "no depth": (lambda: recurrent("lstm", 3, 2, 0), "recurrent: depth is 0; wants a whole number, at least 1"),
    "no width": (lambda: recurrent("state_space", 0, 2), "features is 0; wants a whole number, at least 1"),
    "no steps": (lambda: mb.Truncated(KEPT, 0), "Truncated: steps is 0; wants a whole number, at least 1"),
    "not carried": (
        lambda: mb.Truncated(mb.Serial(KEPT, GRU(3)), 5),
        "Truncated: got GRU(3); wants recurrent layers with carried=True, time at axis -2",
    ),
    "time elsewhere": (lambda: mb.Truncated(GRU(3, axis=0, carried=True), 5), "Truncated: got GRU(3, axis=0, carried="),
    "no memory": (lambda: mb.Truncated(Dense(3), 5), "Truncated: got Dense(3); wants recurrent layers with carried=True"),
    "another state": (
        lambda: run(mb.Truncated(mb.Serial(KEPT, BatchNorm()), 5)),
        "Truncated: BatchNorm() has a state that is no memory; wants it outside of Truncated",
    ),
    "shorter than the truncation": (
        lambda: run(mb.Truncated(KEPT, 25)),
        "x has shape (2, 20, 5), 20 steps; wants at least the 25 of a part",
    ),
    "not a multiple": (
        lambda: run(mb.Truncated(KEPT, 8)),
        "x has shape (2, 20, 5), 20 steps; wants a multiple of 8, those of a part",
    ),
    "no time": (lambda: run(mb.Truncated(KEPT, 5), jnp.ones(5)), "x is float32[5]; wants one array [..., time, in]"),
    "the last step of every part": (
        lambda: run(mb.Truncated(mb.Serial(KEPT, mb.layers.LastStep()), 5)),
        "maps 5 steps to float32[2, 3]; wants every step's output",
    ),
    "another batch size": (
        lambda: run(KEPT, X[:1]),
        "LSTM: the carried state has shape (2, 3), x (1, 20, 5); wants (1, 3): a state is for one batch size",
    ),
    "split": (
        lambda: mb.value_and_grad(mb.combinators.split(mb.Objective(mb.Truncated(KEPT, 5), COST)))(
            *mb.Objective(mb.Truncated(KEPT, 5), COST).init(jax.random.key(0), (X, X[..., :3])), (X, X[..., :3])
        ),
        "Truncated: gradients are owed, of which there is no sum",
    ),
    "through a dense layer": (
        lambda: through_time(Dense(3), {}, X, X),
        "through_time: got Dense(3); wants an RNN, LSTM, GRU or LinearRecurrentUnit",
    ),
    "another cotangent": (
        lambda: through_time(GRU(3), GRU(3).init(jax.random.key(0), X)[0], X, X),
        "through_time: dy has shape (2, 20, 5); wants (2, 20, 3), that of the layer's output",
    ),
    "no objective": (
        lambda: hidden_sensitivities(KEPT, {}, (), X),
        "hidden_sensitivities: got LSTM(3, carried=True); wants an Objective(model, cost)",
    ),
    "no recurrent layer": (
        lambda: hidden_sensitivities(mb.Objective(Dense(3), COST), {}, (), X),
        "hidden_sensitivities: Dense(3) has no recurrent layer; wants at least one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(mistake):
    run, message = mistake
    with pytest.raises(mb.InputError) as error:
        run()
    assert message in str(error.value) and "\n" not in str(error.value)
