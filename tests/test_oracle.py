"""The oracle catches what is wrong, passes what is right, and says which leaf."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from cases import OPS, Case
from manual_backprop.layers import Dense
from manual_backprop.testing import Program, assert_vjp_matches, check_vjp, compare, gradient_difference

CASES = {case.name: case for case in OPS}


# Mistakes that people make. Each is (case, backward with the mistake, the leaves that are wrong).
MISTAKES = {
    "dense: x forgotten in dw": ("dense", lambda r, dy: (dy @ r.w.T, jnp.ones_like(r.x).T @ dy, dy.sum(0)), ["dw"]),
    "dense: w twice the wrong way": ("dense", lambda r, dy: (2 * dy @ r.w.T, r.x.T @ dy, dy.sum(0)), ["dx"]),
    "dense: bias averaged, not summed": ("dense", lambda r, dy: (dy @ r.w.T, r.x.T @ dy, dy.mean(0)), ["db"]),
    "dense: one example left out": ("dense", lambda r, dy: (dy @ r.w.T, r.x[1:].T @ dy[1:], dy.sum(0)), ["dw"]),
    "dense: an axis of examples not summed": (
        "dense, two leading axes",
        lambda r, dy: (dy @ r.w.T, r.x[0].T @ dy[0], dy.sum((0, 1))),
        ["dw"],
    ),
    "sigmoid: y (1 + y)": ("sigmoid", lambda r, dy: (dy * r.y * (1 + r.y),), ["dx"]),
    "sigmoid: dy forgotten": ("sigmoid", lambda r, dy: (r.y * (1 - r.y),), ["dx"]),
    "tanh: 1 - y": ("tanh", lambda r, dy: (dy * (1 - r.y),), ["dx"]),
    "tanh: off by 1e-6": ("tanh", lambda r, dy: (dy * (1 - r.y**2) * (1 + 1e-6),), ["dx"]),
    "relu: a slope of -1": ("relu", lambda r, dy: (jnp.where(r.passes, dy, -dy),), ["dx"]),
    "leaky_relu: another slope": ("leaky_relu", lambda r, dy: (jnp.where(r.passes, dy, 0.02 * dy),), ["dx"]),
    "softplus: e^x": ("softplus", lambda r, dy: (dy * jnp.exp(r.x),), ["dx"]),
    "silu: the second path left out": ("silu", lambda r, dy: (dy * jax.nn.sigmoid(r.x),), ["dx"]),
    "gelu: the other gelu's derivative": (
        "gelu",
        lambda r, dy: mb.ops.gelu(approximate=False).backward(r, dy),
        ["dx"],
    ),
    "layer_norm: the path through the mean": (
        "layer_norm",
        lambda r, dy: without_mean_path(r, dy),
        ["dx"],
    ),
    "squared_error: the 2": (
        "squared_error",
        lambda r, dy: (dy * (r.prediction - r.target) / 7, -dy * 2 * (r.prediction - r.target) / 7),
        ["dprediction"],
    ),
    "squared_error: not averaged": (
        "squared_error",
        lambda r, dy: (dy * 2 * (r.prediction - r.target), -dy * 2 * (r.prediction - r.target)),
        ["dprediction", "dtarget"],
    ),
    "squared_error: the target's sign": (
        "squared_error",
        lambda r, dy: (dy * 2 * (r.prediction - r.target) / 7, dy * 2 * (r.prediction - r.target) / 7),
        ["dtarget"],
    ),
    "cross-entropy: the label not subtracted": (
        "softmax_cross_entropy, integers",
        lambda r, dy: (dy * jnp.exp(r.logits - r.m - r.s) / 7, None),
        ["dlogits"],
    ),
    "cross-entropy: averaged over classes too": (
        "softmax_cross_entropy, integers",
        lambda r, dy: (mb.ops.softmax_cross_entropy().backward(r, dy)[0] / 5, None),
        ["dlogits"],
    ),
    "cross-entropy: rows taken to sum to 1": (
        "softmax_cross_entropy, rows",
        lambda r, dy: (dy * (jnp.exp(r.logits - r.m - r.s) - r.labels) / 7, dy * (r.m + r.s - r.logits) / 7),
        ["dlogits"],
    ),
}


def without_mean_path(r, dy):
    dx, dscale, dbias = mb.ops.layer_norm().backward(r, dy)
    return dx + r.rstd * jnp.mean(dy * r.scale, -1, keepdims=True), dscale, dbias


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_caught_and_its_leaf_named(name):
    case_name, backward, wrong = MISTAKES[name]
    case: Case = CASES[case_name]
    report = check_vjp((case.unit.forward, backward), case.reference, *case.args())
    assert not report and not report.ok
    assert report.primal_ok
    assert sorted({finding.leaf for finding in report.failures}) == sorted(wrong)
    worst = report.failures[0]
    assert worst.wrong > 0 and worst.error > worst.allowed
    for fact in (
        worst.leaf,
        str(list(worst.worst)),
        f"{worst.got:.6g}",
        f"{worst.expected:.6g}",
        f"{worst.allowed:.1e}",
    ):
        assert fact in str(report)


def test_the_same_backward_without_the_mistake_passes():
    """The mistakes above are mistakes, not the way they are written."""
    case = CASES["dense"]
    report = check_vjp(
        (case.unit.forward, lambda r, dy: (dy @ r.w.T, r.x.T @ dy, dy.sum(0))), case.reference, *case.args()
    )
    assert report, str(report)


def test_every_leaf_is_listed_with_shape_dtype_error_and_allowance():
    case = CASES["layer_norm"]
    report = check_vjp(case.unit, case.reference, *case.args(), seed=3)
    leaves = [finding for finding in report.findings if finding.leaf != "cotangents"]
    assert {finding.leaf for finding in leaves} == {"y", "dx", "dscale", "dbias"}
    assert {finding.property for finding in leaves} == {
        "primal in float32", "gradient in float32", "jit = eager", "primal in float64", "gradient in float64",
    }  # fmt: skip
    assert {finding.property for finding in report.findings if finding.leaf == "cotangents"} == {
        "other arguments", "linear in the cotangent", "deterministic", "adjoint identity", "pure", "vmap", "scan",
        "sharded", "leaked tracer", "derivative of order 2",
    }  # fmt: skip
    for finding in leaves:
        assert re.fullmatch(
            r"ok   \w+ +[\w =,]+ float\d\d\[.*\]  error \S+, allowed \S+; worst at \[.*\]: got \S+, expected \S+",
            str(finding),
        )
    assert "seed=3" in str(report)


def test_a_random_cotangent_sees_what_a_sum_hides():
    """Why the cotangent is random: for ones (and a scale of ones) every term of a layer norm's dx is nothing."""
    case = CASES["layer_norm"]
    x, scale, bias = case.args()
    scale = jnp.ones_like(scale)

    def without_rstd_path(r, dy):
        _, dscale, dbias = case.unit.backward(r, dy)
        g = dy * r.scale
        return r.rstd * (g - jnp.mean(g, -1, keepdims=True)), dscale, dbias

    y, residuals = case.unit.forward(x, scale, bias)
    ones = jnp.ones_like(y)
    np.testing.assert_allclose(without_rstd_path(residuals, ones)[0], case.unit.backward(residuals, ones)[0], atol=1e-5)
    assert not check_vjp((case.unit.forward, without_rstd_path), case.reference, x, scale, bias)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_right_backward_passes_in_every_precision(dtype):
    with jax.enable_x64(dtype == "float64"):
        for name in ("layer_norm", "gelu, erf", "softmax_cross_entropy, rows"):
            report = check_vjp(CASES[name].unit, CASES[name].reference, *CASES[name].args(dtype=dtype))
            assert report, str(report)


def test_an_error_of_1e_4_in_float32_does_not_hide_in_a_kernel_that_has_no_float64():
    def backward(residuals, dy):
        return (mb.ops.tanh().backward(residuals, dy)[0].astype(jnp.float32) * (1 + 1e-4),)

    def forward(x):
        y, residuals = mb.ops.tanh().forward(x.astype(jnp.float32))
        return y, residuals

    args = CASES["tanh"].args()
    report = check_vjp((forward, backward), jnp.tanh, *args)
    assert {(finding.leaf, finding.property) for finding in report.failures} == {("dx", "gradient in float32")}
    right = check_vjp((forward, lambda r, dy: mb.ops.tanh().backward(r, dy)), jnp.tanh, *args)
    assert right and "judged in its own precision alone" in str(right)
    cast_up = forward, lambda r, dy: (mb.ops.tanh().backward(r, dy)[0].astype(dy.dtype),)
    assert check_vjp(cast_up, jnp.tanh, *args)


def test_a_constant_written_with_eight_digits_is_caught():
    """In float32 it is right; in float64 its primal is off by 1e-8, and that is no rounding."""
    gelu = lambda x: 0.5 * x * (1 + jnp.tanh(0.79788456 * (x + 0.044715 * x**3)))
    report = check_vjp(gelu, jax.nn.gelu, *CASES["gelu"].args())
    assert {finding.property for finding in report.failures} == {"primal in float64", "gradient in float64"}


def test_one_leaf_that_is_rounded_does_not_hide_another():
    def backward(r, dy):
        dx, dw, db = mb.ops.dense().backward(r, dy)
        return dx * (1 + 1e-8), dw, db.astype(jnp.float32)

    case = CASES["dense"]
    report = check_vjp((mb.ops.dense().forward, backward), case.reference, *case.args())
    assert {(finding.leaf, finding.property) for finding in report.failures} == {("dx", "gradient in float64")}
    blind = [finding for finding in report.findings if finding.property == "float64"]
    assert [finding.leaf for finding in blind] == ["db"] and "answers in float32" in blind[0].detail


def test_candidates_of_every_kind():
    x, w, b = CASES["dense"].args()
    reference = CASES["dense"].reference
    op = mb.ops.dense()
    custom = jax.custom_vjp(lambda x, w, b: x @ w + b)
    custom.defvjp(op.forward, op.backward)
    for candidate in (op, (op.forward, op.backward), custom, jax.jit(custom), reference):
        assert check_vjp(candidate, reference, x, w, b)
        assert check_vjp(candidate, None, x, w, b)
    layer = Dense(3)
    assert check_vjp(layer, lambda p, s, x: x @ p["w"] + p["b"], {"w": w, "b": b}, (), x)
    assert not check_vjp(layer, lambda p, s, x: x @ p["w"] - p["b"], {"w": w, "b": b}, (), x)


def test_pytrees_integers_and_zero_size():
    def function(p, index, empty):
        return {"rows": p["table"][index] * p["scale"], "sum": jnp.sum(empty) + p["scale"]}

    p = {"table": jnp.arange(15.0).reshape(5, 3), "scale": jnp.array(2.0)}
    report = check_vjp(function, function, p, jnp.array([1, 1, 4]), jnp.zeros((0, 2)))
    assert report, str(report)
    leaves = {finding.leaf for finding in report.findings} - {"cotangents"}
    assert leaves == {"y[0]", "y[1]", "dp['table']", "dp['scale']", "dempty"}


def test_complex_arguments():
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.standard_normal((5, 3)) + 1j * rng.standard_normal((5, 3)), jnp.complex64)
    assert check_vjp(lambda z: jnp.exp(z) * z, lambda z: z * jnp.exp(z), z)
    assert not check_vjp(lambda z: jnp.exp(z) * z, lambda z: z * jnp.exp(1.001 * z), z)


def square(x):
    return x * x, x


BROKEN = {
    "raises": (square, lambda x, dy: 1 / 0, "ZeroDivisionError"),
    "a bare array": (square, lambda x, dy: 2 * x * dy, "got float32[7, 5], expected a tuple of 1"),
    "two cotangents": (square, lambda x, dy: (2 * x * dy, dy), "got a tuple of 2, expected a tuple of 1"),
    "None": (square, lambda x, dy: (None,), "cotangent is zero: dx is zero everywhere"),  # what None means to JAX
    "a string": (square, lambda x, dy: ("dx",), "got str 'dx', expected float32[7, 5]"),
    "a scalar": (square, lambda x, dy: (2.0,), "got float 2.0, expected float32[7, 5]"),
    "transposed": (square, lambda x, dy: ((2 * x * dy).T,), "got float32[5, 7], expected float32[7, 5]"),
    "another dtype": (square, lambda x, dy: ((2 * x * dy).astype(jnp.bfloat16),), "got bfloat16[7, 5]"),
    "a dict": (square, lambda x, dy: ({"x": 2 * x * dy},), "got {'x': float32[7, 5]}, expected float32[7, 5]"),
    "no pair from forward": (lambda x: x * x, lambda x, dy: (dy,), "raised"),
    "a value looked at": (square, lambda x, dy: (2 * x * dy if float(x[0, 0]) else dy,), "raised ConcretizationTypeError"),
    "another primal": (lambda x: (x * x + 1, x), lambda x, dy: (2 * x * dy,), "primal in float32"),
    "another output shape": (lambda x: (x[:3] * x[:3], x), lambda x, dy: (2 * x * dy,), "got float32[3, 5], expected float32[7, 5]"),
    "NaN": (square, lambda x, dy: (jnp.where(x > 1, jnp.nan, 2 * x * dy),), "error inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_candidate_is_a_verdict_not_a_crash(name):
    forward, backward, message = BROKEN[name]
    report = check_vjp((forward, backward), jnp.square, *CASES["tanh"].args())
    assert not report
    assert message in str(report)


def test_values_that_differ_under_jit_are_caught():
    def backward(x, dy):
        return (2 * x * dy * (1.0 if isinstance(x, jax.core.Tracer) else 1.1),)

    report = check_vjp((square, backward), jnp.square, *CASES["tanh"].args())
    assert "jit = eager" in {finding.property for finding in report.failures}


@pytest.mark.parametrize(
    ("candidate", "reference", "args", "message"),
    [
        ("dense", jnp.square, (jnp.ones(3),), "the candidate is 'dense'"),
        (jnp.square, jnp.square, (jnp.arange(3),), "no argument is of a floating dtype"),
        (jnp.square, lambda x: jnp.argmax(x), (jnp.ones(3),), "the reference returns int32"),
        (jnp.square, Dense(3), (jnp.ones(3),), "the reference is Dense"),
        (jnp.square, jnp.square, ("one",), "an argument is 'one'; wants arrays"),
    ],
    ids=["candidate", "integers", "reference", "layer", "text"],
)
def test_what_cannot_be_judged_is_one_line(candidate, reference, args, message):
    with pytest.raises(mb.InputError, match=message) as raised:
        check_vjp(candidate, reference, *args)
    assert "\n" not in str(raised.value)


def test_a_negative_seed_is_one_line():
    with pytest.raises(mb.InputError, match="seed is -1; wants a whole number, at least 0"):
        check_vjp(jnp.square, jnp.square, jnp.ones(3), seed=-1)


def test_arguments_that_do_not_fit_the_reference():
    report = check_vjp(mb.ops.dense(), CASES["dense"].reference, jnp.ones((7, 4)), jnp.ones((5, 3)), jnp.ones(3))
    assert not report and report.failures[0].leaf == "reference"
    assert len(str(report).splitlines()) == 2


def test_assert_vjp_matches_raises_with_the_report():
    case = CASES["tanh"]
    assert_vjp_matches(case.unit, case.reference, *case.args())
    with pytest.raises(AssertionError, match="FAIL dx"):
        assert_vjp_matches(mb.ops.sigmoid(), case.reference, *case.args())


def test_global_configuration_stays_as_it_was():
    before = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    check_vjp(mb.ops.tanh(), jnp.tanh, *CASES["tanh"].args())
    check_vjp((square, lambda x, dy: 1 / 0), jnp.square, *CASES["tanh"].args())
    assert (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision) == before
    assert jnp.ones(1).dtype == jnp.float32


def test_the_same_seed_gives_the_same_report():
    case = CASES["gelu"]
    reports = [str(check_vjp(case.unit, case.reference, *case.args(), seed=seed)) for seed in (0, 0, 1)]
    assert reports[0] == reports[1] != reports[2]


def test_gradient_difference_is_the_largest_relative_one():
    objective = mb.Objective(mb.models.mlp(3, 2), mb.layers.Apply(mb.ops.squared_error()))
    batch = jnp.ones((4, 5)), jnp.zeros((4, 2))
    params, state = objective.init(jax.random.key(0), batch)

    def reference(params, batch, factor=1.0):
        return factor * objective.apply(params, state, batch)

    assert gradient_difference(objective, reference, params, state, batch) < 1e-14
    off = gradient_difference(objective, lambda p, b: reference(p, b, 1.01), params, state, batch)
    np.testing.assert_allclose(off, 0.01 / 1.01, rtol=1e-6)


def test_compare_measures_both_sides():
    x = jnp.ones((256, 256))
    heavy = Program(lambda x: sum((x + i) @ x for i in range(16)), (x,))
    light = Program(lambda x: x + 1, (x,))
    result = compare(heavy, light, rounds=5, tracing_rounds=1)
    assert result.step_time_ratio > 2 and result.trace_ratio > 1
    assert result.ours.temp_bytes > result.peer.temp_bytes
    assert compare(light, light, rounds=3).temp_memory_ratio == 1.0
    counting = Program(lambda state: (state + 1, state), (jnp.zeros(()),), donate=True)
    assert np.isnan(compare(counting, counting, rounds=3).trace_ratio)
