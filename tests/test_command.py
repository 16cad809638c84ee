"""The console command `manual-backprop`."""

import json
import os
import re
import subprocess
import sys

import pytest

import manual_backprop as mb
from manual_backprop.__main__ import main

MODULE = """
import jax, jax.numpy as jnp, manual_backprop as mb
@jax.custom_vjp
def right(x, w): return jnp.tanh(x @ w)
def forward(x, w): return jnp.tanh(x @ w), (x, w, jnp.tanh(x @ w))
def backward(r, dy): x, w, y = r; dz = dy * (1 - y * y); return dz @ w.T, x.T @ dz
right.defvjp(forward, backward)
@jax.custom_vjp
def wrong(x, w): return jnp.tanh(x @ w)
wrong.defvjp(forward, lambda r, dy: (backward(r, dy)[0], 2 * backward(r, dy)[1]))
def reference(x, w): return jnp.tanh(x @ w)
def pick(x, i): return x[i]
op = mb.ops.gelu()
def interrupted(x): raise KeyboardInterrupt
def careless(f): return f(jnp.ones((7, 5)), jnp.ones((5, 3))).shape == (7, 3)
"""


def run(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "kernels_of_a_user.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_check_passes_a_right_backward(capsys):
    shapes = ["--shapes", "f32[7,5],f32[5,3]"]
    code, out, _ = run(
        ["check", "kernels_of_a_user:right", "--reference", "kernels_of_a_user:reference", *shapes], capsys
    )
    assert code == 0 and "right against reference, seed=0: ok" in out


def test_check_names_the_leaf_of_a_wrong_one(capsys):
    shapes = ["--shapes", "f32[7,5], f32[5,3]", "--seed", "3"]
    code, out, _ = run(
        ["check", "kernels_of_a_user:wrong", "--reference", "kernels_of_a_user:reference", *shapes], capsys
    )
    assert code == 1 and re.search(r"FAIL dw +gradient in float64", out) and "seed=3" in out


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_check_takes_ops_dtypes_and_no_reference(dtype, capsys):
    assert run(["check", "kernels_of_a_user:op", "--shapes", f"{dtype}[7,5]"], capsys)[0] == 0


def test_check_takes_an_op_of_the_library_by_name(capsys):
    code, out, _ = run(
        ["check", "manual_backprop.ops:gelu", "--reference", "jax.nn:gelu", "--shapes", "f32[7,5]"], capsys
    )
    assert code == 0 and out.startswith("gelu() against gelu, seed=0: ok")


def test_check_takes_integers_and_float64(tmp_path):
    """In a process of its own: float64 is a setting of the process."""
    command = [sys.executable, "-m", "manual_backprop", "check", "kernels_of_a_user:pick", "--shapes", "f64[7],i32[3]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "float64[7]" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["check", "kernels_of_a_user", "--shapes", "f32[3]"],
            "'kernels_of_a_user' names nothing; wants package.module:name",
        ),
        (
            ["check", "no.such:f", "--shapes", "f32[3]"],
            "'no.such:f' cannot be had: ModuleNotFoundError: No module named 'no'",
        ),
        (["check", "kernels_of_a_user:nothing", "--shapes", "f32[3]"], "has no attribute 'nothing'"),
        (["check", "broken_module:f", "--shapes", "f32[3]"], "'broken_module:f' cannot be had: ZeroDivisionError"),
        (["check", "kernels_of_a_user:op", "--shapes", "f32(3)"], "--shapes 'f32(3)' is not understood"),
        (["check", "kernels_of_a_user:op", "--shapes", "f33[3]"], "dtype 'f33' is unknown; did you mean 'f32'?"),
        (["check", "kernels_of_a_user:op", "--shapes", "i32[3]"], "no argument is of a floating dtype"),
        (["check", "kernels_of_a_user:op", "--shapes", "f32[3 4]"], "--shapes 'f32[3 4]' is not understood"),
        (["check", "kernels_of_a_user:op", "--shapes", "f32[3]", "--seed", "-1"], "--seed -1 is out of range"),
        (
            [
                "check",
                "kernels_of_a_user:right",
                "--reference",
                "kernels_of_a_user:reference",
                "--shapes",
                "f32[7,4],f32[5,3]",
            ],
            "the reference reference raised TypeError",
        ),
        (["check", "kernels_of_a_user:op"], "--shapes"),
        (["chek"], "chek"),
        (["ops", "layernorm"], "op 'layernorm' is unknown; did you mean 'layer_norm'?"),
        ([], "COMMAND"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    code, _, err = run(arguments, capsys)
    assert code == 2
    assert message in err and "Traceback" not in err


def test_ops_lists_every_op(capsys):
    code, out, _ = run(["ops"], capsys)
    assert code == 0
    names = [line.strip().split("(")[0] for line in out.splitlines() if re.match(r"  \w", line)]
    assert names == [name for name in mb.ops.__all__ if name.islower()]
    assert "Linear maps: the weighted input" in out and "  layer_norm(eps=1e-05" in out


def test_a_reader_who_has_seen_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "manual_backprop", "ops"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 141 and done.stderr == b""


def test_ops_prints_the_derivation_of_one(capsys):
    code, out, _ = run(["ops", "layer_norm"], capsys)
    assert code == 0
    assert out.startswith("manual_backprop/ops/norms/layer_norm.py: layer_norm(eps=1e-05")
    assert "dx = rstd" in out


def test_version(capsys):
    code, out, _ = run(["--version"], capsys)
    assert code == 0 and out.startswith(f"manual_backprop {mb.__version__}, jax ")


def test_check_takes_the_options_of_check_vjp(tmp_path, capsys):
    wrong = ["check", "kernels_of_a_user:wrong", "--reference", "kernels_of_a_user:reference", "--shapes"]
    wrong += ["f32[7,5], f32[5,3]", "--effort", "quick", "--order", "1"]
    code, out, _ = run([*wrong, "--json", "report.json", "--picture", "errors.png"], capsys)
    assert code == 1 and "diagnosis: constant factor 2: dw" in out
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is False
    assert (tmp_path / "errors.png").stat().st_size > 10_000
    code, out, _ = run([*wrong, "--argnums", "0"], capsys)
    assert code == 0 and "dw" not in out


def test_ctrl_c_is_one_word(capsys):
    code, _, err = run(["check", "kernels_of_a_user:interrupted", "--shapes", "f32[2]"], capsys)
    assert (code, err) == (130, "interrupted\n")


def test_mutate_scores_a_test(capsys):
    mutate = ["mutate", "kernels_of_a_user:right", "--reference", "kernels_of_a_user:reference", "--most", "4"]
    code, out, _ = run([*mutate, "--shapes", "f32[7,5],f32[5,3]"], capsys)
    assert code == 0 and "your test catches" in out
    code, out, _ = run(
        ["mutate", "kernels_of_a_user:right", "--test", "kernels_of_a_user:careless", "--most", "4"], capsys
    )
    assert code == 1 and "your test catches 0 of" in out and "survivors" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mutate", "kernels_of_a_user:right"], "neither --test nor --shapes"),
        (["mutate", "kernels_of_a_user:right", "--most", "0", "--shapes", "f32[2]"], "--most 0 is out of range"),
        (
            ["mutate", "kernels_of_a_user:right", "--test", "kernels_of_a_user:reference"],
            "mutation_score: the test fails",
        ),
        (["check", "kernels_of_a_user:op", "--shapes", "f32[2]", "--argnums", "x"], "--argnums 'x' is not understood"),
        (["check", "kernels_of_a_user:op", "--shapes", "f32[2]", "--argnums", "3"], "argnums has 3; wants places of"),
        (["check", "kernels_of_a_user:op", "--shapes", "f32[2]", "--order", "0"], "order is 0; wants a whole number"),
        (
            ["check", "kernels_of_a_user:op", "--shapes", "f32[2]", "--json", "no/such/file"],
            "no/such/file cannot be written",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_on_the_line_is_one_line(arguments, message, capsys):
    code, _, err = run(arguments, capsys)
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1
