"""Several processes: how they meet, what they say, that they train as one does, and what the others do when one is gone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

import manual_backprop as mb
from hosts import worker
from manual_backprop.training import hosts, meeting
from manual_backprop.training.checkpoints import Checkpoints

LOCAL = "127.0.0.1"
ROOT = Path(__file__).parents[1]
CACHE = {  # as in conftest
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def free_port() -> int:
    with socket.create_server((LOCAL, 0)) as server:
        return server.getsockname()[1]


@contextmanager
def processes(mode: str, count: int, folder: Path, devices: int = 1, patience: float = 20.0):
    """So many of worker.py; none of them is there any more afterwards."""
    script, port = ROOT / "tests" / "hosts" / "worker.py", free_port()
    environment = os.environ | CACHE | {"PYTHONPATH": str(ROOT)}
    started = []
    try:
        for index in range(count):
            options = [mode, f"{LOCAL}:{port}", count, index, devices, patience, folder]
            with open(folder / f"{index}.out", "w") as out, open(folder / f"{index}.err", "w") as err:
                command = [sys.executable, script, *map(str, options)]
                started.append(subprocess.Popen(command, stdout=out, stderr=err, env=environment))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def ended(started, folder: Path, seconds: float = 300.0) -> list[int]:
    deadline = time.monotonic() + seconds
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        pytest.fail("\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.err"))))


def results(mode: str, count: int, folder: Path, devices: int = 1) -> list[list[dict]]:
    """What each process found out."""
    with processes(mode, count, folder, devices) as started:
        codes = ended(started, folder)
    assert codes == [0] * count, [(folder / f"{index}.err").read_text()[-2000:] for index in range(count)]
    found = []
    for index in range(count):
        lines = (folder / f"{index}.out").read_text().splitlines()
        found.append([json.loads(line.split("RESULT ", 1)[1]) for line in lines if "RESULT " in line])
    return found


# ── training, by one, two and four processes ─────────────────────────────────────────────────────────────────────────


def test_two_processes_train_as_one_does_and_four_or_one_go_on(tmp_path):
    """In one test, for it costs two starts of JAX, four times as much."""
    of_two = results("learn", 2, tmp_path, devices=2)
    _, of_one = worker.trained("mlp", "data=1")
    for heard, arrays, *trained in of_two:
        assert heard["stops"] == [False, False, True, False]
        assert heard["said"] == [{"index": 0}, {"index": 1}]
        assert heard["told"] == [0, "first"]
        assert heard["refused"] == "it is wrong"
        assert arrays["back"]["cut"] == np.arange(24.0).reshape(8, 3).tolist()
        assert arrays["back"]["key"] == jax.random.key_data(jax.random.key(7)).tolist()
        assert arrays["here"] == 12  # half of them
        want_rows(arrays["streamed"])
        assert [found["mesh"] for found in trained] == [*worker.MESHES, "fsdp=4"]
        for found in trained:
            assert len(found["costs"]) == worker.STEPS
            np.testing.assert_allclose(found["costs"], of_one, rtol=2e-5, err_msg=found["mesh"])
    last, other = (found[-1] for found in of_two)
    assert last == other  # the same bits in both

    checkpoints = Checkpoints(tmp_path / "own", say=pytest.fail)
    _, alone = worker.trained("mlp", "fsdp=4", begin=checkpoints.restore)
    checkpoints.close()
    for costs in (alone, *(found[0]["costs"] for found in results("go_on", 4, tmp_path))):
        np.testing.assert_allclose(costs, last["costs"][worker.HALF :], rtol=2e-5)


def want_rows(streamed):
    """Of three batches in two chunks: a process reads its half, and one more to tell the shape."""
    numbers = np.arange(3 * worker.BATCH)
    cut = 2 * worker.BATCH
    read, *totals = streamed
    assert totals == [float((n + n**2).sum()) for n in (numbers[:cut], numbers[cut:])]
    assert len(numbers) // 2 <= read <= len(numbers) // 2 + 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_a_transformer_as_one_device_does(count, tmp_path):
    _, costs = worker.trained("gpt", "data=1")
    for found in results("transformer", count, tmp_path, devices=4 // count):
        for of_mesh in found:
            np.testing.assert_allclose(of_mesh["costs"], costs, rtol=2e-5, err_msg=of_mesh["mesh"])


# ── one of them is gone ──────────────────────────────────────────────────────────────────────────────────────────────


def lost(count: int, folder: Path, number: signal.Signals, index: int, patience: float = 20.0):
    """(exit codes, what they said) of the others, when one is sent a signal in the middle of the training."""
    with processes("endless", count, folder, patience=patience) as started:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("ready-*"))) < count:
            assert time.monotonic() < deadline and all(process.poll() is None for process in started)
            time.sleep(0.05)
        started[index].send_signal(number)
        others = [process for i, process in enumerate(started) if i != index]
        codes = ended(others, folder, patience + 10)
    return codes, [(folder / f"{i}.err").read_text() for i in range(count) if i != index]


@pytest.mark.parametrize("index", [0, 1])
def test_when_one_is_killed_the_others_end_with_one_line(index, tmp_path):
    codes, said = lost(3, tmp_path, signal.SIGKILL, index)
    assert codes == [hosts.LOST] * 2
    for text in said:
        assert re.fullmatch(rf"lost: process {index} of 3 is lost: its connection broke, .*\n", text)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_when_one_stands_still_the_others_end_with_one_line(index, tmp_path):
    codes, said = lost(3, tmp_path, signal.SIGSTOP, index, patience=4)
    assert codes == [hosts.LOST] * 2
    for text in said:
        assert re.fullmatch(rf"lost: process {index} of 3 is lost: no sign of life for 4 s; .*\n", text)


@pytest.mark.slow
def test_when_one_fails_it_says_why_and_so_do_the_others(tmp_path):
    with processes("endless", 2, tmp_path) as started:
        (tmp_path / "fail").touch()
        codes = ended(started, tmp_path, 60)
    assert codes == [hosts.LOST, 1]
    first, failed = ((tmp_path / f"{i}.err").read_text() for i in range(2))
    assert first.startswith("lost: process 1 of 2 failed: ValueError: its own mistake; so process 0 ends")
    assert failed.endswith("ValueError: its own mistake\n") and "lost" not in failed


# ── to meet ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("localhost", 2, 0), "hosts: address 'localhost' is not understood; wants HOST:PORT of process 0"),
        (("localhost:port", 2, 0), "hosts: address 'localhost:port' is not understood"),
        (("localhost:0", 2, 0), "hosts: address 'localhost:0' is not understood"),
        (("localhost:65536", 2, 0), "hosts: address 'localhost:65536' is not understood"),
        (("http://localhost:1234", 2, 0), "hosts: address 'http://localhost:1234' is not understood"),
        ((":1234", 2, 0), "hosts: address ':1234' is not understood"),
        (("::1:1234", 2, 0), "hosts: address '::1:1234' is not understood"),
        (("localhost:1234", 0, 0), "hosts: count is 0; wants a whole number, at least 1"),
        (("localhost:1234", 2, 2), "hosts: index is 2; wants one of 0 … 1, for there are 2 processes"),
        (("localhost:1234", 2, -1), "hosts: index is -1; wants one of 0 … 1"),
        (("localhost:1234", 2, True), "hosts: index is True; wants one of 0 … 1"),
        (
            ("localhost:1234", 2, None),
            "hosts: index is not given, and no cluster is known here that would tell; give it",
        ),
        ((None, None, None), "hosts: address is not given, and no cluster is known here"),
    ],
)
def test_what_cannot_be_joined_is_one_line(options, message):
    with pytest.raises(mb.InputError, match=re.escape(message)) as error:
        hosts.join(*options, wait=0.1)
    assert "\n" not in str(error.value)


def test_a_cluster_tells_what_is_not_given(monkeypatch):
    told = {"JOB_ID": 70000, "STEP_NODELIST": "node[003-004],other", "NTASKS": 4, "PROCID": 2, "LOCALID": 0}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(mb.InputError, match=r"process 0 is not reached at node003:\d+ within 0.1 s: .*; start it"):
        hosts.join(wait=0.1)


def test_one_process_alone_needs_nobody():
    hosts.join(f"{LOCAL}:1234", 1, 0)
    assert hosts.is_first() and hosts.agreed(True) and not hosts.agreed(False)
    assert hosts.from_first(lambda: {"a": (1, 2)}) == {"a": [1, 2]}  # as several would hear it
    hosts.barrier("end")
    hosts.leave()
    hosts.fail(3, "nothing happens")


def test_a_port_that_is_taken():
    with socket.create_server((LOCAL, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(mb.InputError, match=f"process 0 cannot listen at port {port}: Address already in use; is"):
            hosts.join(f"{LOCAL}:{port}", 2, 0, wait=5)


def test_process_0_that_does_not_come():
    address = f"{LOCAL}:{free_port()}"
    message = f"hosts: process 0 is not reached at {address} within 0.3 s: Connection refused; start it"
    with pytest.raises(mb.InputError, match=re.escape(message)):
        hosts.join(address, 2, 1, wait=0.3)


def test_another_program_that_listens():
    def answer():
        with server.accept()[0] as connection:
            connection.sendall(b"HTTP/1.0 400\r\n\r\n")

    with socket.create_server((LOCAL, 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(mb.InputError, match="it is another program that listens at"):
            hosts.join(f"{LOCAL}:{server.getsockname()[1]}", 2, 1, wait=5)


def met(arrivals, count: int, wait: float = 4.0, before=lambda address: None) -> list:
    """What comes out for process 0 and for those who arrive, (index, what has to be alike) each: lines, or the error."""
    address, mine, out = (LOCAL, free_port()), {"count": str(count), "options": {"seed": "0", "steps": "9"}}, {}

    def receive():
        try:
            out[0], _ = meeting.receive(address, count, mine, wait)
        except mb.InputError as error:
            out[0] = str(error)

    def arrive(place, index, other):
        try:
            out[place], _ = meeting.arrive(address, index, mine | other, wait)
        except mb.InputError as error:
            out[place] = str(error)

    threads = [threading.Thread(target=receive, daemon=True)]
    threads[0].start()
    before(address)
    threads += [
        threading.Thread(target=arrive, args=(i + 1, *arrival), daemon=True) for i, arrival in enumerate(arrivals)
    ]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [out[i] for i in range(len(threads))]


@contextmanager
def patient(address):
    """A connection, when there is somebody to connect to."""
    while True:
        try:
            connection = socket.create_connection(address)
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    with connection:
        yield connection


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        ([(1, {}), (1, {})], "hosts: two processes have the index 1; wants each of 0 … 2 once"),
        ([(1, {}), (0, {})], "hosts: two processes have the index 0; wants each of 0 … 2 once"),
        (
            [(1, {"options": {"seed": "1", "steps": "9", "more": "x"}})],
            "hosts: processes 0 and 1 differ in more (None, x), seed (0, 1); wants the same in all",
        ),
        ([(3, {"count": "4"})], "hosts: processes 0 and 3 differ in count (3, 4); wants the same in all"),
    ],
    ids=["index", "first", "options", "count"],
)
def test_processes_that_do_not_fit_are_told_so(arrivals, message):
    first, *others = met(arrivals, 3)
    assert first == message
    assert message in others and set(others) <= {message, *(o for o in others if "not reached" in o)}


def test_who_is_missing_is_told_in_all():
    assert met([(2, {})], 4, wait=0.5) == ["hosts: 2 of 4 processes came within 0.5 s; missing: 1, 3; start all"] * 2


def test_strangers_are_left_out():
    def before(address):
        with patient(address) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with patient(address) as stranger:
            stranger.sendall(b'{"index": 1}\n')

    lines, line = met([(1, {})], 2, before=before)
    assert set(lines) == {1}
    assert isinstance(line, meeting.Line)
    lines[1].close()
    line.close()


def test_a_process_that_was_started_again_takes_its_place():
    def before(address):
        with patient(address) as early:
            early.sendall(json.dumps({meeting.HELLO: 1, "index": 1, "of": SAME}).encode() + b"\n")
            early.close()
        time.sleep(0.1)

    SAME = {"count": "3", "options": {"seed": "0", "steps": "9"}}
    lines, *others = met([(1, {}), (2, {})], 3, before=before)
    assert set(lines) == {1, 2}
    for line in (*lines.values(), *others):
        line.close()


# ── to stay together ─────────────────────────────────────────────────────────────────────────────────────────────────


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server((LOCAL, 0)) as server:
        return socket.create_connection(server.getsockname()), server.accept()[0]


@pytest.fixture
def companies(monkeypatch):
    """(companies, ends): those of three processes in one, and the exit codes of the threads that would have ended them."""
    ends = {}
    monkeypatch.setattr(meeting, "_exit", lambda code: ends.setdefault(threading.current_thread(), code))
    monkeypatch.setattr(meeting, "BEAT", 0.05)
    monkeypatch.setattr(meeting, "GRACE", 0.3)
    pairs = {i: [meeting.Line(end) for end in connected()] for i in (1, 2)}
    made = [meeting.Company(3, 0, {i: pair[0] for i, pair in pairs.items()}, 1.0)]
    made += [meeting.Company(3, i, {0: pair[1]}, 1.0) for i, pair in pairs.items()]
    yield made, ends
    for company in made:
        company.over = True
    for company in made:
        company.part()


def within(condition, seconds=10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def in_threads(*calls) -> list:
    """What each gives; None of one whose process would have ended."""
    out = [None] * len(calls)
    threads = [
        threading.Thread(target=lambda i=i, call=call: out.__setitem__(i, call()), daemon=True)
        for i, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return out


def ended_with(companies, ends) -> list:
    """The exit codes, of those that their watch ended."""
    return [ends.get(company.watch) for company in companies]


def test_exchanges_of_two_names_do_not_disturb_each_other(companies):
    """Process 1 says them in another order, as a thread beside the training may."""
    company, _ = companies

    def say(c, name):
        time.sleep(0.1 * ((name == "b") != (c.index == 1)))
        return [c.exchange(name, [name, c.index, n]) for n in range(20)]

    heard = in_threads(*(lambda c=c, name=name: say(c, name) for name in "ab" for c in company))
    for name, of_name in zip("ab", (heard[:3], heard[3:]), strict=True):
        assert of_name == [[[[name, i, n] for i in range(3)] for n in range(20)]] * 3


def test_nobody_is_lost_while_all_live_and_none_who_has_left(companies):
    company, ends = companies
    time.sleep(1.5)  # longer than their patience
    in_threads(*(lambda c=c: c.exchange(meeting.LEAVE, None) for c in company))
    in_threads(*(company[i].part for i in (1, 0, 2)))
    assert not ends and not any(c.watch.is_alive() for c in company)


@pytest.mark.parametrize("index", [0, 1])
def test_a_broken_connection_ends_all_others(companies, capfd, index):
    company, ends = companies
    company[index].over = True
    for line in company[index].lines.values():
        line.connection.shutdown(socket.SHUT_RDWR)
    others = [c for c in company if c.index != index]
    assert within(lambda: ended_with(others, ends) == [meeting.LOST] * 2)
    said = sorted(capfd.readouterr().err.splitlines())
    why = f"lost: process {index} of 3 is lost: its connection broke, as when it is killed; so process"
    resume = "ends: start all again, in any number, to resume"
    assert said == [f"{why} {other.index} {resume}" for other in others]


@pytest.mark.parametrize("index", [0, 1])
def test_silence_ends_all_others(companies, capfd, monkeypatch, index):
    company, ends = companies
    monkeypatch.setattr(company[index], "_tell", lambda message: None)
    others = [c for c in company if c.index != index]
    assert within(lambda: ended_with(others, ends) == [meeting.LOST] * 2)
    assert capfd.readouterr().err.count(f"process {index} of 3 is lost: no sign of life for 1 s") == 2


def test_a_process_that_stood_still_itself_accuses_nobody(companies, monkeypatch):
    """All of them are stopped for longer than their patience, as a machine that sleeps does."""
    company, ends = companies
    clock, jump = time.monotonic, 0.0
    monkeypatch.setattr(meeting.time, "monotonic", lambda: clock() + jump)
    jump = 100.0
    assert not within(lambda: ends, 0.5) and all(c.watch.is_alive() for c in company)


def test_one_that_fails_tells_the_others_why(companies, capfd):
    company, ends = companies
    waits = lambda c: c.exchange("never", None)
    threads = [threading.Thread(target=waits, args=(c,), daemon=True) for c in (company[0], company[2])]
    for thread in threads:
        thread.start()
    in_threads(lambda: company[1].fail(7, "ValueError: wrong\nand so on"))
    assert within(lambda: ended_with(company, ends) == [meeting.LOST, None, meeting.LOST])
    assert sorted(ends.values()) == [7, meeting.LOST, meeting.LOST]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and all("process 1 of 3 failed: ValueError: wrong; so process" in line for line in said)


def test_where_all_fail_each_ends_with_its_own_code(companies, capfd):
    company, ends = companies
    in_threads(*(lambda c=c: c.fail(c.index + 2, "the same") for c in company))
    assert sorted(ends.values()) == [2, 3, 4] and capfd.readouterr().err == ""


def test_an_error_because_another_is_lost_is_not_the_reason(companies, capfd):
    company, ends = companies
    company[1].over = True
    company[1].lines[0].connection.shutdown(socket.SHUT_RDWR)
    in_threads(lambda: company[2].fail(1, "XlaRuntimeError: connection reset"))
    assert within(lambda: ended_with((company[0], company[2]), ends) == [meeting.LOST] * 2)
    assert "failed" not in capfd.readouterr().err
