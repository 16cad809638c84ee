"""Pictures from IDX files and from a server: read right, or refused in one line that names the file."""

import gzip
import hashlib
import http.server
import re
import struct
import threading

import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.training import images
from manual_backprop.training.idx import read_idx


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def archive(folder, compress=True):
    """Real digits as MNIST's four files: enlarged to 28×28, in its format."""
    digits = images.digits()
    enlarge = np.kron(np.ones((1, 3, 3)), np.ones((1, 1, 1)))
    folder.mkdir(exist_ok=True)
    parts = {}
    for name, x, labels in (
        ("train", digits.train_x, digits.train_labels),
        ("t10k", digits.test_x, digits.test_labels),
    ):
        pictures = np.stack([np.kron(picture, enlarge[0]) for picture in x.reshape(-1, 8, 8)])
        pictures = np.pad(pictures, ((0, 0), (2, 2), (2, 2))) * 255
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
    assert digits.train_x.shape == (1438, 64) and digits.test_x.shape == (359, 64)
    assert digits.train_x.dtype == np.float32 and digits.train_labels.dtype == np.int32
    assert digits.train_x.min() == 0 and digits.train_x.max() == 1
    assert set(digits.train_labels) == set(digits.test_labels) == set(range(10))
    rows = {tuple(row) for row in digits.train_x}
    assert not any(tuple(row) in rows for row in digits.test_x)  # held out means held out


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read_gzipped_or_not(tmp_path, compress):
    loaded, digits = images.load("mnist", archive(tmp_path / "files", compress)), images.digits()
    assert loaded.shape == (28, 28) and loaded.train_x.shape == (1438, 784)
    np.testing.assert_array_equal(loaded.test_labels, digits.test_labels)
    centre = loaded.train_x.reshape(-1, 28, 28)[:, 3:27:3, 3:27:3].reshape(-1, 64)
    np.testing.assert_allclose(centre, digits.train_x, atol=1 / 255)


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


# ── downloads, from a server on this machine ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def served(folder, tmp_path, monkeypatch):
    """The archive on a server, its true hashes in the table, and an empty cache."""
    handler = lambda *args: QuietHandler(*args, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sha256 = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    entry = images.Archive(images.DIGITS, f"http://127.0.0.1:{server.server_port}/", sha256)
    monkeypatch.setitem(images.ARCHIVES, "mnist", entry)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield entry
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
