"""Pictures of one's own: a folder for each class, with PNG and JPEG files in it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from manual_backprop.errors import InputError, want_count

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "CMYK": "RGB"}  # what Pillow reads, and what becomes of it
COLOURS = {1: "grey", 3: "in colour"}


def read(folder: Path, size: int | None = None) -> tuple[list, list, tuple[str, ...]]:
    """A part to learn from, a part held out, each [(x [n, height, width, channels] uint8, labels, where)], and names.

    folder: has train/CLASS/… and test/CLASS/…; or CLASS/…, of which every fifth file is held out, the first of five.
    Classes and files are in the order of their names; other files, and hidden ones, are left out.
    size: each picture's shorter side is brought to that many pixels, and a square cut from its middle; None: as it is.
    Raises InputError that names the folder or the file: for fewer than two classes, an empty one, classes that train
    and test do not share, a damaged file, pictures of several sizes, grey ones among those in colour.
    """
    if size is not None:
        want_count("--size", size)
    train, test = folder / "train", folder / "test"
    if train.is_dir() and test.is_dir():
        groups = classes(train), classes(test)
        if differ := sorted(set(groups[0]) ^ set(groups[1])):
            raise InputError(f"{folder}: the class {differ[0]} is in one of train and test alone; wants it in both")
    elif train.is_dir() or test.is_dir():
        raise InputError(f"{folder}: has one of train and test alone; wants both, or a folder for each class")
    else:
        groups = _divided(classes(folder))
    paths = [list(chain(*group.values())) for group in groups]
    x = pictures([*paths[0], *paths[1]], size)
    labels = [np.repeat(np.arange(len(group)), [len(files) for files in group.values()]) for group in groups]
    middle = len(paths[0])
    return [(x[:middle], labels[0], str(folder))], [(x[middle:], labels[1], str(folder))], tuple(groups[0])


def classes(folder: Path) -> dict[str, list[Path]]:
    """The picture files of each class, sorted. Raises InputError."""
    try:
        found = {
            each.name: sorted(file for file in each.iterdir() if _is_picture(file))
            for each in sorted(folder.iterdir())
            if each.is_dir() and not each.name.startswith(".")
        }
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None
    for name, files in found.items():
        if not files:
            raise InputError(f"{folder / name}: has no picture; wants {', '.join(SUFFIXES)} files in each class")
    if len(found) < 2:
        raise InputError(
            f"{folder}: has {len(found) or 'no'} class{'es' * (not found)}; wants a folder for each of two or more"
        )
    return found


def pictures(paths: Sequence[Path], size: int | None) -> np.ndarray:
    """[n, height, width, channels], uint8. Raises InputError for a file that is damaged, or unlike the first."""
    with ThreadPoolExecutor() as pool, closing(pool.map(partial(picture, size=size), paths)) as read:
        first = next(read)
        x = np.empty((len(paths), *first.shape), np.uint8)
        for i, (path, one) in enumerate(zip(paths, chain([first], read), strict=True)):
            if one.shape[-1] != first.shape[-1]:
                raise InputError(
                    f"{path}: is {COLOURS[one.shape[-1]]}, but {paths[0]} {COLOURS[first.shape[-1]]}; convert one kind"
                )
            if one.shape != first.shape:
                here, there = (f"{height}×{width} pixels" for height, width, _ in (one.shape, first.shape))
                raise InputError(f"{path}: has {here}, but {paths[0]} {there}; --size brings them to one size")
            x[i] = one
    return x


def picture(path: Path, size: int | None = None) -> np.ndarray:
    """[height, width, channels], uint8; one channel where the file is grey. Raises InputError that names the file."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InputError("pictures are read with Pillow; install manual-backprop[train]") from None
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode not in MODES:
                raise InputError(f"{path}: is of Pillow's mode {image.mode}; wants 8 bits a pixel, grey or in colour")
            upright = ImageOps.exif_transpose(image).convert(MODES[image.mode])
            if size is not None:
                upright = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        raise InputError(f"{path}: is no PNG or JPEG picture, or a damaged or truncated one") from None
    return np.asarray(upright).reshape(upright.height, upright.width, -1)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _divided(found: dict[str, list[Path]]) -> tuple[dict, dict]:
    """To learn from, and held out."""
    for files in found.values():
        if len(files) < 2:
            raise InputError(f"{files[0].parent}: has 1 picture; wants at least 2, one of them to be held out")
    learnt = {name: [file for i, file in enumerate(files) if i % 5] for name, files in found.items()}
    return learnt, {name: files[::5] for name, files in found.items()}
