"""Texts as tokens, and the experiment that learns them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.gpt
import manual_backprop as mb
from manual_backprop.models.gpt import SIZES, gpt
from manual_backprop.training import run as runs
from manual_backprop.training import text
from manual_backprop.training.weights import load_weights
from test_stream import PROSE, byte_pairs_of

GPT = Path(__file__).parents[1] / "experiments" / "gpt.py"


def run(*arguments, folder=None):
    more = [] if folder is None else ["--folder", str(folder)]
    return subprocess.run([sys.executable, str(GPT), *arguments, *more], capture_output=True, text=True)


def test_the_markov_source_has_the_entropy_that_it_says():
    """No model knows more than the table itself: its average cost, on many draws, is the entropy."""
    source = text.markov(length=16, seed=3)
    ids, labels = jax.jit(source.draw, static_argnums=2)(jax.random.key(0), source.train, 4096)
    table = np.exp(np.asarray(source.train[0], np.float64))
    pairs = np.exp(np.asarray(source.train[1], np.float64)).reshape(text.WORDS, text.WORDS)
    ids, labels = np.asarray(ids), np.asarray(labels)
    later = -np.log(table[ids[:, :-1], ids[:, 1:], labels[:, 1:]]).mean()
    by_one = np.einsum("ab,abc->bc", pairs, table) / pairs.sum(0)[:, None]
    first = -np.log(by_one[ids[:, 0], labels[:, 0]]).mean()
    assert (first + 15 * later) / 16 == pytest.approx(source.entropy, rel=0.01)


def test_the_source_is_stationary_and_a_function_of_the_key():
    source = text.markov(length=64, seed=0)
    draw = lambda seed: source.draw(jax.random.key(seed), source.train, 2048)
    ids, labels = map(np.asarray, draw(0))
    np.testing.assert_array_equal(ids[:, 1:], labels[:, :-1])
    np.testing.assert_array_equal(ids, draw(0)[0])
    assert (ids != np.asarray(draw(1)[0])).any()
    early, late = (np.bincount(ids[:, t], minlength=text.WORDS) / len(ids) for t in (0, 63))
    assert np.abs(early - late).max() < 0.05


def test_the_standard_library_is_read_in_windows():
    source = text.load("python", 32)
    ids, labels = source.draw(jax.random.key(0), source.train, 3)
    assert ids.shape == labels.shape == (3, 32) and ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids[:, 1:], labels[:, :-1])
    raw = np.asarray(source.train).tobytes()
    assert all(np.asarray(row, np.uint8).tobytes() in raw for row in ids)
    assert len(source.train) > 1_000_000 and len(source.held_out) == pytest.approx(len(source.train) / 9, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prose", 8), "--data 'prose' is unknown; known: arrayrecord, files, markov, python, tokens"),
        (("files", 8), "files go with --data files"),
        (("markov", 8, [Path("x")]), "files go with --data files"),
        (("files", 8, [Path("/no/such/file")]), "--files: /no/such/file cannot be read: No such file or directory"),
        (
            ("python", 8, (), Path("t.json")),
            "--tokenizer t.json goes with --data files, arrayrecord:PATTERN or tokens:FILE",
        ),
        (("python:3", 8), "--data python:3: wants python"),
        (("files:", 8), "--data files:: wants files"),
        (("token:x.npy", 8), "--data 'token' is unknown; did you mean 'tokens'?"),
        (("tokens:x.npy", 8, [Path("x")]), "files go with --data files"),
    ],
)
def test_a_text_that_cannot_be_had_is_one_line(arguments, message):
    with pytest.raises(mb.InputError) as error:
        text.load(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizers_file_makes_tokens(tmp_path):
    prose, file = tmp_path / "prose.txt", tmp_path / "tokenizer.json"
    prose.write_bytes(PROSE.encode())
    tokenizer = byte_pairs_of(PROSE, 300)
    tokenizer.save(str(file))
    source = text.load("files", 8, [prose, prose], tokenizer=file)
    ids = np.concatenate([source.train, source.held_out])
    assert source.vocabulary == 300 and ids.dtype == np.int32
    np.testing.assert_array_equal(ids, tokenizer.encode(f"{PROSE}\n{PROSE}").ids)
    assert ids.max() >= text.BYTES and len(ids) < len(PROSE.encode())  # several bytes a token
    assert source.decode(ids) == f"{PROSE}\n{PROSE}"
    drawn, following = source.draw(jax.random.key(0), source.train, 3)
    assert drawn.shape == following.shape == (3, 8)
    np.testing.assert_array_equal(drawn[:, 1:], following[:, :-1])
    encode, decode, _ = text.byte_pairs(file)
    other = "other letters: Ω\x00 ☃, and a line\n"
    assert decode(encode([other])[0]) == other


def test_a_tokenizers_limits_are_not_the_texts(tmp_path):
    """Such as a model's longest sentence, at which its file says to cut; and ids that no token has."""
    file = tmp_path / "tokenizer.json"
    tokenizer = byte_pairs_of(PROSE, 300)
    whole = tokenizer.encode(PROSE).ids
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=len(whole) + 8)
    tokenizer.save(str(file))
    assert text.byte_pairs(file)[0]([PROSE])[0].tolist() == whole
    tokens = json.loads(file.read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 999
    file.write_text(json.dumps(tokens))
    assert text.byte_pairs(file)[2] == 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"{}", "Model missing"),
        (b"Some prose,\nin two lines\n", "expected value at line 1 column 1"),
        (bytes(range(256)), "not contain valid UTF-8"),
    ],
    ids=["no file", "another JSON", "prose", "bytes"],
)
def test_a_tokenizer_that_cannot_be_had_is_one_line(content, message, tmp_path):
    prose, file = tmp_path / "prose.txt", tmp_path / "tokenizer.json"
    prose.write_text(PROSE)
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(mb.InputError) as error:
        text.load("files", 8, [prose], tokenizer=file)
    assert str(error.value).startswith(f"--tokenizer {file} cannot be read: ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_the_package_of_tokenizers_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(mb.InputError, match=r"^--tokenizer wants the package tokenizers: pip install tokenizers$"):
        text.byte_pairs(tmp_path / "tokenizer.json")


def test_a_text_shorter_than_a_block_is_one_line(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("too short")
    with pytest.raises(mb.InputError, match="the text has 9 tokens, of which a tenth is held out; for a length of 8"):
        text.load("files", 8, [file])


def test_the_experiment_leaves_its_files_and_agrees_with_autodiff(tmp_path):
    folder = tmp_path / "run"
    done = run("--steps", "6", "--check-gradients", "3", "--sample", "9", folder=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["largest_gradient_difference"] < 1e-12
    assert result["held_out_cost"] > result["entropy"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6] and len(rows[0]["layer_norms"]["model[2][0][0][1] Dense"]) == 2
    assert [len(row["sample"]) for row in rows if "sample" in row] == [9, 9]
    assert 0 < result["utilization"] < 1 and result["units_per_second"] > 0
    size = replace(SIZES["tiny"], vocabulary=text.WORDS)
    ids = jnp.zeros((1, 64), jnp.int32)
    like, _ = jax.eval_shape(gpt(size).init, jax.random.key(0), (ids, ids))
    assert jax.tree.leaves(load_weights(folder / "weights.safetensors", size, like))[0].dtype == jnp.float32
    assert (folder / "curves.png").stat().st_size > 10_000
    assert "nats a token, held out" in done.stdout


def test_a_run_goes_on_from_weights_in_float16(tmp_path):
    few = ("--sample", "0", "--precision", "float16")
    assert run("--steps", "60", *few, folder=tmp_path / "first").returncode == 0
    weights = ("--weights", str(tmp_path / "first" / "weights.safetensors"))
    done = run("--steps", "1", "--learning-rate", "1e-9", *few, *weights, folder=tmp_path / "second")
    assert done.returncode == 0, done.stderr
    costs = [json.loads((tmp_path / name / "result.json").read_text())["held_out_cost"] for name in ("first", "second")]
    np.testing.assert_allclose(*costs, rtol=1e-3)
    done = run("--steps", "1", "--size", "modern-tiny", *weights, folder=tmp_path / "third")
    assert done.returncode == 2 and "has the weights of GPT-2; wants LLaMA's" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "third").exists()


def test_out_of_memory_says_what_would_have_room(monkeypatch, capsys):
    def without_room(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 140737488355328 bytes.")

    monkeypatch.setattr(experiments.gpt, "experiment", without_room)
    monkeypatch.setattr(sys, "argv", ["gpt", "--size", "small", "--length", "16", "--batch-size", "4"])
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 140_000_000}[name])
    with pytest.raises(SystemExit) as stopped:
        runs.main(experiments.gpt.main)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: out of memory: of 140.00 MB, 'dear' wants") and "would want" in error


def test_what_the_model_writes_is_no_markup(tmp_path):
    source = tmp_path / "brackets.txt"
    source.write_text("[/b][i] " * 400)
    files = ("--data", "files", "--files", str(source), "--length", "8", "--batch-size", "4")
    done = run("--steps", "60", "--sample", "40", "--learning-rate", "0.01", *files, folder=tmp_path / "[a]")
    assert done.returncode == 0, done.stderr
    assert "[/b]" in done.stdout and f"wrote   {tmp_path}/[a]/" in done.stdout


@pytest.mark.slow
def test_the_cost_comes_within_three_percent_of_the_entropy(tmp_path):
    done = run(folder=tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert done.returncode == 0 and result["entropy"] <= result["held_out_cost"] <= 1.03 * result["entropy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--schedule", "last"),
        ("--update-in-backward", "--clip", "0"),
        ("--precision", "bfloat16", "--accumulate", "2"),
        ("--size", "modern-tiny", "--check-gradients", "2"),
    ],
    ids=" ".join,
)
def test_other_ways_to_run_it(arguments, tmp_path):
    done = run("--steps", "4", "--sample", "3", *arguments, folder=tmp_path / "run")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "tinny"), "--size 'tinny' is unknown; did you mean 'tiny'?"),
        (("--update-in-backward",), "wants --clip 0 --accumulate 1"),
        (("--accumulate", "3"), "--accumulate 3 does not divide --batch-size 16"),
        (("--length", "100"), "--length 100: tiny has 64 positions; wants 2 to so many"),
        (("--clip", "-1"), "--clip -1.0 is out of range; wants 0, or a positive number"),
        (("--learning-rate", "nan"), "--learning-rate nan is out of range"),
        (("--sample", "-5"), "--sample -5 is out of range"),
        (("--batch-size", "100000000"), "--batch-size 100000000: 6,400,000,000 tokens a step"),
        (("--attention", "cudnn"), "--attention cudnn: its kernel takes bfloat16 and float16"),
    ],
)
def test_a_mistake_on_the_line_is_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
