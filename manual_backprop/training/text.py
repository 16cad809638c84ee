"""Text as token ids: a source of known entropy, the Python library's own sources, or files.

A batch is a function of a key alone, so a step can be drawn again: windows of a text at random places, or new text.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from manual_backprop.errors import InputError, choose

WORDS = 16  # of the Markov source
BYTES = 256


class Text(NamedTuple):
    """train, held_out: what `draw(key, data, n)` takes to make n pairs (ids, following ids), each [n, length].

    entropy: the lowest average cost of a token that any model can have, in nats; None where it is not known.
    decode: ids -> str.
    """

    name: str
    vocabulary: int
    train: Any
    held_out: Any
    draw: Callable
    decode: Callable[[Sequence[int]], str]
    entropy: float | None = None


def load(name: str, length: int, files: Sequence[Path] = (), tokenizer: Path | None = None, seed: int = 0) -> Text:
    """markov, python, or files. Raises InputError for an unknown name, unreadable files, and text that is too short."""
    sources = {
        "markov": lambda: markov(length, seed),
        "python": lambda: of_bytes("python", library(), length),
        "files": lambda: of_files(files, length, tokenizer),
    }
    source = choose("--data", name, sources)
    if (name == "files") != bool(files):
        raise InputError(f"--data {name} --files {' '.join(map(str, files)) or '(none)'}: files go with --data files")
    if tokenizer and name != "files":
        raise InputError(f"--tokenizer {tokenizer} goes with --data files")
    return source()


# ── a source of known entropy ────────────────────────────────────────────────────────────────────────────────────────


def markov(length: int, seed: int = 0) -> Text:
    """Each word drawn by the two before it, from a table of the seed: endless text, of which no two batches are alike.

    The first word is drawn by two that stationary text has before it, which the model does not see; so it pays for its
    first two words what it cannot know, and `entropy` counts that in.
    """
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(WORDS, 0.3), (WORDS, WORDS))  # [before that, before, word]
    pairs = np.full((WORDS, WORDS), WORDS**-2.0)
    for _ in range(2000):
        pairs = np.einsum("ab,abc->bc", pairs, table)
    by_two = -np.einsum("ab,abc,abc->", pairs, table, np.log(table + 1e-300))
    word = pairs.sum(0)
    by_one = np.einsum("ab,abc->bc", pairs, table) / word[:, None]  # the word after b, whatever was before it
    after_one = -np.sum(word[:, None] * by_one * np.log(by_one + 1e-300))
    entropy = (after_one + (length - 1) * by_two) / length
    logits, first = jnp.log(jnp.asarray(table + 1e-30, jnp.float32)), jnp.log(jnp.asarray(pairs.ravel() + 1e-30))

    def draw(key, data, n: int):
        logits, first = data
        start, *keys = jax.random.split(key, length)
        before = jnp.divmod(jax.random.categorical(start, first, shape=(n,)), WORDS)

        def step(before, key):
            word = jax.random.categorical(key, logits[before])
            return (before[1], word), word

        _, words = lax.scan(step, before, jnp.stack(keys))
        ids = jnp.concatenate([jnp.stack(before), words])  # [length + 1, n]
        return ids[:-1].T.astype(jnp.int32), ids[1:].T.astype(jnp.int32)

    letters = "abcdefghijklmnop"
    decode = lambda ids: "".join(letters[i] for i in ids)
    return Text("markov", WORDS, (logits, first), (logits, first), draw, decode, float(entropy))


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def library() -> bytes:
    """The standard library's own sources, one after another; without tests, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path for path in root.glob("*.py"))
    names += sorted(
        path for folder in ("asyncio", "collections", "email", "json", "xml") for path in root.glob(f"{folder}/*.py")
    )
    text = b"\n".join(path.read_bytes() for path in names)
    if not text:
        raise InputError(f"--data python: there are no sources in {root}; give text by --data files --files …")
    return text


def of_files(files: Sequence[Path], length: int, tokenizer: Path | None) -> Text:
    try:
        raw = b"\n".join(path.read_bytes() for path in files)
    except OSError as error:
        raise InputError(f"--files: {error.filename} cannot be read: {error.strerror}") from None
    if tokenizer is None:
        return of_bytes("files", raw, length)
    encode, decode, vocabulary = byte_pairs(tokenizer)
    return _of_ids("files", np.asarray(encode(raw.decode("utf-8", "replace"))), vocabulary, length, decode)


def byte_pairs(file: Path) -> tuple[Callable, Callable, int]:
    """(encode, decode, vocabulary) of a tokenizer file, by the `tokenizers` library."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("--tokenizer wants the package tokenizers: pip install tokenizers") from None
    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:
        raise InputError(f"--tokenizer {file} cannot be read: {str(error).splitlines()[0]}") from None
    found.no_truncation()  # a file may say that texts end, or are filled up, at the length of its own model
    found.no_padding()
    vocabulary = 1 + max(found.get_vocab().values(), default=-1)  # ids may have gaps
    return lambda text: found.encode(text).ids, lambda ids: found.decode(list(map(int, ids))), vocabulary


def of_bytes(name: str, raw: bytes, length: int) -> Text:
    decode = lambda ids: bytes(int(i) for i in ids).decode("utf-8", "replace")
    return _of_ids(name, np.frombuffer(raw, np.uint8), BYTES, length, decode)


def _of_ids(name: str, ids: np.ndarray, vocabulary: int, length: int, decode) -> Text:
    """Nine tenths to learn from, the last tenth held out."""
    cut = len(ids) * 9 // 10
    if min(cut, len(ids) - cut) <= length:
        raise InputError(
            f"--data {name}: the text has {len(ids)} tokens, of which a tenth is held out; for a length of {length} it "
            f"wants more than {10 * length + 10}"
        )

    def draw(key, tokens, n: int):
        starts = jax.random.randint(key, (n,), 0, len(tokens) - length)
        windows = jax.vmap(lambda start: lax.dynamic_slice(tokens, (start,), (length + 1,)))(starts).astype(jnp.int32)
        return windows[:, :-1], windows[:, 1:]

    small = np.uint8 if vocabulary <= BYTES else np.int32
    train, held_out = (jnp.asarray(part.astype(small)) for part in (ids[:cut], ids[cut:]))
    return Text(name, vocabulary, train, held_out, draw, decode)
