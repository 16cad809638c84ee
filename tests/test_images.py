"""Pictures from files, a folder and a server: read right, or refused in one line that names the file."""

import gzip
import hashlib
import http.server
import re
import struct
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manual_backprop as mb
from manual_backprop.training import cifar, image_folder, images
from manual_backprop.training.idx import read_idx


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def archive(folder, compress=True):
    """Real digits as MNIST's four files: enlarged to 28×28, in its format."""
    digits = images.enlarged(images.digits(), 24)
    folder.mkdir(exist_ok=True)
    parts = {}
    for name, x, labels in (
        ("train", digits.train_x, digits.train_labels),
        ("t10k", digits.test_x, digits.test_labels),
    ):
        pictures = np.pad(x[..., 0], ((0, 0), (2, 2), (2, 2)))
        parts[f"{name}-images-idx3-ubyte"], parts[f"{name}-labels-idx1-ubyte"] = idx(pictures), idx(labels)
    for name, content in parts.items():
        path = folder / f"{name}{'.gz' if compress else ''}"
        path.write_bytes(gzip.compress(content, mtime=0) if compress else content)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return archive(tmp_path_factory.mktemp("idx") / "mnist")


def test_the_embedded_digits():
    digits = images.load("digits")
    assert digits.train_x.shape == (1438, 8, 8, 1) and digits.test_x.shape == (359, 8, 8, 1)
    assert digits.train_x.dtype == np.uint8 and digits.train_labels.dtype == np.int32
    assert digits.train_x.min() == 0 and digits.train_x.max() == digits.white == 16
    assert digits.shape == (8, 8)
    assert set(digits.train_labels) == set(digits.test_labels) == set(range(10))
    rows = {picture.tobytes() for picture in digits.train_x}
    assert not any(picture.tobytes() in rows for picture in digits.test_x)  # held out means held out


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read_gzipped_or_not(tmp_path, compress):
    loaded, digits = images.load("mnist", archive(tmp_path / "files", compress)), images.enlarged(images.digits(), 24)
    assert loaded.shape == (28, 28) and loaded.train_x.shape == (1438, 28, 28, 1) and loaded.white == 255
    np.testing.assert_array_equal(loaded.test_labels, digits.test_labels)
    np.testing.assert_array_equal(loaded.train_x[:, 2:26, 2:26], digits.train_x)


def test_vectors_are_the_levels_over_white():
    x = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
    made = images.vectors(x, 255)
    assert made.dtype == np.float32 and made.shape == (2, 45)
    np.testing.assert_array_equal(made, (x.reshape(2, 45) / 255).astype(np.float32))
    np.testing.assert_array_equal(images.vectors(x[:1] % 17, 16), x[:1].reshape(1, 45) % 17 / np.float32(16))


def of_grey(x, white):
    labels = np.zeros(len(x), np.int32)
    return images.Images(x, labels, x[:1], labels[:1], white, ("a",))


def test_enlarged_by_repeating():
    x = np.random.default_rng(0).integers(0, 17, (3, 5, 5, 2)).astype(np.uint8)
    made = images.enlarged(of_grey(x, 16), 15, smooth=False)
    assert made.white == 16 and made.test_x.shape == (1, 15, 15, 2) and made.train_x.dtype == np.uint8
    np.testing.assert_array_equal(made.train_x, np.kron(x, np.ones((1, 3, 3, 1))))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_enlarged_smoothly_as_pillow_does(factor):
    """Its filter is the same tent; it rounds after each axis, so a level of difference is due to that."""
    x = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 1)).astype(np.uint8)
    made = images.enlarged(of_grey(x, 255), 5 * factor).train_x
    of = lambda one: Image.fromarray(one[..., 0]).resize((5 * factor,) * 2, Image.Resampling.BILINEAR)
    theirs = np.stack([np.asarray(of(one)) for one in x])[..., None]
    assert np.abs(made.astype(int) - theirs).max() <= 1


def test_enlarged_smoothly_keeps_black_and_white():
    x = np.zeros((2, 5, 5, 1), np.uint8)
    x[0] = 16
    made = images.enlarged(of_grey(x, 16), 10)
    assert made.white == 255 and (made.train_x[0] == 255).all() and (made.train_x[1] == 0).all()


def test_a_size_that_is_no_multiple():
    with pytest.raises(mb.InputError, match="--size 30: the pictures have 8×8 pixels; wants a multiple of that"):
        images.load("digits", size=30)
    with pytest.raises(mb.InputError, match="size is 0; wants a whole number, at least 1"):
        images.load("digits", size=0)
    assert images.load("digits", size=8).white == 16
    assert images.load("digits", size=32).shape == (32, 32)


FILE = "train-images-idx3-ubyte.gz"
LABELS = "t10k-labels-idx1-ubyte.gz"


def damaged(folder, tmp_path, name, change):
    """A copy of the archive with one file changed: its content, decompressed, or None to remove it."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.name != name:
            (copy / path.name).write_bytes(content)
        elif (changed := change(content)) is not None:
            (copy / path.name).write_bytes(changed)
    return copy


def unzipped(change):
    return lambda content: gzip.compress(change(gzip.decompress(content)))


DAMAGES = {
    "missing": (FILE, lambda content: None, "has no train-images-idx3-ubyte.gz, gzipped or not"),
    "truncated gzip": (FILE, lambda content: content[:1000], "is a damaged or truncated gzip file"),
    "bit flipped": (FILE, lambda content: content[:99] + bytes([content[99] ^ 64]) + content[100:], "damaged or truncated gzip"),
    "truncated data": (FILE, unzipped(lambda c: c[:-1]), "bytes of data, its header promises 1127392: (1438, 28, 28)"),
    "truncated header": (FILE, unzipped(lambda c: c[:9]), "is truncated: 9 bytes"),
    "empty": (FILE, lambda content: b"", "is no IDX file of 3 axes: starts with , wants 00 00 08 03"),
    "foreign": (FILE, lambda content: b"\x89PNG\r\n", "is no IDX file of 3 axes: starts with 89 50 4e 47"),
    "labels for images": (FILE, unzipped(lambda c: idx(np.zeros(7))), "starts with 00 00 08 01, wants 00 00 08 03"),
    "too few labels": (LABELS, unzipped(lambda c: idx(np.zeros(7))), "7 labels for 359 examples"),
    "label out of range": (LABELS, unzipped(lambda c: c[:-1] + b"\x0b"), "label 11 of example 358 is outside 0 … 9"),
    "no examples": (LABELS, unzipped(lambda c: idx(np.zeros(0))), "0 labels for 359 examples"),
    "pictures of another size": (
        "t10k-images-idx3-ubyte.gz",
        unzipped(lambda c: idx(np.zeros((359, 8, 8)))),
        "pictures are (8, 8), those of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_archive_is_refused_by_the_files_name(folder, tmp_path, name):
    file, change, message = DAMAGES[name]
    with pytest.raises(mb.InputError) as raised:
        images.load("mnist", damaged(folder, tmp_path, file, change))
    assert message in str(raised.value)
    assert file in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(mb.InputError, match="cannot be read: Is a directory"):
        read_idx(tmp_path, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, -1]), "label -1 of example 1 is outside 0 … 9"),
        (np.array([0, 10]), "label 10 of example 1"),
        (np.array([0.0, 1.0]), "labels are float64; wants integers"),
        (np.array([0]), "1 labels for 2 examples"),
    ],
    ids=["negative", "too large", "float", "too few"],
)
def test_labels_are_checked_where_they_are_loaded(labels, message):
    with pytest.raises(mb.InputError, match=re.escape(message)):
        images.check_labels(labels, 2, 10, "labels.gz")


def test_an_empty_data_set_is_refused():
    with pytest.raises(mb.InputError, match="there are no examples"):
        images.check_labels(np.zeros(0, int), 0, 10, "labels.gz")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(mb.InputError, match="did you mean 'mnist'"):
        images.load("mnits")


# ── CIFAR ────────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = {"cifar10": [f"name {i}" for i in range(10)], "cifar100": [f"name {i}" for i in range(100)]}


def records(x, labels, coarse=None) -> bytes:
    """The published format: of each picture its labels, then all red bytes, all green, all blue, row after row."""
    out = b""
    for i, picture in enumerate(x):
        out += b"" if coarse is None else bytes([coarse[i]])
        out += bytes([labels[i]])
        for channel in range(3):
            for row in range(32):
                out += bytes(int(picture[row, column, channel]) for column in range(32))
    return out


def made_cifar(folder: Path, name: str, examples: int = 3):
    """Files with known pixels, and those pixels: {file: (x, labels)}."""
    rng, made = np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    form = cifar.FORMATS[name]
    for i, file in enumerate((*form.train, *form.test)):
        x = rng.integers(0, 256, (examples + i, 32, 32, 3)).astype(np.uint8)
        labels = rng.integers(0, len(NAMES[name]), examples + i)
        labels[0] = len(NAMES[name]) - 1
        coarse = None if name == "cifar10" else rng.integers(20, size=examples + i)
        (folder / file).write_bytes(records(x, labels, coarse))
        made[file] = x, labels
    (folder / form.names).write_text("\n".join(NAMES[name]) + "\n\n")  # as published, with an empty line at the end
    return made


def packed(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("way", ["folder", "parent", "archive", "folder of the archive"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_comes_back_as_it_was_written(tmp_path, name, way):
    form = cifar.FORMATS[name]
    made = made_cifar(tmp_path / form.folder, name)
    place = tmp_path / form.folder
    if way == "parent":
        place = tmp_path
    if "archive" in way:
        (tmp_path / "packed").mkdir()
        place = packed(place, tmp_path / "packed" / form.archive)
        place = place.parent if way.startswith("folder") else place
    loaded = images.load(name, place)
    assert loaded.train_x.dtype == np.uint8 and loaded.train_labels.dtype == np.int32 and loaded.white == 255
    assert loaded.train_x.flags.c_contiguous and loaded.shape == (32, 32) and list(loaded.names) == NAMES[name]
    np.testing.assert_array_equal(loaded.train_x, np.concatenate([made[file][0] for file in form.train]))
    np.testing.assert_array_equal(loaded.train_labels, np.concatenate([made[file][1] for file in form.train]))
    np.testing.assert_array_equal(loaded.test_x, made[form.test[0]][0])
    np.testing.assert_array_equal(loaded.test_labels, made[form.test[0]][1])


def test_cifar_without_its_names(tmp_path):
    for name, last in (("cifar10", "truck"), ("cifar100", "99")):
        made_cifar(tmp_path / name, name)
        (tmp_path / name / cifar.FORMATS[name].names).unlink()
        loaded = images.load(name, tmp_path / name)
        assert loaded.names[-1] == last and len(loaded.names) == len(NAMES[name])


WHOLE = "has 9,218 bytes, no whole number of records of 3,073: it is truncated, or in another format"
CIFAR_DAMAGES = {
    "missing": ("data_batch_3.bin", lambda content: None, "has no data_batch_3.bin"),
    "truncated": ("data_batch_1.bin", lambda content: content[:-1], WHOLE),
    "foreign": ("test_batch.bin", lambda content: b"\x89PNG\r\n", "has 6 bytes, no whole number of records"),
    "empty": ("data_batch_1.bin", lambda content: b"", "there are no examples"),
    "class that does not fit": (
        "data_batch_1.bin", lambda content: content[:3073] + b"\x0c" + content[3074:], "label 12 of example 1 is outside 0 … 9",
    ),
    "names": ("batches.meta.txt", lambda content: b"cat\ndog\n", "has 2 names; wants 10, one for each class"),
}  # fmt: skip


@pytest.mark.parametrize("name", CIFAR_DAMAGES)
def test_a_damaged_cifar_is_refused_by_the_files_name(tmp_path, name):
    file, change, message = CIFAR_DAMAGES[name]
    made_cifar(tmp_path / "files", "cifar10")
    changed = change((tmp_path / "files" / file).read_bytes())
    (tmp_path / "files" / file).unlink()
    if changed is not None:
        (tmp_path / "files" / file).write_bytes(changed)
    for place in (tmp_path / "files", packed(tmp_path / "files", tmp_path / "cifar.tar.gz")):
        with pytest.raises(mb.InputError) as raised:
            images.load("cifar10", place)
        assert message in str(raised.value) and file in str(raised.value) and str(place) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_cifar100_is_no_cifar10(tmp_path):
    """Records of one are not taken for those of the other, under its file names."""
    made_cifar(tmp_path / "100", "cifar100")
    with pytest.raises(mb.InputError, match=r"has no data_batch_1\.bin"):
        images.load("cifar10", tmp_path / "100")
    for i in range(1, 6):
        (tmp_path / "100" / f"data_batch_{i}.bin").write_bytes((tmp_path / "100" / "train.bin").read_bytes())
    (tmp_path / "100" / "test_batch.bin").write_bytes((tmp_path / "100" / "test.bin").read_bytes())
    with pytest.raises(mb.InputError, match="no whole number of records of 3,073"):
        images.load("cifar10", tmp_path / "100")


def test_what_is_no_archive(tmp_path):
    made_cifar(tmp_path / "files", "cifar10")
    whole = packed(tmp_path / "files", tmp_path / "whole.tar.gz").read_bytes()
    path = tmp_path / "cifar.tar.gz"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 64
    for content in (b"", b"no archive", gzip.compress(b"no archive"), whole[: len(whole) // 2], whole[:9], flipped):
        path.write_bytes(content)
        with pytest.raises(mb.InputError, match=r"cifar\.tar\.gz: is no \.tar\.gz, or a damaged or truncated one"):
            images.load("cifar10", path)
    with pytest.raises(mb.InputError, match="nowhere: cannot be read: No such file or directory"):
        images.load("cifar10", tmp_path / "nowhere")


def test_an_archive_writes_nothing_and_follows_no_link(tmp_path):
    """A member that is a link to a file outside is not there."""
    made_cifar(tmp_path / "files", "cifar10")
    (tmp_path / "files" / "data_batch_2.bin").rename(tmp_path / "outside.bin")
    (tmp_path / "files" / "data_batch_2.bin").symlink_to(tmp_path / "outside.bin")
    (tmp_path / "alone").mkdir()
    path = packed(tmp_path / "files", tmp_path / "alone" / "cifar.tar.gz")
    with pytest.raises(mb.InputError, match=r"has no data_batch_2\.bin"):
        images.load("cifar10", path)
    assert [each.name for each in (tmp_path / "alone").iterdir()] == ["cifar.tar.gz"]


# ── a folder of pictures ─────────────────────────────────────────────────────────────────────────────────────────────


def picture_of(path: Path, seed: int, shape=(5, 7, 3), **options) -> np.ndarray:
    x = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, **options)
    return x


def of_classes(folder: Path, classes=("dog", "ant", "cat"), files: int = 6, **options) -> dict:
    return {
        (name, i): picture_of(folder / name / f"{i}.png", 10 * k + i, **options)
        for k, name in enumerate(classes)
        for i in range(files)
    }


def test_a_folder_with_train_and_test(tmp_path):
    learnt, held = of_classes(tmp_path / "train", files=4), of_classes(tmp_path / "test", files=2)
    loaded = images.load("folder", tmp_path)
    assert loaded.names == ("ant", "cat", "dog") and loaded.white == 255 and loaded.shape == (5, 7)
    assert (
        loaded.train_labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2] and loaded.train_labels.dtype == np.int32
    )
    np.testing.assert_array_equal(loaded.train_x, [learnt[name, i] for name in loaded.names for i in range(4)])
    np.testing.assert_array_equal(loaded.test_x, [held[name, i] for name in loaded.names for i in range(2)])


def test_a_folder_of_classes_holds_every_fifth_out(tmp_path):
    made = of_classes(tmp_path, ("b", "a"))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / ".hidden.png").write_text("no picture")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README").write_text("no class")
    loaded = images.load("folder", tmp_path)
    assert loaded.names == ("a", "b")
    np.testing.assert_array_equal(loaded.test_x, [made[name, i] for name in "ab" for i in (0, 5)])
    np.testing.assert_array_equal(loaded.train_x, [made[name, i] for name in "ab" for i in (1, 2, 3, 4)])
    assert loaded.test_labels.tolist() == [0, 0, 1, 1]


def test_grey_pictures_have_one_channel(tmp_path):
    made = of_classes(tmp_path, shape=(5, 7))
    loaded = images.load("folder", tmp_path)
    assert loaded.train_x.shape == (12, 5, 7, 1)
    np.testing.assert_array_equal(loaded.test_x[0, ..., 0], made["ant", 0])


def test_pictures_are_brought_to_a_size(tmp_path):
    """Shorter side first, then the middle: of bars left, middle, right the middle one is what stays."""
    bars = np.zeros((40, 120, 3), np.uint8)
    bars[:, :40, 0] = bars[:, 40:80, 1] = bars[:, 80:, 2] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(bars).save(tmp_path / name / "0.png")
        Image.fromarray(bars.transpose(1, 0, 2)[::2, ::2]).save(tmp_path / name / "1.PNG")
    loaded = images.load("folder", tmp_path, 10)
    assert loaded.train_x.shape == (2, 10, 10, 3) and loaded.test_x.shape == (2, 10, 10, 3)
    for x in (loaded.train_x, loaded.test_x):
        inner = x[:, 1:-1, 1:-1]
        assert (inner[..., 1] > 250).all() and (inner[..., [0, 2]] < 5).all()


def test_jpeg_palettes_and_the_cameras_side(tmp_path):
    x = np.kron(np.random.default_rng(0).integers(0, 256, (2, 3, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera stood on its side
    Image.fromarray(x).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=turned)
    read = image_folder.picture(tmp_path / "a.jpg")
    assert read.shape == (48, 32, 3)
    np.testing.assert_allclose(read, np.rot90(x, -1), atol=6)
    Image.fromarray(x).quantize(6).save(tmp_path / "a.png")
    assert image_folder.picture(tmp_path / "a.png").shape == (32, 48, 3)


def write(place: str, content: bytes):
    def change(folder: Path):
        (folder / place).write_bytes(content)

    return change


def saved(place: str, *, mode="RGB", size=(7, 5)):
    def change(folder: Path):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(folder / place)

    return change


def cut_short(folder: Path):
    path = folder / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:150])


def empty_class(folder: Path):
    (folder / "bee").mkdir()
    (folder / "bee" / "notes.txt").write_text("no picture")


def one_class(folder: Path):
    for name in ("dog", "cat"):
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()


def no_class(folder: Path):
    one_class(folder)
    (folder / "ant").rename(folder / ".ant")


FOLDER_MISTAKES = {
    "foreign": (write("cat/3.png", b"GIF89a nothing"), "cat/3.png: is no PNG or JPEG picture, or a damaged or truncated one"),
    "truncated": (cut_short, "cat/3.png: is no PNG or JPEG picture, or a damaged or truncated one"),
    "empty file": (write("cat/3.png", b""), "cat/3.png: is no PNG or JPEG picture"),
    "other size": (saved("cat/3.png", size=(8, 5)), "cat/3.png: has 5×8 pixels, but {}/ant/1.png 5×7 pixels; --size brings"),
    "grey among colour": (saved("dog/2.png", mode="L"), "dog/2.png: is grey, but {}/ant/1.png in colour"),
    "transparent": (saved("dog/2.png", mode="RGBA"), "dog/2.png: is of Pillow's mode RGBA; wants 8 bits a pixel"),
    "16 bits": (saved("dog/2.png", mode="I;16"), "dog/2.png: is of Pillow's mode I;16; wants 8 bits"),
    "empty class": (empty_class, "/bee: has no picture; wants .png, .jpg, .jpeg files"),
    "one picture": (saved("bee/0.png"), "/bee: has 1 picture; wants at least 2"),
    "one class": (one_class, "has 1 class; wants a folder for each of two or more"),
    "no class": (no_class, "has no classes; wants a folder for each of two or more"),
    "train alone": (saved("train/a/0.png"), "has one of train and test alone; wants both"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDER_MISTAKES)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, name):
    change, message = FOLDER_MISTAKES[name]
    of_classes(tmp_path)
    change(tmp_path)
    with pytest.raises(mb.InputError) as raised:
        images.load("folder", tmp_path)
    assert message.format(tmp_path) in str(raised.value) and str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_train_and_test_have_the_same_classes(tmp_path):
    of_classes(tmp_path / "train")
    of_classes(tmp_path / "test", ("ant", "cat", "bee"))
    with pytest.raises(mb.InputError, match="the class bee is in one of train and test alone; wants it in both"):
        images.load("folder", tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(mb.InputError, match="nowhere: cannot be read: No such file or directory"):
        images.load("folder", tmp_path / "nowhere")
    with pytest.raises(mb.InputError, match="--data folder: wants --data-dir"):
        images.load("folder")
    of_classes(tmp_path)
    with pytest.raises(mb.InputError, match="--size is 0; wants a whole number, at least 1"):
        images.load("folder", tmp_path, 0)


# ── downloads, from a server on this machine ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def served(folder, tmp_path, monkeypatch):
    """The archive on a server, its true hashes in the table, and an empty cache."""
    sha256 = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(folder) as address:
        entry = images.Archive(images.DIGITS, address, sha256)
        monkeypatch.setitem(images.ARCHIVES, "mnist", entry)
        yield entry


@contextmanager
def serving(folder: Path):
    """The folder's files at an address of this machine."""
    handler = lambda *args: QuietHandler(*args, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_download_is_verified_and_kept(served, tmp_path, monkeypatch):
    first = images.load("mnist")
    assert len(list((tmp_path / "cache" / "manual_backprop" / "mnist").iterdir())) == 4
    unreachable = served._replace(address="http://127.0.0.1:9/")
    monkeypatch.setitem(images.ARCHIVES, "mnist", unreachable)
    np.testing.assert_array_equal(images.load("mnist").train_x, first.train_x)


def test_a_download_with_another_hash_is_refused(served, monkeypatch):
    wrong = served._replace(sha256={**served.sha256, FILE: "0" * 64})
    monkeypatch.setitem(images.ARCHIVES, "mnist", wrong)
    with pytest.raises(mb.InputError) as raised:
        images.load("mnist")
    assert FILE in str(raised.value) and "0" * 64 in str(raised.value)


def test_offline_the_error_names_file_hash_and_place(served, tmp_path, monkeypatch):
    monkeypatch.setitem(images.ARCHIVES, "mnist", served._replace(address="http://127.0.0.1:9/"))
    with pytest.raises(mb.InputError) as raised:
        images.load("mnist")
    message = str(raised.value)
    assert FILE in message and served.sha256[FILE] in message
    assert str(tmp_path / "cache" / "manual_backprop" / "mnist") in message and "--data-dir" in message
    assert "\n" not in message


def test_cifar_is_downloaded_and_verified(tmp_path, monkeypatch):
    made = made_cifar(tmp_path / "site" / "cifar-10-batches-bin", "cifar10")
    path = packed(tmp_path / "site" / "cifar-10-batches-bin", tmp_path / "site" / "cifar-10-binary.tar.gz")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving(tmp_path / "site") as address:
        entry = images.ARCHIVES["cifar10"]._replace(address=address, sha256={path.name: sha256})
        monkeypatch.setitem(images.ARCHIVES, "cifar10", entry)
        loaded = images.load("cifar10")
        np.testing.assert_array_equal(loaded.test_x, made["test_batch.bin"][0])
        monkeypatch.setitem(images.ARCHIVES, "cifar10", entry._replace(sha256={path.name: "0" * 64}))
        with pytest.raises(mb.InputError, match=r"cifar-10-binary\.tar\.gz cannot be downloaded"):
            images.load("cifar10")
