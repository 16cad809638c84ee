"""Weights of `models.gpt` in files of safetensors, under the names that Hugging Face's GPT-2 and LLaMA have for them.

    GPT-2    transformer.h.3.attn.c_attn.weight [in, out], as ours; queries, keys, values side by side, as ours
    LLaMA    model.layers.3.self_attn.q_proj.weight [out, in], ours transposed; ours has queries, keys, values side by
             side in one product, and so gate (`gate_proj`) and value (`up_proj`)

A file holds no options. Ours are: as many heads as the size says; eps 1e-5 in all norms; in GPT-2 the approximate GELU
(`gelu_new`), in LLaMA rotary positions to the base 10000, unscaled. Weights that were trained with other options are
read all the same, and compute something else.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.errors import InputError, choose
from manual_backprop.models.gpt import SIZES, Size, gpt

FLOATS = ("F64", "F32", "F16", "BF16")
MODELS = {"gpt2": "GPT-2", "modern": "LLaMA"}
TABLES = {"gpt2": "wte.weight", "modern": "embed_tokens.weight"}  # of the embedding; they tell the models apart
BLOCKS = {"gpt2": r"(?:transformer\.)?h\.(\d+)\.", "modern": r"model\.layers\.(\d+)\."}
PREFIX = "transformer."  # of GPT2LMHeadModel's names; those of GPT2Model, and of the published files, lack it
HEAD = "lm_head.weight"
SPARE = {  # what files may have though the model needs no such tensor
    "gpt2": rf"{HEAD}|{BLOCKS['gpt2']}attn\.(?:bias|masked_bias)",
    "modern": rf"{BLOCKS['modern']}self_attn\.rotary_emb\.inv_freq",
}


def save_params(file: Path | str, params: Any) -> None:
    """Writes the arrays of a pytree, each under its path, to a file that must not exist yet: all of it or nothing.

    Raises InputError for a file that exists or cannot be written.
    """
    _save(Path(file), {name: np.asarray(leaf) for name, leaf in _named(params).items()})


def load_params(file: Path | str, params_like: Any) -> Any:
    """What `save_params` wrote, in the structure and the dtypes of `params_like`.

    Raises InputError for a file that cannot be read, is cut short, lacks an array, or has one of another shape or one
    too many.
    """
    like = _named(params_like)
    with _opened(file) as tensors:
        names = set(tensors.keys())
        for what, some in (("lacks", like.keys() - names), ("has what params have no place for:", names - like.keys())):
            if some:
                raise InputError(f"{file} {what} {min(some)}; wants the {len(like)} arrays of params")
        leaves = [jnp.asarray(_read(file, tensors, name, leaf.shape), leaf.dtype) for name, leaf in like.items()]
    return jax.tree.unflatten(jax.tree.structure(params_like), leaves)


def save_weights(file: Path | str, size: Size | str, params: Any) -> None:
    """Writes params of `gpt(size, …)`, in their dtypes, to a file that must not exist yet: all of it or nothing.

    The names are those of GPT2LMHeadModel, which has no tensor for its tied head, or of LlamaForCausalLM. Raises
    InputError for a file that exists or cannot be written, and for params that are not of the size.
    """
    size = choose("gpt: size", size, SIZES) if isinstance(size, str) else size
    _save(Path(file), _views(size, [np.asarray(leaf) for leaf in jax.tree.leaves(params)]))


def _save(file: Path, views: dict[str, np.ndarray]) -> None:
    safetensors = _library()
    partial = file.parent / f".{file.name}.{secrets.token_hex(4)}.partial"
    try:
        if os.path.lexists(file):
            raise FileExistsError
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode  # what a new file is to have; safetensors' own has less
        try:
            tensors = {name: np.ascontiguousarray(view) for name, view in views.items()}
            safetensors.numpy.save_file(tensors, partial, {"format": "pt"})  # transformers wants to be told so
            partial.chmod(mode)
            _rename(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    except FileExistsError:
        raise InputError(f"{file} exists; nothing is overwritten: name another") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{file} cannot be written: {_reason(error)}") from None


def load_weights(file: Path | str, size: Size | str, params_like: Any) -> Any:
    """The params of `gpt(size, …)` that a file holds, in the structure and the dtypes of `params_like`.

    params_like: what `gpt(size, …).init` gives, or `jax.eval_shape` of it.  The file has floats of 16 to 64 bits, and
    may have what is constant or there twice: GPT-2's head and masks, LLaMA's frequencies of the rotary positions.
    Raises InputError for a file that cannot be read, is cut short, is of the other architecture, lacks a tensor, has
    one of another shape or one that the model has no place for; and for params_like that are not of the size.
    """
    size = choose("gpt: size", size, SIZES) if isinstance(size, str) else size
    like, structure = jax.tree.flatten(params_like)
    leaves = [np.empty(leaf.shape, leaf.dtype) for leaf in like]
    views = _views(size, leaves)
    with _opened(file) as tensors:
        names = set(tensors.keys())
        if size.architecture == "gpt2" and PREFIX + TABLES["gpt2"] not in names:
            views = {name.removeprefix(PREFIX): view for name, view in views.items()}
        spare = {name for name in names - views.keys() if re.fullmatch(SPARE[size.architecture], name)}
        _want_names(file, size, names - spare, views)
        for name, view in views.items():
            view[...] = _read(file, tensors, name, view.shape)
        _want_constants(file, size, tensors, spare, views)
    return structure.unflatten(map(jnp.asarray, leaves))


def _named(params: Any) -> dict[str, Any]:
    """The arrays by their paths, such as 0.2.w."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _views(size: Size, leaves: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Each tensor's name, the embedding's first, and the part of a leaf that it holds: to be read or to be written.

    leaves: of params of the size, by whatever schedule; those nest them in other ways, but in one order.
    """
    if size.architecture == "gpt2" and size.key_heads != size.heads:
        raise InputError(f"GPT-2's files have as many key heads as heads; the size has {size.key_heads}, {size.heads}")
    (embedding, positions, (attention, perceptron), norm), head = _nested(size, leaves)
    (norm1, qkv), out, (norm2, up), down = attention[0], attention[-1], perceptron[0], perceptron[-1][1]
    if size.architecture == "gpt2":
        both = lambda name, p: dict(zip((f"{name}.bias", f"{name}.weight"), jax.tree.leaves(p), strict=True))
        blocks = both("ln_1", norm1) | both("attn.c_attn", qkv) | both("attn.c_proj", out)
        blocks |= both("ln_2", norm2) | both("mlp.c_fc", up) | both("mlp.c_proj", down)
        whole = {"wte.weight": embedding["table"], "wpe.weight": positions["table"]} | both("ln_f", norm)
        stem, whole = f"{PREFIX}h", {PREFIX + name: leaf for name, leaf in whole.items()}
    else:
        H, K = size.width // size.heads, size.key_heads
        products = np.split(qkv["w"], [size.heads * H, (size.heads + K) * H], -1)
        products += [out["w"], *np.split(up["w"], 2, -1), down["w"]]
        names = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
        blocks = {f"{name}.weight": product.mT for name, product in zip(names, products, strict=True)}
        blocks |= {"input_layernorm.weight": norm1["scale"], "post_attention_layernorm.weight": norm2["scale"]}
        whole = {"model.embed_tokens.weight": embedding["table"], "model.norm.weight": norm["scale"]}
        stem, whole = "model.layers", whole | {HEAD: head["weight"]}
    return whole | {f"{stem}.{i}.{name}": leaf[i] for i in range(size.depth) for name, leaf in blocks.items()}


def _nested(size: Size, leaves: list[np.ndarray]) -> Any:
    """The leaves as `gpt(size)` nests them. Raises InputError if they are not of its shapes."""
    wanted, _ = jax.eval_shape(gpt(size).init, jax.random.key(0), (jax.ShapeDtypeStruct((1, 1), np.int32),) * 2)
    got, wants = ([leaf.shape for leaf in some] for some in (leaves, jax.tree.leaves(wanted)))
    if got != wants:
        a, b = next(((a, b) for a, b in zip(got, wants, strict=False) if a != b), (len(got), len(wants)))
        raise InputError(f"params have {a} where gpt({size}) has {b}; wants params of the size, shapes and number")
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def _want_constants(file, size: Size, tensors, spare: set[str], views: dict) -> None:
    """Raises InputError for a head or for frequencies that are not the model's own; masks are what they are."""
    (table, view), H = next(iter(views.items())), size.width // size.heads
    if HEAD in spare and not np.array_equal(_read(file, tensors, HEAD, view.shape).astype(view.dtype), view):
        raise InputError(f"{file}: {HEAD} differs from {table}; wants the same, for the model ties them")
    theta = 10000.0 ** (-np.arange(0, H, 2) / H)
    for name in sorted(name for name in spare if name.endswith("inv_freq")):
        if not np.allclose(_read(file, tensors, name, theta.shape).astype(float), theta, rtol=1e-2):
            raise InputError(f"{file}: {name} is not of the base 10000; wants the model's rotary positions")


def _want_names(file, size: Size, names: set[str], views: dict) -> None:
    """Raises InputError unless the file has the names of the views and no others."""
    own, model = size.architecture, MODELS[size.architecture]
    has = {key for key, table in TABLES.items() if any(name.endswith(table) for name in names)}
    if has and own not in has:
        raise InputError(f"{file} has the weights of {MODELS[has.pop()]}; wants {model}'s, for the size is of {own!r}")
    blocks = {match[1] for name in names if (match := re.match(BLOCKS[own], name))}
    if blocks and len(blocks) != size.depth:
        raise InputError(f"{file} has {len(blocks)} blocks; wants {size.depth}, the depth of the size")
    for what, some in (("lacks", views.keys() - names), ("has what the model has no place for:", names - views.keys())):
        if some:
            more = f" and {len(some) - 1} more" if len(some) > 1 else ""
            raise InputError(f"{file} {what} {min(some)}{more}; wants the {len(views)} tensors of {model}")


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise InputError("weights in files want the package safetensors: pip install safetensors") from None
    return safetensors


@contextmanager
def _opened(file: Path | str) -> Iterator[Any]:
    """A file's tensors by their names; what goes wrong is one line."""
    safetensors = _library()
    try:
        open(file, "rb").close()  # Python's own words for a file that cannot be
        with safetensors.safe_open(file, framework="numpy") as tensors:
            yield tensors
    except OSError as error:
        raise InputError(f"{file} cannot be read: {_reason(error)}") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{file} is no whole file of safetensors: {_reason(error)}") from None


def _read(file, tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor. Raises InputError if it has another shape, or is not of floats."""
    header = tensors.get_slice(name)
    if tuple(header.get_shape()) != shape:
        raise InputError(f"{file}: {name} has shape {tuple(header.get_shape())}; wants {shape}")
    if header.get_dtype() not in FLOATS:
        raise InputError(f"{file}: {name} is of {header.get_dtype()}; wants one of {', '.join(FLOATS)}")
    return tensors.get_tensor(name)


def _rename(partial: Path, file: Path) -> None:
    """Gives a file its name, unless that is taken."""
    try:
        os.link(partial, file)  # to rename would overwrite
    except OSError:
        if os.path.lexists(file):
            raise FileExistsError from None
        partial.rename(file)  # on a file system without links


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).split("\n")[0]
