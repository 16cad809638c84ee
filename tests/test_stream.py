"""Data that no device holds: the same batches always, read ahead in order, and every damage one line."""

import ast
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from jax.sharding import NamedSharding, SingleDeviceSharding

import manual_backprop as mb
from manual_backprop.training import records, text
from manual_backprop.training.sharding import axes, mesh_of, of_batch
from manual_backprop.training.stream import Source, Stream, prefetched

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="array-record is for Linux")


def counted(numbers):
    """Examples that show their numbers."""
    return {"x": np.stack([numbers, numbers + 0.5], 1).astype(np.float32), "label": numbers.astype(np.int32)}


PROSE = "To see the backward pass, write it: ∂C/∂w = ∂C/∂a · ∂a/∂z · ∂z/∂w.\r\n\t漢字 and é cost more bytes.\n" * 40


def byte_pairs_of(prose: str, vocabulary: int):
    """A tokenizer whose smallest tokens are bytes, so that it has all texts, learned from one."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([prose], trainer)
    return tokenizer


def stream_of(examples=counted, batch_size=8, sharding=None, ahead=2):
    return Stream(Source(examples, "numbers"), batch_size, sharding or SingleDeviceSharding(jax.devices()[0]), ahead)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


# ── batches and chunks ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_a_function_of_the_step():
    stream = stream_of()
    np.testing.assert_array_equal(stream.batch(3)["label"], np.arange(24, 32))
    np.testing.assert_array_equal(stream.batch(np.int32(3), slice(2, 5))["x"], stream.batch(3)["x"][2:5])
    like = stream.like()
    assert (like["x"].shape, like["x"].dtype, like["label"].shape) == ((8, 2), jnp.float32, (8,))


@pytest.mark.parametrize(("ahead", "ends"), [(1, [3, 6, 9, 11]), (2, [11]), (5, [4, 8, 11]), (9, range(1, 12))])
def test_chunks_are_the_batches_in_order_however_they_are_cut(ahead, ends):
    stream = stream_of(ahead=ahead)
    chunks = list(stream.chunks(0, ends))
    assert [len(chunk["label"]) for chunk in chunks] == list(np.diff([0, *ends]))
    got = np.concatenate([chunk["label"] for chunk in chunks])
    np.testing.assert_array_equal(got, np.arange(88).reshape(11, 8))
    (later,) = stream_of(ahead=ahead).chunks(7, [9])  # skipping ahead reads nothing on the way
    np.testing.assert_array_equal(later["label"], got[7:9])
    assert not threads()


def test_no_more_is_read_ahead_than_was_asked():
    steps, full = [], threading.Event()

    def batch(step):
        steps.append(step)
        if step == 2:
            full.set()
        return {"step": np.array(step)}

    chunks = prefetched(batch, 0, range(1, 100), lambda chunk: chunk, ahead=2)
    assert not steps  # nothing before it is wanted
    assert next(chunks)["step"] == [0]
    assert full.wait(30)
    assert next(chunks)["step"] == [1]
    chunks.close()
    assert max(steps) <= 1 + 2 and not threads()


def test_an_error_comes_when_its_chunk_is_due():
    def batch(step):
        if step == 5:
            raise mb.InputError("data.bin: is damaged")
        return np.array(step)

    chunks, got = prefetched(batch, 0, [2, 4, 6, 8], lambda chunk: chunk, ahead=3), []
    with pytest.raises(mb.InputError, match=r"^data\.bin: is damaged$"):
        for chunk in chunks:
            got += chunk.tolist()
    assert got == [0, 1, 2, 3] and not threads()


def test_a_chunk_that_is_being_made_ends_with_the_generator():
    """Nobody waits for a chunk of thousands."""
    begun, made = threading.Event(), []

    def batch(step):
        made.append(step)
        if step:
            begun.set()
            time.sleep(0.01)
        return np.array(step)

    chunks = prefetched(batch, 0, [1, 10_000], lambda chunk: chunk, ahead=1)
    next(chunks)
    assert begun.wait(30)
    chunks.close()
    assert made[-1] < 9_999 and not threads()


INTERRUPTED = """
import time, numpy as np
from manual_backprop.training.stream import prefetched

def batch(step):
    time.sleep(0.01)
    return np.array(step)

for chunk in prefetched(batch, 0, range(10, 10**6, 10), lambda chunk: chunk, ahead=2):
    print(chunk[-1], flush=True)
"""


def test_ctrl_c_ends_it():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "9\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT and error.splitlines()[-1] == "KeyboardInterrupt"


# ── on devices ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chunk_goes_where_it_was_told():
    """The thread does not know of the caller's default device."""
    there = jax.devices()[3]
    with jax.default_device(jax.devices()[5]):
        (chunk,) = stream_of(sharding=SingleDeviceSharding(there)).chunks(0, [2])
    assert chunk["x"].devices() == {there} and chunk["x"].shape == (2, 8, 2)


@pytest.mark.parametrize("mesh", ["data=8", "data=2,model=2", "data=2,fsdp=4", "model=4"])
def test_a_chunk_is_cut_as_the_mesh_cuts_a_batch(mesh):
    mesh = mesh_of(axes(mesh))
    sharding = NamedSharding(mesh, of_batch(mesh))
    (chunk,) = stream_of(sharding=sharding).chunks(5, [8])
    np.testing.assert_array_equal(chunk["label"], np.arange(40, 64).reshape(3, 8))
    one = chunk["x"].addressable_shards[-1]
    assert one.data.shape[0] == 3 and one.data.shape[1] == sharding.shard_shape((8, 2))[0]
    batch = jax.jit(lambda chunk: jax.lax.scan(lambda _, batch: (None, batch), None, chunk)[1])(chunk)
    np.testing.assert_array_equal(batch["x"], chunk["x"])


def test_a_mesh_that_does_not_divide_the_batch_is_one_line():
    mesh = mesh_of(axes("data=4,model=2"))
    stream = stream_of(batch_size=6, sharding=NamedSharding(mesh, of_batch(mesh)))
    with pytest.raises(mb.InputError, match=r"^--batch-size 6: the mesh data=4,model=2 does not divide it evenly$"):
        stream.chunks(0, [1])


PROCESS = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), initialization_timeout=60)
from manual_backprop.training.sharding import of_batch
from manual_backprop.training.stream import Source, Stream
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
read = []
def examples(numbers):
    read.extend(numbers.tolist())
    return numbers
stream = Stream(Source(examples, ""), 8, NamedSharding(mesh, of_batch(mesh)))
(chunk,) = stream.chunks(1, [3])
shards = [(shard.index[1].start, shard.data.tolist()) for shard in chunk.addressable_shards]
print(chunk.shape, shards, sorted(set(read) - {0}))
"""


def test_each_of_two_processes_reads_its_own_rows():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert (
        told[0][0].strip()
        == "(2, 8) [(0, [[8, 9], [16, 17]]), (2, [[10, 11], [18, 19]])] [8, 9, 10, 11, 16, 17, 18, 19]"
    )
    assert (
        told[1][0].strip()
        == "(2, 8) [(4, [[12, 13], [20, 21]]), (6, [[14, 15], [22, 23]])] [12, 13, 14, 15, 20, 21, 22, 23]"
    )


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_number(i: int) -> str:
    """A text that tells its number wherever one looks."""
    return f"<{i:03}>" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six hundred texts in three files."""
    folder = tmp_path_factory.mktemp("records")
    for part in range(3):
        records.write(folder / f"texts-{part}.arrayrecord", map(of_number, range(200 * part, 200 * part + 200)))
    return folder


def numbers_of(source, examples):
    ids, following = source.examples(np.asarray(examples))
    np.testing.assert_array_equal(ids[:, 1:], following[:, :-1])
    return [int(bytes(row.astype(np.uint8)).partition(b"<")[2][:3]) for row in ids]


@LINUX
def test_what_is_written_is_read(tmp_path):
    texts = ["prose", "", "漢字\n", b"\xff\x00", "x" * 100_000]
    assert records.write(tmp_path / "a", texts) == 5
    assert records.write(tmp_path / "b", ["last"]) == 1
    found = records.records(str(tmp_path / "?"))
    whole = [text.encode() if isinstance(text, str) else text for text in texts]
    assert [found[i] for i in range(len(found))] == [*whole, b"last"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@LINUX
def test_an_epoch_has_each_record_once_and_none_that_is_held_out(folder):
    """In another order each time, and no seed has another's."""
    train, held_out = records.split(f"{folder}/*", 16, lambda texts: [np.frombuffer(t, np.uint8) for t in texts], 0)
    epochs = [numbers_of(train, range(540 * epoch, 540 * epoch + 540)) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(540)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
    assert sorted(numbers_of(held_out, range(60))) == list(range(540, 600))
    assert set(numbers_of(held_out, range(200))) == set(range(540, 600))
    other, _ = records.split(f"{folder}/*", 16, lambda texts: [np.frombuffer(t, np.uint8) for t in texts], 1)
    assert numbers_of(other, range(540)) not in epochs


@LINUX
@pytest.mark.parametrize("length", [80, 10], ids=["of the whole record", "of a piece of it"])
def test_windows_begin_at_every_place(length, tmp_path):
    letters = bytes(range(33, 127))
    records.write(tmp_path / "a", [letters] * 300)
    ids, following = text.load(f"arrayrecord:{tmp_path}/a", length).train.examples(np.arange(4000))
    assert set(ids[:, 0]) == set(letters[: 95 - length])
    assert following.max() == 126 and (following[:, -1] == ord("\n")).any()


@LINUX
def test_short_records_are_joined_in_the_order_without_padding(tmp_path):
    records.write(tmp_path / "a", [f"<{i:03}>" * (i % 3) for i in range(900)])
    source = text.load(f"arrayrecord:{tmp_path}/a", 30)
    ids, following = source.train.examples(np.arange(810))
    examples = [source.decode([*row, last]) for row, last in zip(ids, following[:, -1], strict=True)]
    whole = lambda i: f"<{i:03}>" * (i % 3) + "\n"
    first = [int(example.lstrip("\n")[1:4]) for example in examples]
    for example in examples:
        assert len(example) == 31
        lines = example.split("\n")
        for line in lines[:-1]:
            assert not line or line + "\n" == whole(int(line[1:4]))
    known = [i for i, example in enumerate(examples[:-1]) if example[0] != "\n" and examples[i + 1][0] != "\n"]
    follows = [examples[i].split("\n")[1] for i in known]
    assert known and all(
        int(line[1:4]) == first[i + 1] for line, i in zip(follows, known, strict=True) if len(line) > 3
    )


def test_a_piece_of_a_record_cuts_no_letter():
    record = "".join(f"a{i}é漢😀" for i in range(100)).encode()
    pieces = [records.piece(record, 40, random) for random in range(2000)]
    assert all(piece.decode() and 37 <= len(piece) <= 43 for piece in pieces)
    assert len(set(pieces)) > 100 and pieces[0] == record[: len(pieces[0])]
    assert any(record.endswith(piece) for piece in pieces)
    assert records.piece(record, len(record), 77) == record
    assert len(records.piece(b"\x80" * 100, 40, 5)) == 40  # no UTF-8


@LINUX
def test_a_tokenizer_makes_the_ids_of_records(folder, tmp_path):
    file = tmp_path / "tokenizer.json"
    byte_pairs_of("".join(map(of_number, range(60))), 300).save(str(file))
    source = text.load(f"arrayrecord:{folder}/*", 12, tokenizer=file)
    ids, _ = source.train.examples(np.arange(540))
    assert source.vocabulary == 300 and ids.max() >= text.BYTES
    assert all("<" in source.decode(row) for row in ids)


@LINUX
def test_texts_of_records_are_used_like_others(folder):
    source = text.load(f"arrayrecord:{folder}/texts-[01].*", 16, seed=3)
    assert source.vocabulary == 256 and source.entropy is None and source.train.told == "360 records"
    ids, labels = jax.jit(source.draw, static_argnums=2)(jax.random.key(0), source.held_out, 5)
    assert ids.shape == labels.shape == (5, 16) and ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids[:, 1:], labels[:, :-1])
    assert source.held_out.shape == (text.HELD_OUT, 17)
    stream = Stream(source.train, 4, SingleDeviceSharding(jax.devices()[0]))
    (chunk,) = stream.chunks(2, [5])
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), stream.like())
    assert jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), chunk) == like
    np.testing.assert_array_equal(chunk[0][1], stream.batch(3)[0])


DIGEST = """
import hashlib, sys
from manual_backprop.training import text
for name in sys.argv[1:]:
    train = text.load(name, 16, seed=5).train
    import numpy as np
    ids, following = train.examples(np.arange(10**6, 10**6 + 7))
    print(hashlib.sha256(ids.tobytes() + following.tobytes()).hexdigest())
"""


@LINUX
def test_another_process_has_the_same_batches(folder, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(5000, dtype=np.uint16))
    names = [f"arrayrecord:{folder}/*", f"tokens:{tmp_path}/ids.npy"]
    own = []
    for name in names:
        train = text.load(name, 16, seed=5).train
        train.examples(np.arange(50))  # what was read before does not matter
        ids, following = train.examples(np.arange(10**6, 10**6 + 7))
        own.append(hashlib.sha256(ids.tobytes() + following.tobytes()).hexdigest())
        assert (ids != text.load(name, 16, seed=6).train.examples(np.arange(10**6, 10**6 + 7))[0]).any()
    done = subprocess.run([sys.executable, "-c", DIGEST, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == own, done.stderr


# ── files of tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_windows_of_a_file_of_tokens(tmp_path):
    tokens = np.arange(3000, dtype=np.uint16)
    tokens.tofile(tmp_path / "train.bin")
    np.save(tmp_path / "a.npy", tokens)
    np.save(tmp_path / "b.npy", tokens.astype(">u4"))
    np.save(tmp_path / "c.npy", tokens.astype(np.int64))
    of = {name: text.load(f"tokens:{tmp_path}/{name}", 16) for name in ("train.bin", "a.npy", "b.npy", "c.npy")}
    ids, following = of["a.npy"].train.examples(np.arange(20_000))
    assert ids.dtype == following.dtype == np.int32 and of["a.npy"].vocabulary == 3000
    np.testing.assert_array_equal(ids, ids[:, :1] + np.arange(16))
    np.testing.assert_array_equal(following, ids + 1)
    assert ids[:, 0].min() == 0 and following.max() == 2699  # to the last that is not held out
    held_out = np.asarray(of["a.npy"].held_out)
    np.testing.assert_array_equal(held_out, held_out[:, :1] + np.arange(17))
    assert held_out.min() >= 2700 and 2990 <= held_out.max() <= 2999
    for other in of.values():
        np.testing.assert_array_equal(other.train.examples(np.arange(30))[0], ids[:30])
        np.testing.assert_array_equal(other.held_out, held_out)
    assert of["a.npy"].decode(ids[0][:2]) == f"{ids[0][0]} {ids[0][0] + 1}"


def test_a_tokenizer_tells_what_tokens_mean(tmp_path):
    tokenizer = byte_pairs_of(PROSE, 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    np.save(tmp_path / "ids.npy", np.array(tokenizer.encode(PROSE).ids, np.uint16))
    source = text.load(f"tokens:{tmp_path}/ids.npy", 8, tokenizer=tmp_path / "tokenizer.json")
    assert source.vocabulary == 300 and source.decode(source.train.examples(np.arange(1))[0][0]) in PROSE


# ── what is damaged, or was never right ──────────────────────────────────────────────────────────────────────────────


def refused(call, *messages):
    with pytest.raises(mb.InputError) as error:
        call()
    told = str(error.value)
    assert "\n" not in told and all(message in told for message in messages), told


WHOLE_FILES = {
    "empty": (lambda content: b"", "is no whole ArrayRecord file: "),
    "foreign": (lambda content: b"Some prose.\n" * 20_000, "is no whole ArrayRecord file: "),
    "cut short by a byte": (lambda content: content[:-1], "is no whole ArrayRecord file: "),
    "cut in the middle": (lambda content: content[:65536], "is no whole ArrayRecord file: it is cut short or damaged"),
    "cut to a quarter": (lambda content: content[: len(content) // 4], "is no whole ArrayRecord file: "),
}


@LINUX
@pytest.mark.parametrize("damage", WHOLE_FILES)
def test_a_damaged_file_of_records_is_refused_at_once(folder, damage, tmp_path):
    """The library takes some of these for files without records: the others would go on without them."""
    change, message = WHOLE_FILES[damage]
    for path in folder.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(change(content) if "-1" in path.name else content)
    refused(
        lambda: text.load(f"arrayrecord:{tmp_path}/*", 16),
        f"--data arrayrecord: {tmp_path}/texts-1.arrayrecord ",
        message,
    )


def flips(path):
    """Every 53rd byte that is not zero, a bit of it flipped: (place, content)."""
    content = path.read_bytes()
    for place in np.flatnonzero(np.frombuffer(content, np.uint8))[::53].tolist():
        yield place, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@LINUX
def test_a_flipped_bit_is_told_or_changes_nothing(folder, tmp_path):
    path, file, told = folder / "texts-1.arrayrecord", tmp_path / "texts", {"opened": 0, "read": 0, "harmless": 0}
    for place, content in flips(path):
        file.write_bytes(content)
        try:
            found, when = records.records(str(file)), "read"
        except mb.InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            told["opened"] += 1
            continue
        try:
            assert [found[i].decode() for i in range(len(found))] == [*map(of_number, range(200, 400))], place
            when = "harmless"
        except mb.InputError as error:
            assert str(error).startswith(f"{file}: record ") and "Corrupted" in str(error)
        told[when] += 1
    assert told["opened"] > 5 and told["read"] > 100 and told["harmless"] < 20, told


@LINUX
def test_the_thread_that_reads_ahead_tells_file_and_record(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "texts-0.arrayrecord"
    places = flips(file)
    for _, content in places:
        file.write_bytes(content)
        try:
            records.records(str(file))[77]
        except mb.InputError as error:
            if "record 77 " in str(error):
                break
    source = text.load(f"arrayrecord:{tmp_path}/*", 16)
    stream = Stream(source.train, 6, SingleDeviceSharding(jax.devices()[0]))
    refused(
        lambda: list(stream.chunks(0, [30, 60, 90])),
        f"{file}: record 77 cannot be read: Corrupted",
        "; if it is damaged, make it anew",
    )
    assert not threads()


@LINUX
def test_a_file_that_is_cut_while_it_is_read_is_no_empty_text(folder, tmp_path):
    """The library gives an empty record, and says nothing."""
    file = tmp_path / "texts"
    file.write_bytes((folder / "texts-0.arrayrecord").read_bytes())
    source = text.load(f"arrayrecord:{file}", 16)
    os.truncate(file, 1000)
    refused(lambda: source.train.examples(np.arange(200)), f"{file}: record ", " cannot be read: ")


@LINUX
def test_records_that_cannot_be_had_are_one_line(folder, tmp_path, monkeypatch):
    load = lambda pattern, length=16: text.load(f"arrayrecord:{pattern}", length)
    refused(lambda: load(f"{tmp_path}/*.none"), f"--data arrayrecord:{tmp_path}/*.none: no file matches")
    refused(lambda: load(tmp_path), ": no file matches")  # a folder
    refused(lambda: text.load("arrayrecord", 16), "--data arrayrecord: wants arrayrecord:PATTERN")
    records.write(tmp_path / "none", [])
    refused(lambda: load(tmp_path / "none"), f"--data arrayrecord: {tmp_path}/none has no records")
    records.write(tmp_path / "one", ["x" * 100])
    refused(lambda: load(tmp_path / "one"), "there is one record; wants two at least, as one is held out")
    records.write(tmp_path / "short", ["ab"] * 20)
    refused(
        lambda: load(tmp_path / "short", 200),
        "short: 18 records together have fewer than the 201 tokens that a length of 200 wants",
    )
    records.write(tmp_path / "held", ["ab" * 100] * 18 + ["ab"] * 2)
    refused(lambda: load(tmp_path / "held"), "held: the last 2 records together have fewer than the 17 tokens")
    monkeypatch.setitem(sys.modules, "grain", None)
    refused(
        lambda: load(f"{folder}/*"),
        "--data arrayrecord wants the packages grain and array-record, for Linux: pip install 'manual_backprop[records]'",
    )


@LINUX
def test_nothing_is_overwritten_and_no_half_of_a_file_is_left(tmp_path):
    file = tmp_path / "a"
    file.write_text("mine")
    refused(lambda: records.write(file, ["x"]), f"{file} cannot be written: it exists, and nothing is overwritten")
    assert file.read_text() == "mine"

    def texts():
        yield "x"
        (tmp_path / "b").write_text("meanwhile")

    refused(lambda: records.write(tmp_path / "b", texts()), "b cannot be written: File exists")
    assert (tmp_path / "b").read_text() == "meanwhile"
    with pytest.raises(ZeroDivisionError):
        records.write(tmp_path / "c", (1 / 0 for _ in range(3)))
    refused(lambda: records.write(tmp_path / "no" / "c", ["x"]), "cannot be written: No such file or directory")
    refused(lambda: records.write(tmp_path / "d", ["\ud800"]), "cannot be written: ")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


class Malicious:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


TOKENS = np.arange(1000, dtype=np.uint16)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("a.npy", None, "cannot be read: No such file or directory"),
        ("a.npy", TOKENS.astype(np.float32), "has float32 of shape (1000,); wants integers along one axis"),
        ("a.npy", TOKENS.reshape(10, 100), "has uint16 of shape (10, 100); wants integers"),
        ("a.npy", TOKENS > 3, "has bool of shape"),
        ("a.npy", TOKENS.astype(object), "no array of integers"),
        ("a.npy", TOKENS[:0], "a.npy: "),
        ("a.npy", TOKENS[:99], "the text has 99 tokens, of which a tenth is held out; for a length of 16 it wants more than 170"),
        ("a.npy", TOKENS.astype(np.int32) - 4, "has the token -4, which is outside a vocabulary of 0 … 995"),
        ("a.npy", TOKENS.astype(np.uint64) + 2**40, "which is outside a vocabulary of 0 … 2147483646"),
        ("a.npy", b"Some prose.", "is no .npy file"),
        ("a.npy", b"", "is no .npy file"),
        ("a.npy", b"\x93NUMPY", "is damaged, cut short, or no array of integers"),
        ("a.bin", b"x" * 999, "is 999 bytes, an odd number; wants .npy of integers, or .bin of uint16"),
        ("a.bin", b"", "the text has 0 tokens"),
        ("a.txt", b"Some prose", "is a file .txt; wants .npy of integers, or .bin of uint16"),
        ("ids", b"Some prose", "is a file so named; wants .npy"),
    ],
)  # fmt: skip
def test_a_file_of_tokens_that_is_none_is_one_line(name, array, message, tmp_path):
    file = tmp_path / name
    if isinstance(array, bytes):
        file.write_bytes(array)
    elif array is not None:
        np.save(file, array)
    refused(lambda: text.load(f"tokens:{file}", 16), f"--data tokens:{file}: ", message)


def test_other_files_of_tokens_that_are_refused(tmp_path):
    file, tokenizer = tmp_path / "a.npy", tmp_path / "tokenizer.json"
    np.save(file, TOKENS)
    byte_pairs_of(PROSE, 300).save(str(tokenizer))
    refused(
        lambda: text.load(f"tokens:{file}", 16, tokenizer=tokenizer),
        f"--data tokens:{file}: has the token 999, which is outside a vocabulary of 0 … 299",
    )
    changed = f"--data tokens:{file}: was changed since it was opened; start anew"
    refused(lambda: list(text._flat(file).read([990], 16)), changed)  # as where it is cut between two windows
    train = text.load(f"tokens:{file}", 16).train
    file.write_bytes(file.read_bytes()[::-1])  # as long as it was
    os.utime(file, (0, 0))  # a clock may be coarse
    refused(lambda: train.examples(np.arange(3)), changed)
    np.save(file, TOKENS)
    train = text.load(f"tokens:{file}", 16).train
    os.truncate(file, 500)
    refused(lambda: train.examples(np.arange(3)), changed)
    refused(lambda: text.load(f"tokens:{file}", 16), "is damaged, cut short, or no array of integers")
    file.unlink()
    refused(lambda: train.examples(np.arange(3)), f"--data tokens:{file}: cannot be read: No such file or directory")
    refused(lambda: text.load(f"tokens:{tmp_path}", 16), "is a file ")
    refused(lambda: text.load("tokens:", 16), "--data tokens:: wants tokens:FILE")


def test_nothing_that_pickle_would_run_is_run(tmp_path):
    file, made = tmp_path / "a.npy", tmp_path / "made"
    np.save(file, np.array([Malicious(made)] * 1000, object), allow_pickle=True)
    refused(lambda: text.load(f"tokens:{file}", 16), "no array of integers")
    (tmp_path / "b.npy").write_bytes(__import__("pickle").dumps(Malicious(made)))
    refused(lambda: text.load(f"tokens:{tmp_path}/b.npy", 16), "is no .npy file")
    assert not made.exists()


def test_nothing_is_loaded_with_pickle():
    """No module that makes objects of bytes is imported, and NumPy is told each time that it shall not."""
    files = [path for name in ("manual_backprop", "experiments", "scripts") for path in (ROOT / name).rglob("*.py")]
    assert len(files) > 50
    banned = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not banned & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("allow_pickle", "False") == "False", path
                if ast.unparse(node.func) in ("np.load", "numpy.load"):
                    assert "allow_pickle" in options, path
