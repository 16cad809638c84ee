"""Texts in ArrayRecord files, for corpora that no memory holds: any record is read by its number, in any order.

Each record is a text, UTF-8 or bytes. grain shuffles the numbers anew for each epoch, by a permutation that is computed
and not stored. Example i begins with record i of that order: a window at a seeded random place of it, and where it is
shorter than an example, it is joined with those that follow in the order until the example is full, a line's end after
each. So nothing is filled up with padding, and in an epoch each record is once the first of an example.

The format has a checksum of each chunk: a flipped bit is an error when its record is read. The reader has two silences,
which are broken here: it gives no records for a file that is cut short, and an empty one for a place that is no more.
"""

from __future__ import annotations

import bisect
import errno
import glob
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from manual_backprop.errors import InputError
from manual_backprop.training.stream import Source

PIECE = 8  # bytes for a token of an example, of records that are longer


@dataclass(frozen=True)
class Records:
    """The records of several files, one after another, by number: what grain's MapDataset reads."""

    files: tuple[Path, ...]
    sizes: tuple[int, ...]  # of each, in bytes
    opened: tuple[Any, ...]  # a data source of each

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> bytes:
        which = bisect.bisect_right(self._ends, number)
        file, opened = self.files[which], self.opened[which]
        place = number - self._ends[which] + len(opened)
        try:
            record = opened[place]
            # The reader gives nothing where the file was cut since it was opened. A record may be empty, too.
            whole = bool(record) or file.stat().st_size == self.sizes[which]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            told = f"{_reason(error)}; if it is damaged, make it anew"
            raise InputError(f"{file}: record {place} cannot be read: {told}") from None
        if not whole:
            raise InputError(f"{file}: record {place} cannot be read: the file was cut short; make it anew")
        return record

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self.opened)))


def records(pattern: str) -> Records:
    """All records of the files that match, in the order of the files' names. Reads no record, but where each file ends.

    Raises InputError where none match, where one is no ArrayRecord file, is cut short or has no records, and where
    grain is not installed.
    """
    _grain()
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    matching = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    files = tuple(Path(name) for name in matching if not Path(name).is_dir())
    if not files:
        raise InputError(f"--data arrayrecord:{pattern}: no file matches")
    sizes, opened = [], []
    for file in files:
        try:
            sizes.append(file.stat().st_size)
            opened.append(ArrayRecordDataSource(str(file)))
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(f"--data arrayrecord: {file} is no whole ArrayRecord file: {_reason(error)}") from None
        if not len(opened[-1]):
            raise InputError(f"--data arrayrecord: {file} has no records")
    return Records(files, tuple(sizes), tuple(opened))


def split(
    pattern: str, length: int, encode: Callable[[list[bytes]], list[np.ndarray]], seed: int
) -> tuple[Source, Source]:
    """Of the first nine tenths of the records to learn from, and of the last tenth, held out.

    encode: texts -> the ids of each. An example is a pair (ids, following ids), each [length].
    """
    found = records(pattern)
    cut = len(found) * 9 // 10
    if not cut:
        raise InputError(f"--data arrayrecord:{pattern}: there is one record; wants two at least, as one is held out")
    parts = (slice(0, cut), f"{cut:,} records"), (slice(cut, len(found)), f"the last {len(found) - cut:,} records")
    train, held_out = (
        Source(_examples(found, part, length, encode, seed, f"--data arrayrecord:{pattern}: {told}"), told)
        for part, told in parts
    )
    return train, held_out


def _examples(found: Records, part: slice, length: int, encode, seed: int, who: str) -> Callable:
    # grain takes epoch e of seed s for epoch 0 of seed s + e; so that no two seeds share an order, they are spread out.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    shuffled = _grain().MapDataset.source(found)[part].shuffle(seed=spread)
    size = PIECE * (length + 1)
    some = lambda number, random: piece(shuffled[number] + b"\n", size, random)

    def window(number: int, random: int, ids: np.ndarray) -> np.ndarray:
        if len(ids) > length:
            place = random % (len(ids) - length)
            return ids[place : place + length + 1]
        joined, have = [ids], len(ids)
        for following in range(number + 1, number + 2 * len(shuffled)):  # the whole of an epoch is among them
            joined += encode([some(following, 0)])
            have += len(joined[-1])
            if have > length:
                return np.concatenate(joined)[: length + 1]
        raise InputError(f"{who} together have fewer than the {length + 1} tokens that a length of {length} wants")

    def examples(numbers: np.ndarray):
        numbers = numbers.tolist()
        of_piece, of_window = zip(*(random_numbers(seed, number) for number in numbers), strict=True)
        return pairs(map(window, numbers, of_window, encode(list(map(some, numbers, of_piece)))))

    return examples


def pairs(windows: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, following ids), each [n, length], of windows of length + 1."""
    ids = np.stack([np.asarray(window, np.int32) for window in windows])
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def piece(record: bytes, size: int, random: int) -> bytes:
    """So many bytes of a record at a random place, a few more or less so that no letter of UTF-8 is cut; or all of it.

    Of a long record a tokenizer would read much more than an example has.
    """
    if len(record) <= size:
        return record

    def letter(place: int) -> int:  # bytes that go on with one begin with the bits 10, and are three at most
        ends = (at for at in range(place, place + 4) if at == len(record) or record[at] >> 6 != 2)
        return next(ends, place)

    place = random % (len(record) - size + 1)
    return record[letter(place) : letter(place + size)]


def random_numbers(seed: int, number: int) -> list[int]:
    """Two of 64 bits: of the block of Philox's counter (Salmon et al. 2011) at `number`, had without those before it.

    NumPy promises the bits of a generator to stay, and not what its distributions make of them.
    """
    return np.random.Philox(key=seed, counter=number).random_raw(2).tolist()


def write(file: Path, texts: Iterable[str | bytes]) -> int:
    """Writes an ArrayRecord file of texts, and says how many. All of it or nothing; raises InputError if it exists."""
    _grain()
    from array_record.python.array_record_module import ArrayRecordWriter

    file, count = Path(file), 0
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        if file.exists():
            raise FileExistsError(errno.EEXIST, "it exists, and nothing is overwritten: name another")
        partial.open("xb").close()  # says why it cannot be made, as the writer does not
        try:
            writer = ArrayRecordWriter(str(partial), "group_size:1")  # each record is read alone
            try:
                for text in texts:
                    writer.write(text.encode() if isinstance(text, str) else bytes(text))
                    count += 1
            finally:
                writer.close()
            os.link(partial, file)  # unlike a rename, it does not replace what appeared meanwhile
        finally:
            partial.unlink()
    except (OSError, RuntimeError, UnicodeError) as error:
        raise InputError(f"{file} cannot be written: {_reason(error)}") from None
    return count


def _grain():
    try:
        import array_record  # noqa: F401
        import grain
    except ImportError:
        raise InputError(
            "--data arrayrecord wants the packages grain and array-record, for Linux: "
            "pip install 'manual_backprop[records]'"
        ) from None
    return grain


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0][:160] or "it is cut short or damaged"
