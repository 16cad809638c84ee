"""What every op and layer promises: shapes, dtypes, None for integers, values that compare, no weight in the residuals."""

import dataclasses
import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from cases import (
    CASES,
    LAYERS,
    MODELS,
    OPS,
    Case,
    compiled,
    differentiable,
    each,
    gradient,
    leaves_of,
    random_like,
    sweep,
)
from manual_backprop.layers import Apply, Dense, LayerNorm


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(**each(CASES))
def test_cotangents_have_the_shape_and_dtype_of_their_arguments(case: Case, dtype):
    assert_cotangents_fit(case, case.args(dtype=dtype))


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(**each(OPS))
def test_arguments_of_two_dtypes(case: Case, place):
    """Activations in bfloat16 and parameters in float32, or the other way round."""
    args = list(case.args())
    if sum(differentiable(args)) < 2:
        return
    args = [
        arg.astype(jnp.bfloat16) if has and i % 2 == place else arg
        for i, (arg, has) in enumerate(zip(args, differentiable(args), strict=True))
    ]
    assert_cotangents_fit(case, args)
    ours, theirs = (jax.eval_shape(function, *args) for function in (case.unit, case.reference))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and jnp.promote_types(a.dtype, b.dtype) == a.dtype


def assert_cotangents_fit(case: Case, args):
    y, _ = jax.eval_shape(case.pair.forward, *args)
    cotangents = jax.eval_shape(functools.partial(gradient, case.pair), args, y)
    moves = differentiable(args, case.pair.constants)
    for d, arg, has in zip(cotangents, jax.tree.leaves(args), moves, strict=True):
        if has:
            assert (d.shape, d.dtype) == (arg.shape, arg.dtype)
        else:
            assert d is None


@pytest.mark.parametrize(**each(CASES))
def test_two_runs_give_the_same_bits(case: Case):
    args = case.args()
    y, _ = jax.eval_shape(case.pair.forward, *args)
    dy = random_like(y, 0)
    run = compiled(case)
    for a, b in zip(jax.tree.leaves(run(args, dy)), jax.tree.leaves(run(args, dy)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(**each(OPS))
def test_calling_an_op_is_a_custom_vjp_of_its_pair(case: Case):
    args = case.args()
    dy = random_like(jax.eval_shape(case.reference, *args), 1)

    @jax.jit
    def call(args, dy):
        y, vjp = jax.vjp(case.unit, *args)
        return y, vjp(dy)

    @jax.jit
    def pair(args, dy):
        y, residuals = case.unit.forward(*args)
        return y, case.unit.backward(residuals, dy)

    (y, cotangents), (own, expected) = call(args, dy), pair(args, dy)
    jax.tree.map(np.testing.assert_array_equal, y, own)
    for theirs, ours in zip(cotangents, expected, strict=True):
        if ours is None:
            assert theirs.dtype == jax.dtypes.float0
        else:
            np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize(**each(OPS))
def test_residuals_that_bear_an_arguments_name_hold_it(case: Case):
    """Layers rely on it: they take such a field out, and put the parameter back."""
    args = case.args()
    _, residuals = case.unit.forward(*args)
    named = dict(zip(case.unit.arguments, args, strict=False))  # *xs stands for several
    for field in set(residuals._fields) & set(named):
        assert getattr(residuals, field) is named[field]


@pytest.mark.parametrize(**sweep(OPS))
def test_an_op_takes_numpy_arrays(case: Case):
    args = case.draw(np.random.default_rng(0))  # float64, as numpy's default
    reference = case.reference(*args)
    for y in (case.unit(*args), case.unit.forward(*args)[0]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), y, reference)


@pytest.mark.parametrize(**each(OPS))
def test_an_equal_op_compiles_nothing_again(case: Case):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(op, *args):
        traces.append(op)
        return op(*args)

    again = getattr(mb.ops, case.unit.name)(**dict(case.unit.options))
    assert again == case.unit and hash(again) == hash(case.unit)
    for op, seed in ((case.unit, 0), (case.unit, 1), (again, 2)):
        run(op, *case.args(seed))
    assert len(traces) == 1


@pytest.mark.parametrize(**each([*LAYERS, *MODELS]))
def test_no_weight_is_saved_among_the_residuals(case: Case):
    """Nor anything that depends on the parameters alone: every residual feels x, or is no function of either."""
    params, state, x, *key = case.args()
    jaxpr = jax.make_jaxpr(lambda x, params: case.unit.forward(params, state, x, *key)[2])(x, params).jaxpr
    inputs = jaxpr.invars[: len(jax.tree.leaves(x))]
    felt, weights = feels(jaxpr, inputs), feels(jaxpr, jaxpr.invars[len(inputs) :])
    for var in jaxpr.outvars:
        assert var in felt or var not in weights, var


def feels(jaxpr, sources) -> set:
    """The variables that depend on the sources."""
    found = set(sources)
    for equation in jaxpr.eqns:
        if any(not isinstance(var, jax.extend.core.Literal) and var in found for var in equation.invars):
            found |= set(equation.outvars)
    return found


def is_the_same_in_training(case: Case) -> bool:
    """Not so with a state, such as running statistics, with randomness, or where the gradient ends on purpose."""
    _, state, _, *key = case.args()
    return not (jax.tree.leaves(state) or key or isinstance(case.unit, mb.Truncated))


@pytest.mark.parametrize(**each([case for case in [*LAYERS, *MODELS] if is_the_same_in_training(case)]))
def test_apply_is_forward_and_jax_grad_of_it_is_backward(case: Case):
    params, state, x = case.args()
    y, vjp = jax.vjp(lambda params: case.unit.apply(params, state, x), params)
    forward_y, same_state, residuals = case.unit.forward(params, state, x)
    assert jax.tree.structure(same_state) == jax.tree.structure(state)
    dy = random_like(y, 2)
    ours, _ = case.unit.backward(params, residuals, dy)
    for a, b in zip(jax.tree.leaves((y, vjp(dy)[0])), jax.tree.leaves((forward_y, ours)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(**each([*LAYERS, *MODELS]))
def test_init_needs_shapes_alone(case: Case):
    _, _, x, *key = case.args()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
    from_shapes, from_arrays = (case.unit.init(jax.random.key(3), example) for example in (shapes, x))
    jax.tree.map(np.testing.assert_array_equal, from_shapes, from_arrays)
    dparams = jax.eval_shape(
        lambda *args: case.pair.backward(case.pair.forward(*args)[1], dy_of(case, args))[0], *from_arrays, x, *key
    )
    assert jax.tree.structure(dparams) == jax.tree.structure(from_arrays[0])


def dy_of(case, args):
    y, _ = case.pair.forward(*args)
    return jax.tree.map(jnp.ones_like, y)


CONSTRUCTORS = [
    lambda: mb.ops.gelu(),
    lambda: mb.ops.layer_norm(eps=1e-3),
    lambda: Dense(3),
    lambda: Dense(3, bias=False),
    lambda: LayerNorm(eps=0.1),
    lambda: mb.Serial(Dense(3), Apply(mb.ops.relu())),
    lambda: mb.Repeat(mb.Residual(mb.Recompute(Dense(5))), 4),
    lambda: mb.Tied(mb.Serial(Dense(5), Dense(5)), (0, "w"), (1, "w")),
    lambda: mb.Parallel(Dense(3), Dense(4)),
    lambda: mb.Objective(mb.models.mlp(4, 3), Apply(mb.ops.squared_error())),
]


@pytest.mark.parametrize("build", CONSTRUCTORS, ids=lambda build: repr(build()))
def test_equal_options_give_equal_values(build):
    assert build() == build()
    assert hash(build()) == hash(build())
    assert repr(build()) == repr(build())
    with pytest.raises(dataclasses.FrozenInstanceError):
        build().name = "another"


def test_other_options_give_other_values():
    values = [build() for build in CONSTRUCTORS] + [mb.ops.gelu(approximate=False), mb.ops.layer_norm(), Dense(4)]
    assert len(set(values)) == len(values)


def test_values_print_as_they_are_written():
    assert repr(mb.ops.layer_norm(eps=1e-5)) == "layer_norm(eps=1e-05)"
    assert repr(mb.ops.layer_norm()) == "layer_norm()"
    assert repr(Dense(16, bias=False)) == "Dense(16, bias=False)"
    assert repr(mb.models.mlp(4, 3)) == "Serial(Dense(4), Apply(sigmoid()), Dense(3))"
    assert repr(mb.Repeat(mb.Residual(Dense(5)), 12)) == "Repeat(Residual(Dense(5)), 12)"
    tied = mb.Tied(mb.Serial(Dense(5), Dense(5)), (0, "w"), (1, "w"))
    assert repr(tied) == "Tied(Serial(Dense(5), Dense(5)), (0, 'w'), (1, 'w'))"


def test_two_ops_of_one_name_are_two_ops():
    """Made in a factory, or again in a notebook after a correction: never mistaken for each other by jit."""

    def make(f, derivative):
        @mb.op
        def activation():
            return (lambda x: (f(x), (x,))), (lambda r, dy: (dy * derivative(*r),))

        return activation()

    sine, cosine = make(jnp.sin, jnp.cos), make(jnp.cos, lambda x: -jnp.sin(x))
    assert sine != cosine
    apply = jax.jit(lambda op, x: op(x), static_argnums=0)
    np.testing.assert_allclose([apply(sine, 1.0), apply(cosine, 1.0)], [np.sin(1), np.cos(1)], rtol=1e-6)


def test_jitting_the_gradient_of_a_model_built_again_traces_nothing():
    batch = jnp.ones((7, 5)), jnp.ones((7, 3))
    build = lambda: mb.Objective(mb.models.mlp(4, 3), Apply(mb.ops.squared_error()))
    assert mb.value_and_grad(build()) is mb.value_and_grad(build())
    step = jax.jit(mb.value_and_grad(build()))
    step(*build().init(jax.random.key(0), batch), batch)
    assert jax.jit(mb.value_and_grad(build()))._cache_size() == 1


@dataclasses.dataclass(frozen=True)
class Scaled(mb.Stateless):
    by: list

    def run(self, params, x):
        return self.by[0] * x, ()

    def backward(self, params, residuals, dy):
        return {}, self.by[0] * dy


def test_a_layer_that_does_not_hash_has_a_gradient_too():
    objective = mb.Objective(Scaled([2.0]), Apply(mb.ops.squared_error()))
    with pytest.raises(TypeError):
        hash(objective)
    batch = jnp.ones((7, 5)), jnp.ones((7, 5))
    (cost, _), _ = mb.value_and_grad(objective)(*objective.init(jax.random.key(0), batch), batch)
    assert np.isfinite(cost)
    assert Dense(np.int64(3)) == Dense(3) and mb.Repeat(Dense(5), np.int32(2)) == mb.Repeat(Dense(5), 2)


def test_arguments_by_name():
    x, scale, bias = jnp.arange(6.0).reshape(2, 3), jnp.full(3, 2.0), jnp.ones(3)
    op = mb.ops.layer_norm()
    assert (op(bias=bias, x=x, scale=scale) == op(x, scale, bias)).all()
    assert (op.forward(x, bias=bias, scale=scale)[0] == op(x, scale, bias)).all()
    assert jax.grad(lambda scale: op(x, scale=scale, bias=bias).sum())(scale).shape == (3,)


def test_lists_and_numbers_of_numpy_are_plain_options():
    assert mb.ops.transpose(axes=[1, np.int64(0)]) == mb.ops.transpose(axes=(1, 0))
    assert hash(mb.ops.softmax(axis=[0, 1])) == hash(mb.ops.softmax(axis=(0, 1)))
    assert mb.layers.Conv(4, [3, 3], strides=[2, 1]) == mb.layers.Conv(4, (3, 3), strides=(2, 1))
    assert hash(LayerNorm(eps=np.float32(0.5))) == hash(LayerNorm(eps=0.5))
    op = mb.ops.leaky_relu(negative_slope=np.float32(0.25))
    assert op == mb.ops.leaky_relu(negative_slope=0.25)
    assert op(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
    assert hash(mb.ops.layer_norm(eps=jnp.float32(0.5))) == hash(mb.ops.layer_norm(eps=0.5))


def test_building_a_layer_twice_does_not_recompile():
    compiled = []

    @jax.jit(static_argnums=0)
    def step(objective, params, state, batch):
        compiled.append(objective)
        return mb.value_and_grad(objective)(params, state, batch)

    batch = jnp.ones((7, 5)), jnp.ones((7, 3))
    for _ in range(3):
        objective = mb.Objective(mb.models.mlp(4, 3, activation=mb.ops.gelu()), Apply(mb.ops.squared_error()))
        step(objective, *objective.init(jax.random.key(0), batch), batch)
    assert len(compiled) == 1


def test_applying_an_op_built_twice_does_not_recompile():
    step = jax.jit(lambda op, x: op(x), static_argnums=0)
    for _ in range(3):
        step(mb.ops.leaky_relu(negative_slope=0.2), jnp.ones(3))
    assert step._cache_size() == 1


def test_zero_examples_flow_through_a_layer():
    """An empty batch has an empty output and a zero gradient; only a cost, an average, refuses it."""
    params, state = Dense(3).init(jax.random.key(0), jnp.ones((0, 5)))
    y, _, residuals = Dense(3).forward(params, state, jnp.ones((0, 5)))
    dparams, dx = Dense(3).backward(params, residuals, y)
    assert y.shape == (0, 3) and dx.shape == (0, 5)
    np.testing.assert_array_equal(dparams["w"], np.zeros((5, 3)))


def test_mixed_dtypes_keep_each_arguments_own():
    x, w, b = jnp.ones((7, 5), jnp.bfloat16), jnp.ones((5, 3)), jnp.ones(3, jnp.float16)
    y, residuals = mb.ops.dense().forward(x, w, b)
    assert [d.dtype for d in mb.ops.dense().backward(residuals, y)] == [x.dtype, w.dtype, b.dtype]


def test_leaves_of_pairs_cotangents_with_leaves():
    assert leaves_of((None, {"b": 1, "w": 2}), (3, {"w": 0, "b": 0})) == [None, 1, 2]
