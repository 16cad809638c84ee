"""Weights in files: Hugging Face's GPT-2 and LLaMA are read, compute the same, and are written as they were.

The samples are theirs, made by `tests/peers/transformers_gpt.py`: weights, and in float64 what the models compute.
"""

import os
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

import manual_backprop as mb
from cases import random_like
from manual_backprop.models.gpt import Schedule, Size, gpt, logits
from manual_backprop.training import weights
from manual_backprop.training.weights import load_weights, save_weights

SAMPLES = Path(__file__).parent / "peers" / "samples"
SIZES = {
    "gpt2": Size(17, 11, 2, 12, 3),
    "modern": Size(17, 11, 2, 24, 6, 2, 20, architecture="modern"),
}
TABLE = {"gpt2": "transformer.wte.weight", "modern": "model.embed_tokens.weight"}


@pytest.fixture(params=SIZES)
def name(request) -> str:
    return request.param


@cache
def params_like(size: Size, keep: str = "everything", dtype=None):
    """What `init` gives, as shapes; dtype: of all of them."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params, _ = jax.eval_shape(gpt(size, Schedule(keep)).init, jax.random.key(0), (ids, ids))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), params)


def load(file: Path, name: str, dtype=None):
    return load_weights(file, SIZES[name], params_like(SIZES[name], dtype=dtype))


def sample(name: str, what: str = "") -> Path:
    return SAMPLES / f"{name}{what}.safetensors"


def changed(tmp_path: Path, name: str, change) -> Path:
    """The sample, its dictionary of tensors changed."""
    tensors = safetensors.load_file(sample(name))
    safetensors.save_file(change(tensors) or tensors, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


# ── the models ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_weights_compute_what_they_do_in_transformers(name):
    values = safetensors.load_file(sample(name, "_values"))
    ids, labels = (jnp.asarray(values[key], jnp.int32) for key in ("ids", "labels"))
    with jax.enable_x64(True):
        objective = gpt(SIZES[name])
        params = load(sample(name), name, "float64")
        _, state = objective.init(jax.random.key(0), (ids, labels))
        found = logits(objective, params, state, ids)
        assert np.abs(found - values["logits"]).max() <= 1e-11 * np.abs(values["logits"]).max()
        (cost, _), gradient = jax.jit(mb.value_and_grad(objective))(params, state, (ids, labels))
        assert abs(cost - values["cost"]) <= 1e-13 * values["cost"]
        theirs = load(sample(name, "_gradient"), name, "float64")
        assert jax.tree.structure(gradient) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True):
            assert b.any() and np.abs(a - b).max() <= 1e-10 * np.abs(b).max()


def test_what_is_written_is_the_file_that_was_read(name, tmp_path):
    file = tmp_path / "again.safetensors"
    save_weights(file, SIZES[name], load(sample(name), name))
    ours, theirs = safetensors.load_file(file), safetensors.load_file(sample(name))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and ours[key].tobytes() == value.tobytes() and value.any()
        assert ours[key].shape == value.shape
    with safetensors.safe_open(file, framework="numpy") as found:
        assert found.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_written_is_read(name, dtype, tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_like(params_like(SIZES[name]), 0))
    save_weights(tmp_path / "file", SIZES[name], params)
    assert_equal(load(tmp_path / "file", name, dtype), params)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_reversible_blocks_have_the_same_weights(name, tmp_path):
    size = SIZES[name]
    like = params_like(size, "last")
    nested = load_weights(str(sample(name)), size, like)
    assert jax.tree.structure(nested) == jax.tree.structure(like) != jax.tree.structure(params_like(size))
    save_weights(str(tmp_path / "file"), size, nested)
    assert_equal(load(tmp_path / "file", name), load(sample(name), name))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=lambda dtype: dtype.__name__)
def test_other_floats_are_read_into_the_parameters_dtype(name, dtype, tmp_path):
    file = changed(tmp_path, name, lambda tensors: {key: value.astype(dtype) for key, value in tensors.items()})
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), as_numpy(load(sample(name), name)))
    assert_equal(as_numpy(load(file, name)), expected)


def as_numpy(params):
    return jax.tree.map(np.asarray, params)


def test_a_size_may_be_a_name(tmp_path):
    params = random_like(params_like(weights.SIZES["modern-tiny"]), 0)
    save_weights(tmp_path / "file", "modern-tiny", params)
    assert_equal(load_weights(tmp_path / "file", "modern-tiny", params), params)


def old_gpt2(tensors):
    """As published: no prefix; with the causal masks, and here with the head too."""
    tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 11, 11), np.uint8))
        tensors[f"h.{i}.attn.masked_bias"] = np.asarray(-1e4, np.float32)
    return tensors | {"lm_head.weight": tensors["wte.weight"].copy()}


def old_llama(tensors):
    """With the frequencies of the rotary positions; heads have 4 entries."""
    theta = np.asarray([1, 0.01], np.float16)
    return tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": theta for i in range(2)}


def test_what_older_files_have_besides_is_left_out(name, tmp_path):
    file = changed(tmp_path, name, old_gpt2 if name == "gpt2" else old_llama)
    assert_equal(load(file, name), load(sample(name), name))


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def without(*keys):
    return lambda tensors: {key: value for key, value in tensors.items() if key not in keys}


def more(key, value):
    return lambda tensors: tensors | {key: np.asarray(value)}


LAYER, LAYERS = "transformer.h.1.ln_1.weight", "model.layers.1.self_attn.q_proj.weight"
CHANGES = {
    "a tensor that is missing": ("gpt2", without(LAYER), f" lacks {LAYER}; wants the 28 tensors of GPT-2"),
    "two that are missing": ("modern", without(LAYERS, "lm_head.weight"), " lacks lm_head.weight and 1 more; wants the 21"),
    "one that is unknown": (
        "modern",
        more("model.layers.0.self_attn.q_proj.bias", np.zeros(24)),
        " has what the model has no place for: model.layers.0.self_attn.q_proj.bias; wants the 21 tensors of LLaMA",
    ),
    "another shape": ("gpt2", more(LAYER, np.zeros(5)), f": {LAYER} has shape (5,); wants (12,)"),
    "a transposed one": (
        "modern",
        lambda tensors: tensors | {k: v.T.copy() for k, v in tensors.items() if "down_proj" in k},
        ": model.layers.0.mlp.down_proj.weight has shape (20, 24); wants (24, 20)",
    ),
    "integers": ("gpt2", more(LAYER, np.zeros(12, np.int8)), f": {LAYER} is of I8; wants one of F64, F32, F16, BF16"),
    "a float of 8 bits": ("gpt2", more(LAYER, np.zeros(12, ml_dtypes.float8_e4m3fn)), f": {LAYER} is of F8_E4M3; wants"),
    "a head that is not tied": (
        "gpt2",
        more("lm_head.weight", np.ones((17, 12), np.float32)),
        ": lm_head.weight differs from transformer.wte.weight; wants the same, for the model ties them",
    ),
    "another rotary base": (
        "modern",
        more("model.layers.1.self_attn.rotary_emb.inv_freq", np.asarray([1, 0.002])),
        ": model.layers.1.self_attn.rotary_emb.inv_freq is not of the base 10000; wants the model's rotary positions",
    ),
    "names of neither": ("gpt2", lambda tensors: {"weight": np.zeros(3)}, " lacks h.0.attn.c_attn.bias and 27 more; wants"),
    "half of the names prefixed": (
        "gpt2",
        lambda tensors: tensors | {LAYER.removeprefix("transformer."): tensors[LAYER]},
        " has what the model has no place for: h.1.ln_1.weight; wants",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_does_not_fit_is_one_line(change, tmp_path):
    name, change, message = change
    file = changed(tmp_path, name, change)
    assert one_line(lambda: load(file, name)).startswith(f"{file}{message}")


RESIZED = {
    "width": ("gpt2", {"width": 15}, ": transformer.wte.weight has shape (17, 12); wants (17, 15)"),
    "vocabulary": ("modern", {"vocabulary": 19}, ": model.embed_tokens.weight has shape (17, 24); wants (19, 24)"),
    "length": ("gpt2", {"length": 13}, ": transformer.wpe.weight has shape (11, 12); wants (13, 12)"),
    "depth": ("gpt2", {"depth": 3}, " has 2 blocks; wants 3, the depth of the size"),
    "less depth": ("modern", {"depth": 1}, " has 2 blocks; wants 1, the depth of the size"),
    "key heads": ("modern", {"key_heads": 3}, ": model.layers.0.self_attn.k_proj.weight has shape (8, 24); wants (12, 24)"),
    "hidden": ("modern", {"hidden": 28}, ": model.layers.0.mlp.gate_proj.weight has shape (20, 24); wants (28, 24)"),
}  # fmt: skip


@pytest.mark.parametrize("resized", RESIZED.values(), ids=RESIZED)
def test_a_file_of_another_size_is_one_line(resized):
    name, fields, message = resized
    size = replace(SIZES[name], **fields)
    assert one_line(lambda: load_weights(sample(name), size, params_like(size))) == f"{sample(name)}{message}"


def test_a_file_of_the_other_architecture_is_one_line():
    gpt2, modern = sample("gpt2"), sample("modern")
    message = one_line(lambda: load(modern, "gpt2"))
    assert message == f"{modern} has the weights of LLaMA; wants GPT-2's, for the size is of 'gpt2'"
    message = one_line(lambda: load(gpt2, "modern"))
    assert message == f"{gpt2} has the weights of GPT-2; wants LLaMA's, for the size is of 'modern'"


@pytest.mark.parametrize("cut", [0, 5, 200, -1], ids=["empty", "in the length", "in the header", "in the numbers"])
def test_a_file_cut_short_is_one_line(name, cut, tmp_path):
    file = tmp_path / "short.safetensors"
    file.write_bytes(sample(name).read_bytes()[:cut])
    assert one_line(lambda: load(file, name)).startswith(f"{file} is no whole file of safetensors: ")


def test_another_file_is_one_line(name, tmp_path):
    text = tmp_path / "text"
    text.write_text("weights, weights, weights\n" * 9)
    assert one_line(lambda: load(text, name)).startswith(f"{text} is no whole file of safetensors: ")
    none = tmp_path / "none"
    assert one_line(lambda: load(none, name)) == f"{none} cannot be read: No such file or directory"
    assert one_line(lambda: load(tmp_path, name)) == f"{tmp_path} cannot be read: Is a directory"


def test_nothing_is_overwritten(name, tmp_path):
    file, dangling = tmp_path / "file", tmp_path / "link"
    file.write_text("dear")
    dangling.symlink_to("nowhere")
    for taken in (file, dangling):
        message = one_line(lambda taken=taken: save_weights(taken, SIZES[name], load(sample(name), name)))
        assert message == f"{taken} exists; nothing is overwritten: name another"
    assert file.read_text() == "dear" and sorted(tmp_path.iterdir()) == [file, dangling]


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_overwritten_that_came_meanwhile(links, tmp_path, monkeypatch):
    file, written = tmp_path / "file", safetensors.save_file

    def slow(*arguments):
        written(*arguments)
        file.write_text("dear")

    monkeypatch.setattr(safetensors, "save_file", slow)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    message = one_line(lambda: save_weights(file, SIZES["gpt2"], load(sample("gpt2"), "gpt2")))
    assert message == f"{file} exists; nothing is overwritten: name another"
    assert file.read_text() == "dear" and list(tmp_path.iterdir()) == [file]


def no_links(*_):
    raise PermissionError(1, "Operation not permitted")


def test_a_file_system_may_be_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    file = tmp_path / "file"
    save_weights(file, SIZES["gpt2"], load(sample("gpt2"), "gpt2"))
    assert_equal(load(file, "gpt2"), load(sample("gpt2"), "gpt2"))
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    params, full = load(sample("gpt2"), "gpt2"), safetensors.save_file
    file = tmp_path / "none" / "file"
    message = one_line(lambda: save_weights(file, SIZES["gpt2"], params))
    assert message == f"{file} cannot be written: No such file or directory"

    def run_out(*arguments):
        full(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "save_file", run_out)
    file = tmp_path / "file"
    message = one_line(lambda: save_weights(file, SIZES["gpt2"], params))
    assert message == f"{file} cannot be written: No space left on device" and not list(tmp_path.iterdir())


def test_a_written_file_is_as_open_to_others_as_any_new_one(tmp_path):
    save_weights(tmp_path / "file", SIZES["gpt2"], load(sample("gpt2"), "gpt2"))
    shutil.copyfile(sample("gpt2"), tmp_path / "new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_params_of_another_size_are_one_line(tmp_path):
    size, other = SIZES["gpt2"], replace(SIZES["gpt2"], hidden=20)
    params = random_like(params_like(other), 0)
    wants = f"where gpt({size!r}) has (2, 48); wants params of the size, shapes and number"
    for run in (
        lambda: save_weights(tmp_path / "file", size, params),
        lambda: load_weights(sample("gpt2"), size, params),
    ):
        assert one_line(run) == f"params have (2, 20) {wants}"
    message = one_line(
        lambda: save_weights(tmp_path / "file", size, jax.tree.leaves(load(sample("gpt2"), "gpt2"))[:-1])
    )
    assert message.startswith("params have 15 where gpt(") and not list(tmp_path.iterdir())


def test_gpt2_has_no_names_for_shared_key_heads():
    size = Size(17, 11, 2, 12, 3, 1)
    message = one_line(lambda: load_weights(sample("gpt2"), size, params_like(size)))
    assert message == "GPT-2's files have as many key heads as heads; the size has 1, 3"


def test_an_unknown_size_is_one_line():
    message = one_line(lambda: load_weights(sample("gpt2"), "gpt2-125m", {}))
    assert message.startswith("gpt: size 'gpt2-125m' is unknown; did you mean 'gpt2-124m'?")


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    params = load(sample("gpt2"), "gpt2")
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    for run in (lambda: load(sample("gpt2"), "gpt2"), lambda: save_weights(tmp_path / "file", SIZES["gpt2"], params)):
        assert one_line(run) == "weights in files want the package safetensors: pip install safetensors"


def one_line(run) -> str:
    with pytest.raises(mb.InputError) as error:
        run()
    assert "\n" not in str(error.value)
    return str(error.value)
