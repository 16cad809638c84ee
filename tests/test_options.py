"""What a caller can ask of `check_vjp`, and what it answers to questions that make no sense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import manual_backprop as mb
from manual_backprop.testing import assert_vjp_matches, check_vjp

X = jnp.asarray(np.random.default_rng(0).standard_normal((7, 5)), jnp.float32)


def pair(function, backward):
    return (lambda *args: (function(*args), args)), lambda args, dy: backward(*args, dy)


times = lambda a, b: a * b
wrong_in_b = pair(times, lambda a, b, dy: (dy * b, 2 * dy * a))


def test_argnums_chooses_the_arguments_to_judge():
    for argnums, right in ((0, True), ((0,), True), (-2, True), (1, False), ((0, 1), False), (None, False)):
        assert bool(check_vjp(wrong_in_b, times, X, X[::-1], argnums=argnums, effort="quick")) == right


def first_derivative_alone():
    """Right once, wrong twice: the residual is cut off from x."""
    return pair(jnp.tanh, lambda x, dy: (dy * (1 - jax.lax.stop_gradient(jnp.tanh(x)) ** 2),))


def test_order_says_which_derivatives_are_claimed():
    report = check_vjp(first_derivative_alone(), jnp.tanh, X)
    assert not report.second_derivative_ok and report.gradient_ok and report.primal_ok
    assert "derivative of order 2 is wrong" in report.diagnosis[0]
    assert check_vjp(first_derivative_alone(), jnp.tanh, X, order=1)
    assert check_vjp(mb.ops.tanh(), jnp.tanh, X, order=3)


@jax.custom_vjp
def third(x):
    return x**4


third.defvjp(lambda x: (x**4, x), lambda x, dy: (4 * dy * (x**3 + (x - jax.lax.stop_gradient(x)) ** 2),))


def test_a_third_derivative_is_found_wrong_by_order_3_alone():
    assert check_vjp(third, lambda x: x**4, X)
    report = check_vjp(third, lambda x: x**4, X, order=3)
    assert {finding.property for finding in report.failures} == {"derivative of order 3"}


def only_of_even_length(x, dy):
    return (dy * jnp.cos(x) * (0.5 if x.shape[0] in (3, 7, 9) else 1.0),)


def test_sample_draws_other_sizes():
    wrong = pair(jnp.sin, only_of_even_length)
    x = jnp.linspace(-1.0, 1.0, 8)
    draw = lambda seed: (jnp.linspace(-1.0, 1.0, 7 + seed),)  # 8, 9, …
    assert check_vjp(wrong, jnp.sin, X[:6], sample=None, effort="quick")
    report = check_vjp(wrong, jnp.sin, x, sample=draw, effort="quick")
    assert not report and report.failures[0].arguments.startswith("drawn by sample, number ")
    sizes = st.sampled_from([7, 9]).map(lambda n: (np.linspace(-1, 1, n, dtype=np.float32),))
    assert not check_vjp(wrong, jnp.sin, x, sample=sizes)
    assert check_vjp(jnp.sin, jnp.sin, x, sample=sizes)


def test_sample_says_what_is_valid():
    """A candidate for positive numbers alone; the reference knows others too."""
    root = pair(lambda x: x**1.5, lambda x, dy: (1.5 * dy * x**0.5,))
    reference = lambda x: jnp.abs(x) ** 1.5
    x = jnp.linspace(0.5, 2, 7)
    assert not check_vjp(root, reference, x)
    assert check_vjp(root, reference, x, sample=lambda seed: (x + seed,))


def straight_through(x):
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def test_surrogate_gradients_are_accepted_when_they_are_wanted():
    through = pair(jnp.round, lambda x, dy: (dy,))
    assert check_vjp(through, straight_through, X, surrogate=True)
    report = check_vjp(through, straight_through, X)
    assert not report and "surrogate=True" in str(report)
    assert not check_vjp(pair(jnp.round, lambda x, dy: (2 * dy,)), straight_through, X, surrogate=True)


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x)


clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (jnp.clip(dy, -1, 1) * jnp.cos(x),))


def test_a_clipped_gradient_is_accepted_when_it_is_wanted():
    by_hand = pair(jnp.sin, lambda x, dy: (jnp.minimum(jnp.maximum(dy, -1), 1) * jnp.cos(x),))
    assert check_vjp(by_hand, clipped, X, surrogate=True, nonlinear_cotangent=True)
    report = check_vjp(by_hand, clipped, X, surrogate=True)
    assert not report.linear_ok


def test_reference_none_sees_through_the_candidates_own_rule():
    for factor, right in ((1.0, True), (1.1, False)):
        function = jax.custom_vjp(lambda x: jnp.sin(jnp.sin(x)))
        backward = lambda x, dy, c=factor: (c * dy * jnp.cos(jnp.sin(x)) * jnp.cos(x),)
        function.defvjp(lambda x: (jnp.sin(jnp.sin(x)), x), backward)
        for candidate in (function, jax.jit(function), lambda x, f=function: 2 * f(x)):
            assert bool(check_vjp(candidate, None, X, effort="quick")) == right


@pytest.mark.parametrize("effort", ["quick", "normal", "thorough"])
def test_every_effort_finds_it(effort):
    x = jnp.linspace(-1.0, 1.0, 5)
    assert check_vjp(mb.ops.tanh(), jnp.tanh, x, effort=effort)
    assert not check_vjp(mb.ops.sigmoid(), jnp.tanh, x, effort=effort)


def on_host(x):
    return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


def test_numpy_behind_a_callback():
    def backward(y, dy):
        slope = lambda y, dy: dy * (1 - y * y)
        return (jax.pure_callback(slope, jax.ShapeDtypeStruct(y.shape, y.dtype), y, dy, vmap_method="expand_dims"),)

    report = check_vjp((lambda x: (on_host(x), on_host(x)), backward), jnp.tanh, X)
    assert report, str(report)
    assert "JAX has no rule for it" in str(report)  # the second derivative


def test_what_cannot_be_differentiated_is_one_line():
    report = check_vjp(mb.ops.tanh(), on_host, X)
    assert not report and report.failures[0].leaf == "reference"
    assert "when it is differentiated" in str(report) and len(str(report).splitlines()) == 2


def counting():
    calls = []

    def backward(x, dy):
        calls.append(1)
        return (dy * jnp.cos(x) * (1 + 1e-3 * (len(calls) > 2)),)

    return (lambda x: (jnp.sin(x), x)), backward


def test_an_answer_that_changes_from_call_to_call_is_found():
    report = check_vjp(counting(), jnp.sin, X)
    assert not report and not report.deterministic_ok


def test_a_leaked_tracer_is_found():
    kept = []

    def backward(x, dy):
        kept.append(dy)
        return (dy * jnp.cos(x),)

    report = check_vjp((lambda x: (jnp.sin(x), x), backward), jnp.sin, X)
    assert [finding.property for finding in report.failures] == ["leaked tracer"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": "much"}, "effort 'much' is unknown"),
        ({"effort": 3}, "effort is 3; wants one of quick, normal, thorough"),
        ({"order": 0}, "order is 0; wants a whole number, at least 1"),
        ({"order": True}, "order is True; wants"),
        ({"seed": 1.5}, "seed is 1.5; wants a whole number"),
        ({"argnums": 4}, "argnums has 4; wants places of the 1 arguments"),
        ({"argnums": ("x",)}, "argnums has 'x'; wants places"),
        ({"sample": 3}, "sample is 3; wants a function seed -> args"),
        ({"sample": lambda seed: ("x",)}, "an argument is 'x'; wants arrays"),
        ({"sample": lambda seed: (X, X)}, "draw 0 of sample does not fit the reference"),
    ],
)
def test_an_option_of_another_kind_is_one_line(options, message):
    with pytest.raises(mb.InputError, match=message) as raised:
        check_vjp(mb.ops.tanh(), jnp.tanh, X, **{"effort": "quick"} | options)
    assert "\n" not in str(raised.value)


def test_assert_takes_the_same_options():
    assert_vjp_matches(first_derivative_alone(), jnp.tanh, X, order=1, effort="quick", seed=3)
    with pytest.raises(AssertionError, match="derivative of order 2"):
        assert_vjp_matches(first_derivative_alone(), jnp.tanh, X)


def test_the_configuration_stays_as_it_was():
    before = dict(jax.config.values), np.geterr()
    check_vjp(wrong_in_b, times, X, X[::-1]).diagnosis  # noqa: B018
    assert (dict(jax.config.values), np.geterr()) == before
