"""Labelled pictures, as bytes: digits that need no download, MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from manual_backprop.errors import InputError, choose, want_count
from manual_backprop.training import cifar, image_folder
from manual_backprop.training.idx import read_idx


class Images(NamedTuple):
    """Pictures as levels from 0 to `white`, with integer labels. `vectors` makes numbers of them."""

    train_x: np.ndarray  # [n, height, width, channels], uint8
    train_labels: np.ndarray  # [n], int32
    test_x: np.ndarray  # held out
    test_labels: np.ndarray
    white: int  # the level that is 1.0
    names: tuple[str, ...]  # of the classes

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.train_x.shape[1:3]


class Archive(NamedTuple):
    """Where a data set's files are published: names of the classes, address, and sha256 of each file."""

    names: tuple[str, ...]
    address: str
    sha256: dict[str, str]


DIGITS = tuple("0123456789")
GREY = ("digits", "mnist", "fashion-mnist")  # the data sets of one channel
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
    "cifar10": Archive(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    ),
    "cifar100": Archive(
        tuple(map(str, range(100))),  # their names are in the archive
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
    ),
}


def load(name: str, folder: Path | None = None, size: int | None = None) -> Images:
    """The data set `digits`, `mnist`, `fashion-mnist`, `cifar10` or `cifar100`, or `folder`: pictures of one's own.

    folder: where the files are: IDX files, gzipped or not; CIFAR's extracted folder or its .tar.gz; or the folder that
    `image_folder.read` describes. None: the user's cache folder, filled by a verified download.
    size: height and width that they shall have: those of a folder are resized, others `enlarged`.
    Raises InputError for an unknown name, a file that is missing, damaged or foreign, and a download that fails.
    """
    archive = choose("data", name, {"digits": None, "folder": None, **ARCHIVES})
    if name == "folder":
        if folder is None:
            raise InputError("--data folder: wants --data-dir, the folder with the pictures")
        return _gathered(*image_folder.read(folder, size), 255)
    if archive is None:
        images = digits()
    elif name in cifar.FORMATS:
        (file,) = archive.sha256
        images = _gathered(*cifar.read(name, folder or _fetched(name, file, archive), archive.names), 255)
    else:
        paths = [_local(folder, file) if folder else _fetched(name, file, archive) for file in FILES]
        train, test = ((read_idx(x, 3)[..., None], read_idx(y, 1), str(y)) for x, y in (paths[:2], paths[2:]))
        if train[0].shape[1:] != test[0].shape[1:]:
            raise InputError(
                f"{paths[2]}: pictures are {test[0].shape[1:3]}, those of {paths[0]} {train[0].shape[1:3]}"
            )
        images = _gathered([train], [test], archive.names, 255)
    return images if size is None else enlarged(images, size)


def digits() -> Images:
    """1,797 handwritten digits of 8×8 pixels (Alpaydin & Kaynak 1998, from scikit-learn); every fifth is held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, labels = data.images.astype(np.uint8)[..., None], data.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    return Images(x[train], labels[train], x[test], labels[test], 16, DIGITS)


def vectors(x: np.ndarray, white: int) -> np.ndarray:
    """Levels [n, height, width, channels] → numbers from 0 to 1, [n, pixels], float32."""
    return (np.arange(white + 1) / white).astype(np.float32)[x.reshape(len(x), -1)]


def enlarged(images: Images, size: int, smooth: bool = True) -> Images:
    """The pictures with so many pixels a side, a whole multiple.

    smooth: linear in between, with 255 for white, so that there are levels in between; else each pixel is repeated.
    Raises InputError for another size.
    """
    height, width = images.shape
    if height != width or want_count("size", size) % height:
        raise InputError(f"--size {size}: the pictures have {height}×{width} pixels; wants a multiple of that, square")
    if size == height:
        return images
    if smooth:
        # Where the new pixels' centres lie among the old ones, and what each old one counts there.
        places = np.clip((np.arange(size) + 0.5) * height / size - 0.5, 0, height - 1)
        weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(height))).astype(np.float32)
        scale = np.float32(255 / images.white)
        grow = lambda x: np.rint(scale * np.einsum("ip,npqc,jq->nijc", weights, x, weights, optimize=True))
    else:
        grow = lambda x: x.repeat(size // height, 1).repeat(size // height, 2)
    return images._replace(
        train_x=grow(images.train_x).astype(np.uint8),
        test_x=grow(images.test_x).astype(np.uint8),
        white=255 if smooth else images.white,
    )


def _gathered(train: Sequence[tuple], test: Sequence[tuple], names: tuple[str, ...], white: int) -> Images:
    """Of the parts of each: (x, labels, the file that names them in an error)."""
    for x, labels, where in (*train, *test):
        check_labels(labels, len(x), len(names), where)
    arrays = []
    for parts in (train, test):
        x, labels, _ = zip(*parts, strict=True)
        arrays += [np.concatenate(x) if len(x) > 1 else x[0], np.concatenate(labels).astype(np.int32)]
    return Images(*arrays, white, names)


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
