"""Text as token ids: a source of known entropy, the Python library's own sources, files, or what no memory holds.

A batch is a function of a key alone, so a step can be drawn again: windows of a text at random places, or new text.
What is too large for that is a `stream.Source`, read by the numbers of its examples; a part of it is held out, of which
so many windows are drawn once that they fit on the device, and are used as any other text.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from manual_backprop.errors import InputError, choose
from manual_backprop.training import records
from manual_backprop.training.stream import Source

WORDS = 16  # of the Markov source
BYTES = 256
HELD_OUT = 512  # windows of a stream's held-out part
SCANNED = 1 << 22  # tokens that are looked at in one go


class Text(NamedTuple):
    """train, held_out: what `draw(key, data, n)` takes to make n pairs (ids, following ids), each [n, length].

    train may be a `Source` of such pairs instead: it is for `Stream`, and then `draw` is for held_out alone.

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
    """markov, python, files, arrayrecord:PATTERN or tokens:FILE; the last two are streams.

    Raises InputError for an unknown name, unreadable files, and text that is too short.
    """
    kind, colon, place = name.partition(":")
    sources = {
        "markov": lambda: markov(length, seed),
        "python": lambda: of_bytes("python", library(), length),
        "files": lambda: of_files(files, length, tokenizer),
        "arrayrecord": lambda: of_records(place, length, tokenizer, seed),
        "tokens": lambda: of_tokens(Path(place).expanduser(), length, tokenizer, seed),
    }
    source = choose("--data", kind, sources)
    wanted = {"arrayrecord": "PATTERN", "tokens": "FILE"}.get(kind, "")
    if bool(place) != bool(wanted) or bool(colon) != bool(wanted):
        raise InputError(f"--data {name}: wants {kind}{':' * bool(wanted)}{wanted}")
    if (kind == "files") != bool(files):
        raise InputError(f"--data {name} --files {' '.join(map(str, files)) or '(none)'}: files go with --data files")
    if tokenizer and kind in ("markov", "python"):
        raise InputError(f"--tokenizer {tokenizer} goes with --data files, arrayrecord:PATTERN or tokens:FILE")
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
    return _of_ids("files", encode([raw.decode("utf-8", "replace")])[0], vocabulary, length, decode)


def byte_pairs(file: Path) -> tuple[Callable, Callable, int]:
    """(encode, decode, vocabulary) of a tokenizer file, by the `tokenizers` library.

    encode: texts -> the ids of each; several are had at once on the host's cores.
    """
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
    encode = lambda texts: [np.asarray(one.ids, np.int32) for one in found.encode_batch_fast(texts)]
    return encode, lambda ids: found.decode(list(map(int, ids))), vocabulary


def of_bytes(name: str, raw: bytes, length: int) -> Text:
    return _of_ids(name, np.frombuffer(raw, np.uint8), BYTES, length, _letters)


def _letters(ids: Sequence[int]) -> str:
    return bytes(int(i) for i in ids).decode("utf-8", "replace")


def _of_ids(name: str, ids: np.ndarray, vocabulary: int, length: int, decode) -> Text:
    """Nine tenths to learn from, the last tenth held out."""
    cut = _cut(name, len(ids), length)

    def draw(key, tokens, n: int):
        starts = jax.random.randint(key, (n,), 0, len(tokens) - length)
        windows = jax.vmap(lambda start: lax.dynamic_slice(tokens, (start,), (length + 1,)))(starts).astype(jnp.int32)
        return windows[:, :-1], windows[:, 1:]

    small = np.uint8 if vocabulary <= BYTES else np.int32
    train, held_out = (jnp.asarray(part.astype(small)) for part in (ids[:cut], ids[cut:]))
    return Text(name, vocabulary, train, held_out, draw, decode)


def _cut(name: str, count: int, length: int) -> int:
    """Where the last tenth of so many tokens begins. Raises InputError where a part has no window."""
    cut = count * 9 // 10
    if min(cut, count - cut) <= length:
        raise InputError(
            f"--data {name}: the text has {count} tokens, of which a tenth is held out; for a length of {length} it "
            f"wants more than {10 * length + 10}"
        )
    return cut


# ── texts that no memory holds ───────────────────────────────────────────────────────────────────────────────────────


def of_records(pattern: str, length: int, tokenizer: Path | None, seed: int) -> Text:
    """ArrayRecord files of texts: see `records`. A tokenizer reads of each no more than an example may want."""
    if tokenizer is None:
        encode = lambda texts: [np.frombuffer(text, np.uint8) for text in texts]
        decode, vocabulary = _letters, BYTES
    else:
        to_ids, decode, vocabulary = byte_pairs(tokenizer)
        encode = lambda texts: to_ids([text.decode("utf-8", "replace") for text in texts])
    return _streamed("arrayrecord", *records.split(pattern, length, encode, seed), vocabulary, decode)


class Flat(NamedTuple):
    """A file of token ids one after another: so many of a dtype, from an offset in bytes."""

    file: Path
    dtype: np.dtype
    offset: int
    count: int
    stamp: tuple[int, int]  # size and time of change

    def read(self, places: Iterable[int], n: int) -> Iterator[np.ndarray]:
        """The n tokens at each place. Raises InputError for a file that is gone, or is not what it was.

        Read and not mapped: a mapped file that is cut short meanwhile ends the process without a word.
        """
        changed = InputError(f"--data tokens:{self.file}: was changed since it was opened; start anew")
        size = n * self.dtype.itemsize
        try:
            with self.file.open("rb", buffering=0) as file:
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise changed
                for place in places:
                    file.seek(self.offset + place * self.dtype.itemsize)
                    raw = file.read(size)
                    if len(raw) != size:
                        raise changed
                    yield np.frombuffer(raw, self.dtype)
        except OSError as error:
            raise InputError(f"--data tokens:{self.file}: cannot be read: {error.strerror}") from None


def of_tokens(file: Path, length: int, tokenizer: Path | None, seed: int) -> Text:
    """A flat file of token ids: .npy of any integers, or .bin of little-endian uint16. Windows at seeded random places.

    All ids are looked at once, so that none turns up later that the vocabulary does not have: the tokenizer's, or one
    that ends with the largest id.
    """
    flat = _flat(file)
    cut = _cut(f"tokens:{file}", flat.count, length)
    low = high = 0
    for start in range(0, flat.count, SCANNED):
        (some,) = flat.read([start], min(SCANNED, flat.count - start))
        low, high = min(low, int(some.min())), max(high, int(some.max()))
    decode, vocabulary = lambda ids: " ".join(str(int(i)) for i in ids), high + 1
    if tokenizer is not None:
        _, decode, vocabulary = byte_pairs(tokenizer)
    if low < 0 or high >= min(vocabulary, 2**31 - 1):
        wrong, most = low if low < 0 else high, min(vocabulary, 2**31 - 1) - 1
        raise InputError(f"--data tokens:{file}: has the token {wrong}, which is outside a vocabulary of 0 … {most}")

    def part(begin: int, end: int, told: str) -> Source:
        place = lambda number: begin + records.random_numbers(seed, int(number))[1] % (end - begin - length)
        return Source(lambda numbers: records.pairs(flat.read(map(place, numbers), length + 1)), told)

    train = part(0, cut, f"{cut:,} tokens")
    held_out = part(cut, flat.count, f"the last {flat.count - cut:,} tokens")
    return _streamed("tokens", train, held_out, vocabulary, decode)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _flat(file: Path) -> Flat:
    """Where its tokens are. An array of objects, which only pickle reads, is refused as all that are no integers."""
    who = f"--data tokens:{file}"
    try:
        stamp = _stamp(file.stat())
        if file.suffix == ".npy":
            with file.open("rb") as opened:
                if opened.read(6) != np.lib.format.MAGIC_PREFIX:
                    raise InputError(f"{who}: is no .npy file")
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise InputError(f"{who}: has {array.dtype} of shape {array.shape}; wants integers along one axis")
            return Flat(file, array.dtype, array.offset, len(array), stamp)
        size = stamp[0]
        if file.suffix != ".bin" or size % 2:
            got = f"{size:,} bytes, an odd number" if file.suffix == ".bin" else f"a file {file.suffix or 'so named'}"
            raise InputError(f"{who}: is {got}; wants .npy of integers, or .bin of uint16")
        return Flat(file, np.dtype("<u2"), 0, size // 2, stamp)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{who}: cannot be read: {error.strerror}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{who}: is damaged, cut short, or no array of integers: {str(error)[:120]}") from None


def _streamed(name: str, train: Source, held_out: Source, vocabulary: int, decode) -> Text:
    """Windows of the held-out part are drawn now, and stay on the device."""
    train.examples(np.arange(1))  # a part that is too short is told before anything begins
    ids, following = held_out.examples(np.arange(HELD_OUT))
    windows = jnp.asarray(np.concatenate([ids, following[:, -1:]], 1))

    def draw(key, windows, n: int):
        drawn = windows[jax.random.randint(key, (n,), 0, len(windows))]
        return drawn[:, :-1], drawn[:, 1:]

    return Text(name, vocabulary, train, windows, draw, decode)
