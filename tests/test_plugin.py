"""The pytest plugin, as a user meets it: in a folder of their own, with a test of their own."""

import subprocess
import sys

import pytest

TESTS = """
import jax, jax.numpy as jnp

def forward(x):
    y = jnp.tanh(x)
    return y, y

right = forward, lambda y, dy: (dy * (1 - y * y),)
wrong = forward, lambda y, dy: (dy * (1 - y),)
x = jnp.linspace(-2.0, 2.0, 7)

def test_right(check_vjp):
    assert check_vjp(right, jnp.tanh, x)

def test_wrong_and_asserted(check_vjp):
    assert check_vjp(wrong, jnp.tanh, x)

def test_wrong_and_not_looked_at(check_vjp):
    check_vjp(wrong, jnp.tanh, x)

def test_wrong_as_expected(check_vjp):
    report = check_vjp(wrong, jnp.tanh, x)
    assert not report and report.seed == 5

def test_nothing_is_changed(check_vjp):
    check_vjp(right, jnp.tanh, x)
    assert jnp.ones(1).dtype == jnp.float32 and jax.config.jax_default_matmul_precision is None
"""


@pytest.fixture(scope="module", params=[[], ["-n", "2"]], ids=["one process", "xdist"])
def outcome(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "test_of_a_user.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--grad-seed=5", "--grad-effort=quick"]
    done = subprocess.run([*command, *request.param, "."], cwd=folder, capture_output=True, text=True, timeout=300)
    return done.stdout


def test_wrong_gradients_fail_unless_the_test_expects_them(outcome):
    assert "2 failed, 3 passed" in outcome, outcome
    for name in ("test_wrong_and_asserted", "test_wrong_and_not_looked_at"):
        assert f"FAILED test_of_a_user.py::{name}" in outcome


def test_a_failure_shows_the_report(outcome):
    for name in ("test_wrong_and_asserted", "test_wrong_and_not_looked_at"):
        section = outcome.split(f"_ {name} _")[1].split("\n____")[0]
        assert "FAIL dx" in section and "diagnosis: " in section and "seed=5" in section


def test_help_names_the_options():
    done = subprocess.run([sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, timeout=120)
    assert "--grad-seed" in done.stdout and "--grad-effort" in done.stdout
