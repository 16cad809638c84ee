"""What the oracle allows is neither too little nor too much: right answers that look wrong, and small mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from cases import OPS
from manual_backprop.testing import check_vjp

CASES = {case.name: case for case in OPS}


def pair_of(function, factor=lambda x: 1.0):
    """A function's own pair, its cotangent times a factor that may depend on x."""

    def backward(x, dy):
        return (jax.vjp(function, x)[1](dy)[0] * factor(x),)

    return (lambda x: (function(x), x)), backward


@pytest.mark.parametrize("seed", range(12))
def test_a_truth_of_zero_is_no_false_alarm(seed):
    """Σ softmax(x) is 1: the gradient is rounding alone, another rounding in each way to write it."""

    def forward(x):
        p = jax.nn.softmax(x)
        return p.sum(-1), p

    x = CASES["tanh"].args(seed)[0]
    pair = forward, lambda p, dy: (p * (dy[:, None] - jnp.sum(dy[:, None] * p, -1, keepdims=True)),)
    report = check_vjp(pair, lambda x: jax.nn.softmax(x).sum(-1), x, seed=seed)
    assert report, str(report)


NASTY = {
    "cancellation": (lambda x: (1 + x) - 1, jnp.linspace(1e-6, 1e-3, 7)),
    "a wide range": (jnp.exp, jnp.linspace(-10, 25, 9)),
    "near a pole": (lambda x: 1 / (x - 1), 1 + jnp.logspace(-5, 0, 7)),
    "tiny": (jnp.square, jnp.full((5,), 1e-18)),
    "huge": (jnp.square, jnp.full((5,), 1e18)),
    "a kink at a sample point": (lambda x: jnp.clip(x, -1, 1), jnp.linspace(-2, 2, 9)),
    "ties": (lambda x: jnp.max(x, -1), jnp.array([[1.0, 1.0, 0.5], [2.0, 3.0, 3.0]])),
    "beyond float16": (jnp.exp, jnp.array([12.0, 1.0], jnp.float16)),
    "beyond float32": (jnp.exp, jnp.array([90.0, 1.0])),
    "constant": (lambda x: x * 0 + 3, jnp.ones(4)),
    "infinite slope": (jnp.sqrt, jnp.array([0.0, 1.0, 4.0])),
    "an ill-conditioned solve": (
        lambda x: jnp.linalg.solve(jnp.vander(x, increasing=True), jnp.ones(5)),
        jnp.linspace(0.5, 1.5, 5),
    ),
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_but_right(name):
    function, x = NASTY[name]
    report = check_vjp(pair_of(function), function, x)
    assert report, str(report)


def test_a_kink_is_said_and_either_side_is_right():
    x = jnp.linspace(-2, 2, 9)  # holds -1 and 1
    clip = lambda x: jnp.clip(x, -1, 1)
    for inside in (lambda x: abs(x) <= 1, lambda x: abs(x) < 1):
        report = check_vjp((lambda x: (clip(x), x), lambda x, dy, i=inside: (dy * i(x),)), clip, x)
        assert report and "2 at a kink" in str(report)
    for wrong in (lambda x, dy: (dy,), lambda x, dy: (1.5 * dy * (abs(x) <= 1),), lambda x, dy: (-dy * (abs(x) <= 1),)):
        assert not check_vjp((lambda x: (clip(x), x), wrong), clip, x)


@pytest.mark.parametrize("seed", range(4))
def test_a_kink_at_zero_is_a_kink(seed):
    x = jnp.array([0.0, 1.0, -1.0, 0.0])
    assert check_vjp(mb.ops.relu(), lambda x: jnp.maximum(x, 0), x, seed=seed)
    assert check_vjp((lambda x: (abs(x), x), lambda x, dy: (dy * jnp.sign(x),)), jnp.abs, x, seed=seed)
    assert not check_vjp(
        (lambda x: (abs(x), x), lambda x, dy: (dy * jnp.where(x < 0, -1, 1.5),)), jnp.abs, x, seed=seed
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_winner_of_a_tie_may_take_all(seed):
    x = jnp.array([1.0, 3.0, 3.0, 0.0])
    first = (lambda x: (jnp.max(x), x)), lambda x, dy: (dy * jax.nn.one_hot(jnp.argmax(x), 4),)
    assert check_vjp(first, jnp.max, x, seed=seed)


@pytest.mark.parametrize(
    ("function", "x", "factor"),
    [
        (jnp.exp, jnp.linspace(-10, 25, 9), lambda x: (x >= 0) * 1.0),
        (lambda x: x**3, jnp.logspace(-6, 0, 7), lambda x: (x > 1e-4) * 1.0),
        (jnp.tanh, jnp.linspace(-3, 3, 101), lambda x: 1 + 1e-9),
        (jnp.tanh, jnp.linspace(-3, 3, 101), lambda x: jnp.where(x == x[50], 0.999999, 1.0)),
    ],
    ids=["small entries of a wide range", "an entry below 1e-8", "all off by 1e-9", "one entry off by 1e-6"],
)
def test_small_mistakes_do_not_hide_behind_large_entries(function, x, factor):
    assert check_vjp(pair_of(function), function, x)
    assert not check_vjp(pair_of(function, factor), function, x)


@pytest.mark.parametrize(("off", "right"), [(1.0, True), (1.05, False)])
def test_a_kernel_that_computes_in_bfloat16_is_judged_by_what_autodiff_errs_there(off, right):
    def forward(x):
        y = jnp.tanh(x.astype(jnp.bfloat16))
        return y, y

    def backward(y, dy):
        return ((dy * (1 - y.astype(jnp.float32) ** 2) * off).astype(jnp.bfloat16),)

    x = jnp.linspace(-1, 1, 64).astype(jnp.bfloat16)
    assert bool(check_vjp((forward, backward), jnp.tanh, x)) == right


def test_a_float32_leaf_beside_a_bfloat16_one_is_judged_as_float32():
    x, w = jnp.asarray(np.random.default_rng(0).standard_normal((7, 5)), jnp.bfloat16), CASES["dense"].args()[1]
    reference = lambda x, w: x.astype(jnp.float32) @ w
    forward = lambda x, w: (reference(x, w), (x, w))

    def backward(r, dy, off=1.0):
        return (dy @ r[1].T).astype(jnp.bfloat16), r[0].astype(jnp.float32).T @ dy * off

    assert check_vjp((forward, backward), reference, x, w)
    report = check_vjp((forward, lambda r, dy: backward(r, dy, 1.001)), reference, x, w)
    assert "dw" in {finding.leaf for finding in report.failures if finding.property == "gradient in their own dtypes"}


def test_a_wider_primal_than_the_references_is_no_mistake_and_a_narrower_one_is():
    logits, labels = CASES["softmax_cross_entropy, integers"].args(dtype="bfloat16")
    reference = CASES["softmax_cross_entropy, integers"].reference
    op = mb.ops.softmax_cross_entropy()
    for candidate in (op, lambda z, t: op(z, t)):
        report = check_vjp(candidate, reference, logits, labels)
        assert report, str(report)
    narrow = (lambda x: ((x * x).astype(jnp.bfloat16), x)), lambda x, dy: (2 * x * dy.astype(jnp.float32),)
    assert "got bfloat16[7, 5], expected float32[7, 5]" in str(check_vjp(narrow, jnp.square, *CASES["tanh"].args()))


def test_a_primal_of_another_structure_is_a_mistake():
    x = CASES["tanh"].args()[0]
    pair = (lambda x: ({"y": x * x}, x)), lambda x, dy: (2 * x * dy["y"],)
    assert "got {'y': float32[7, 5]}, expected a tuple of float32[7, 5]" in str(check_vjp(pair, lambda x: (x * x,), x))
    as_a_list = (lambda x: ([x * x], x)), lambda x, dy: (2 * x * dy[0],)
    assert check_vjp(as_a_list, lambda x: (x * x,), x)  # which sequence it is, is no matter of gradients


def test_the_state_of_a_layer_has_no_cotangent_whatever_its_dtype():
    class Running(mb.Layer):
        def forward(self, params, state, x, key=None):
            return x - state, 0.9 * state + 0.1 * x.mean(0), ()

        def backward(self, params, residuals, dy):
            return {}, dy

        def __repr__(self):
            return "Running()"

    report = check_vjp(Running(), lambda p, s, x: x - s, {}, jnp.ones(5), CASES["tanh"].args()[0])
    assert report, str(report)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_where_autodiff_says_nan_the_slope_counts_whichever_side_has_values(sign):
    """exp(-1/x) is flat at zero from the right, infinite from the left, and its mirror image; autodiff says nan there."""

    def function(x):
        return jnp.where(x == 0, 0.0, jnp.exp(-sign / x))

    def backward(x, dy):
        safe = jnp.where(x == 0, sign, x)
        return (dy * jnp.where(x == 0, 0.0, sign * jnp.exp(-sign / safe) / safe**2),)

    x = sign * jnp.array([0.0, 0.5, 1.5, 2.0])
    assert jnp.isnan(jax.grad(lambda x: function(x).sum())(x)[0])
    report = check_vjp((lambda x: (function(x), x), backward), function, x, order=1)
    assert report, str(report)
    off = lambda x, dy: (backward(x, dy)[0] + (x == 0) * dy,)
    assert not check_vjp((lambda x: (function(x), x), off), function, x, order=1)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_infinite_slope_is_no_finite_one_whichever_side_it_is_on(sign):
    function = lambda x: jnp.where(sign * x > 0, jnp.sqrt(jnp.where(x == 0, 0.0, jnp.abs(x))), 0 * jnp.sqrt(jnp.abs(x)))
    x = jnp.array([0.0, 0.5, -1.5])
    assert jnp.isnan(jax.grad(lambda x: function(x).sum())(x)[0])
    right = lambda x, dy: (dy * jnp.where(sign * x > 0, sign / (2 * jnp.sqrt(jnp.maximum(jnp.abs(x), 1e-9))), 0.0),)
    assert not check_vjp((lambda x: (function(x), x), right), function, x, order=1)


def test_float0_is_none():
    def backward(r, dy):
        dlogits, _ = mb.ops.softmax_cross_entropy().backward(r, dy)
        return dlogits, np.zeros(r.labels.shape, jax.dtypes.float0)

    case = CASES["softmax_cross_entropy, integers"]
    report = check_vjp((case.unit.forward, backward), case.reference, *case.args())
    assert [finding.leaf for finding in report.failures if finding.property != "runs"] == [], str(report)


def test_an_op_as_reference_does_not_judge_itself():
    @mb.op
    def wrong_tanh():
        return mb.ops.tanh().forward, lambda r, dy: (dy * (1 - r.y),)

    x = CASES["tanh"].args()[0]
    assert not check_vjp(wrong_tanh(), wrong_tanh(), x)
    assert check_vjp(mb.ops.tanh(), mb.ops.tanh(), x)
    assert check_vjp(mb.ops.tanh, jnp.tanh, x)  # the constructor stands for the op
