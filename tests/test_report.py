"""What a report says of a failure: the cause, the smallest arguments, the line that runs it again, JSON, a picture."""

import json
import re

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.testing import check_vjp

X = jnp.asarray(np.random.default_rng(0).standard_normal((7, 5)), jnp.float32)


def norm(x):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5)


def without_variance():
    def forward(x):
        return norm(x), 1 / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    return forward, lambda rstd, dy: (rstd * (dy - dy.mean(-1, keepdims=True)),)


def pair(function, backward):
    return (lambda *args: (function(*args), args)), lambda args, dy: backward(*args, dy)


def test_a_value_held_constant_is_named_with_its_line():
    report = check_vjp(without_variance(), norm, X)
    line = norm.__code__.co_firstlineno + 2
    said = f"equals the gradient with `var = ((x - mean) ** 2).mean(-1, keepdims=True)` (test_report.py:{line}) held constant"
    assert any(said in text and "sure" in text for text in report.diagnosis), report.diagnosis


CAUSES = {
    "a factor": (lambda x, dy: (3 * dy * jnp.cos(x),), "constant factor 3: dx"),
    "one over an axis": (lambda x, dy: (dy * jnp.cos(x) / 7,), "1/7, the size of axis 0 of dy"),
    "a sign": (lambda x, dy: (-dy * jnp.cos(x),), "the sign is flipped"),
    "nothing": (lambda x, dy: (0 * x,), "cotangent is zero"),
    "dy ignored": (lambda x, dy: (jnp.cos(x),), "cotangent ignored"),
    "clipped": (lambda x, dy: (jnp.clip(dy * jnp.cos(x), -0.5, 0.5),), "clipped, its entries end at 0.5"),
    "backwards": (lambda x, dy: ((dy * jnp.cos(x))[::-1],), "reversed: dx is the right one backwards along axis 0"),
    "shifted": (
        lambda x, dy: (jnp.roll(dy * jnp.cos(x), 1, 1),),
        "shifted (off by one): dx is the right one moved by 1",
    ),
    "one row": (lambda x, dy: ((dy * jnp.cos(x)).at[3].set(0),), "index 3"),
    "where negative": (lambda x, dy: (jnp.where(x < 0, 0, dy * jnp.cos(x)),), "entries where x < 0 and is zero there"),
    "once too often": (lambda x, dy: (dy * jnp.cos(x) * x,), "is multiplied once more by `x`"),
    "a term more": (lambda x, dy: (dy * jnp.cos(x) + dy,), "a term is added"),
    "another function": (lambda x, dy: (dy * jnp.exp(jnp.sin(3 * x)),), "no simple explanation"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_simple_cause_is_named(name):
    backward, said = CAUSES[name]
    report = check_vjp(pair(jnp.sin, backward), jnp.sin, X)
    assert not report and any(said in text for text in report.diagnosis), report.diagnosis


def test_an_edit_that_would_make_it_right_is_named():
    report = check_vjp(pair(jnp.tanh, lambda x, dy: (dy * (1 + jnp.tanh(x) ** 2),)), jnp.tanh, X)
    assert any("one edit away" in text and "a sign is flipped" in text for text in report.diagnosis)
    assert any("test_report.py:" in text for text in report.diagnosis)


def test_a_sum_that_is_missing_is_named_from_the_shape():
    report = check_vjp(pair(lambda x, b: x + b, lambda x, b, dy: (dy, dy)), lambda x, b: x + b, X, X[0])
    assert "shape" in str(report) and any("sum missing over axis 0" in text for text in report.diagnosis)


def test_swapped_arguments_are_named():
    report = check_vjp(pair(lambda a, b: a * b, lambda a, b, dy: (dy * a, dy * b)), lambda a, b: a * b, X, X[::-1])
    assert any("swapped arguments: da is the cotangent of b, and the other way round" in t for t in report.diagnosis)


def test_repeated_indices_that_are_set_are_named():
    def backward(table, ids, dy):
        return jnp.zeros_like(table).at[ids].set(dy), None

    take = lambda table, ids: table[ids]
    report = check_vjp(pair(take, backward), take, X, jnp.array([1, 1, 4, 0, 1]))
    assert any("not accumulated: dtable is set" in text for text in report.diagnosis)


def test_the_arguments_shrink_and_run_again():
    wrong = pair(jnp.sin, lambda x, dy: (jnp.where(x > 0.5, 0, dy * jnp.cos(x)),))
    report = check_vjp(wrong, jnp.sin, X)
    shape = re.match(r"x = float32\[(\d+), (\d+)\]", report.smallest)
    assert int(shape[1]) * int(shape[2]) <= 6
    names = {"check_vjp": check_vjp, "jnp": jnp, "sin": jnp.sin, "wrong": wrong}
    candidate = re.match(r"check_vjp\((.*?), sin, ", report.again)[1]
    again = eval(report.again.replace(candidate, "wrong", 1), names)
    assert not again and not again.gradient_ok


def test_what_fails_elsewhere_says_where():
    wrong = pair(jnp.sin, lambda x, dy: (jnp.where(jnp.abs(x) > 20, 0, dy * jnp.cos(x)),))
    report = check_vjp(wrong, jnp.sin, X)
    assert report.failures[0].arguments.startswith(("× 30", "over a wide range", "× 10000"))
    assert report.diagnosis[0].startswith("right as given, wrong on arguments")


def test_json_holds_the_whole_report():
    report = check_vjp(pair(jnp.sin, lambda x, dy: (jnp.where(x > 1, jnp.nan, dy * jnp.cos(x)),)), jnp.sin, X)
    facts = json.loads(report.to_json())
    assert facts["ok"] is False and facts["seed"] == 0 and facts["diagnosis"] == list(report.diagnosis)
    assert len(facts["findings"]) == len(report.findings)
    wrong = next(finding for finding in facts["findings"] if not finding["ok"])
    assert wrong["leaf"] == "dx" and wrong["got"] == "nan" and wrong["arguments"] == "as given"
    assert json.loads(check_vjp(mb.ops.tanh(), jnp.tanh, X, effort="quick").to_json())["ok"] is True


def test_a_heat_map_shows_where(tmp_path):
    report = check_vjp(pair(jnp.sin, lambda x, dy: ((dy * jnp.cos(x)).at[3].set(0),)), jnp.sin, X)
    report.heat_map(tmp_path / "errors.png")
    pixels = matplotlib.image.imread(tmp_path / "errors.png")
    assert pixels.shape[0] > 300 and len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20
    with pytest.raises(mb.InputError, match="no leaf has wrong values"):
        check_vjp(mb.ops.tanh(), jnp.tanh, X, effort="quick").heat_map(tmp_path / "none.png")


def test_a_right_gradient_needs_no_explanation():
    report = check_vjp(mb.ops.tanh(), jnp.tanh, X, effort="quick")
    assert report.diagnosis == () and report.smallest == "" and report.errors == ()


def test_of_a_layer_too():
    class Wrong(mb.layers.Dense):
        def backward(self, params, residuals, dy):
            dparams, dx = super().backward(params, residuals, dy)
            return dparams, 2 * dx

    layer = Wrong(3)
    params, state = layer.init(jax.random.key(0), X)
    report = check_vjp(layer, lambda p, s, x: x @ p["w"] + p["b"], params, state, X)
    assert {finding.leaf for finding in report.failures} == {"dx"} and "constant factor 2" in report.diagnosis[0]
