"""Labelled pictures: scikit-learn's 8×8 digits, which need no download, MNIST and Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from manual_backprop.errors import InputError, choose
from manual_backprop.training.idx import read_idx


class Images(NamedTuple):
    """Pictures as vectors of grey levels from 0 to 1, with integer labels."""

    train_x: np.ndarray  # [n, height · width], float32
    train_labels: np.ndarray  # [n], int32
    test_x: np.ndarray  # held out
    test_labels: np.ndarray
    shape: tuple[int, int]  # height, width
    names: tuple[str, ...]  # of the classes


class Archive(NamedTuple):
    """Where a data set's four IDX files are published: names of the classes, address, and sha256 of each file."""

    names: tuple[str, ...]
    address: str
    sha256: dict[str, str]


DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
ARCHIVES = {
    "mnist": Archive(
        DIGITS,
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            FILES[0]: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            FILES[1]: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            FILES[2]: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            FILES[3]: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Archive(
        CLOTHES,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            FILES[0]: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            FILES[1]: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            FILES[2]: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            FILES[3]: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def load(name: str, folder: Path | None = None) -> Images:
    """The data set `digits`, `mnist` or `fashion-mnist`.

    folder: where the IDX files are, gzipped or not; None: the user's cache folder, filled by a verified download.
    Raises InputError for an unknown name, a file that is missing, damaged or foreign, and a download that fails.
    """
    archive = choose("data", name, {"digits": None, **ARCHIVES})
    if archive is None:
        return digits()
    paths = [_local(folder, file) if folder else _fetched(name, file, archive) for file in FILES]
    train_images, train_labels, test_images, test_labels = (
        read_idx(path, axes) for path, axes in zip(paths, (3, 1, 3, 1), strict=True)
    )
    if train_images.shape[1:] != test_images.shape[1:]:
        raise InputError(
            f"{paths[2]}: pictures are {test_images.shape[1:]}, those of {paths[0]} {train_images.shape[1:]}"
        )
    for images, labels, path in ((train_images, train_labels, paths[1]), (test_images, test_labels, paths[3])):
        check_labels(labels, len(images), len(archive.names), str(path))
    return Images(
        _vectors(train_images, 255),
        train_labels.astype(np.int32),
        _vectors(test_images, 255),
        test_labels.astype(np.int32),
        train_images.shape[1:],
        archive.names,
    )


def digits() -> Images:
    """1,797 handwritten digits of 8×8 pixels (Alpaydin & Kaynak 1998, from scikit-learn); every fifth is held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, labels = _vectors(data.images, 16), data.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    return Images(x[train], labels[train], x[test], labels[test], data.images.shape[1:], DIGITS)


def check_labels(labels: np.ndarray, examples: int, classes: int, where: str) -> None:
    """Raises InputError unless there is one integer label from 0 to classes - 1 for each example, and an example."""
    if examples == 0:
        raise InputError(f"{where}: there are no examples; wants at least one")
    if len(labels) != examples:
        raise InputError(f"{where}: {len(labels)} labels for {examples} examples; wants as many")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels are {labels.dtype}; wants integers")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise InputError(f"{where}: label {labels[wrong]} of example {wrong} is outside 0 … {classes - 1}")


def _vectors(images: np.ndarray, white: int) -> np.ndarray:
    return (images.reshape(len(images), -1) / white).astype(np.float32)


def _local(folder: Path, file: str) -> Path:
    for path in (folder / file, folder / file.removesuffix(".gz")):
        if path.exists():
            return path
    raise InputError(f"{folder}: has no {file}, gzipped or not")


def _fetched(name: str, file: str, archive: Archive) -> Path:
    import pooch

    folder = Path(pooch.os_cache("manual_backprop")) / name
    pooch.get_logger().setLevel("WARNING")
    address, sha256 = archive.address + file, archive.sha256[file]
    try:
        downloader = pooch.HTTPDownloader(timeout=30)
        return Path(pooch.retrieve(address, f"sha256:{sha256}", fname=file, path=folder, downloader=downloader))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; another hash is a ValueError
        reason = str(error).split("\n")[0][:120]
        raise InputError(
            f"{file} cannot be downloaded from {archive.address} ({type(error).__name__}: {reason}); "
            f"put the file with sha256 {sha256} into {folder}, or name your own folder with --data-dir"
        ) from None
