"""The IDX format of MNIST: a magic number 00 00 08 nd (unsigned bytes, nd axes), nd big-endian sizes, then the bytes.

Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", file formats.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from manual_backprop.errors import InputError


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The bytes of an IDX file, gzipped or not, as an array of so many axes. Raises InputError that names the file."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"{path}: is a damaged or truncated gzip file; fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    header = 4 + 4 * axes
    if content[:4] != bytes([0, 0, 8, axes]):
        raise InputError(
            f"{path}: is no IDX file of {axes} axes: starts with {content[:4].hex(' ')}, wants 00 00 08 {axes:02x}"
        )
    if len(content) < header:
        raise InputError(f"{path}: is truncated: {len(content)} bytes, the header alone has {header}")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise InputError(
            f"{path}: holds {len(content) - header} bytes of data, its header promises {math.prod(shape)}: {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
