"""CIFAR-10 and CIFAR-100 in their binary formats: records of the labels, then 32×32 bytes of red, of green, of blue.

CIFAR-10 has one label a record; CIFAR-100 a coarse one of 20, which is not read, then a fine one of 100.
Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images", binary version.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from manual_backprop.errors import InputError

SIDE, CHANNELS = 32, 3


class Format(NamedTuple):
    """How a data set is published."""

    archive: str
    folder: str  # in the archive
    labels: int  # bytes of a record before the pixels, the class the last of them
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str  # a line for each class


FORMATS = {
    "cifar10": Format(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        1,
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
    ),
    "cifar100": Format(
        "cifar-100-binary.tar.gz", "cifar-100-binary", 2, ("train.bin",), ("test.bin",), "fine_label_names.txt"
    ),
}


def read(name: str, path: Path, names: tuple[str, ...]) -> tuple[list, list, tuple[str, ...]]:
    """Parts to learn from, parts held out, each (x [n, 32, 32, 3] uint8, labels [n], file), and the classes' names.

    path: the extracted folder, the .tar.gz, or a folder that has one of them.  names: those where no file has them.
    Raises InputError that names the file, for one that is missing, truncated or foreign.
    """
    form = FORMATS[name]
    inside = [path / form.folder, path / form.archive]
    path = next((each for each in inside if each.exists()), path)
    files = contents(path, (*form.train, *form.test, form.names))
    parts = [[_part(files, path, file, form.labels) for file in part] for part in (form.train, form.test)]
    if form.names in files:
        found = tuple(filter(None, map(str.strip, files[form.names].tobytes().decode("utf-8", "replace").split("\n"))))
        if len(found) != len(names):
            raise InputError(f"{path / form.names}: has {len(found)} names; wants {len(names)}, one for each class")
        names = found
    return *parts, names


def contents(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The bytes of those of the wanted files that a folder or a .tar.gz has. Nothing is unpacked to the disk."""
    try:
        if path.is_dir():
            return {file: np.fromfile(path / file, np.uint8) for file in wanted if (path / file).is_file()}
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            found = {
                file: np.frombuffer(archive.extractfile(member).read(), np.uint8)
                for member in archive
                if member.isfile() and (file := PurePosixPath(member.name).name) in wanted
            }
            while stream.read(1 << 20):  # to the checksum at the end
                pass
            return found
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"{path}: is no .tar.gz, or a damaged or truncated one; fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _part(files: dict[str, np.ndarray], path: Path, file: str, labels: int) -> tuple[np.ndarray, np.ndarray, str]:
    if file not in files:
        raise InputError(f"{path}: has no {file}")
    record = labels + CHANNELS * SIDE * SIDE
    if files[file].size % record:
        raise InputError(
            f"{path / file}: has {files[file].size:,} bytes, no whole number of records of {record:,}: "
            "it is truncated, or in another format"
        )
    records = files[file].reshape(-1, record)
    x = records[:, labels:].reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x), records[:, labels - 1], str(path / file)
