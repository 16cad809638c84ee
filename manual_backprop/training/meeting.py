"""How processes meet, exchange small values, and notice that one is gone; JAX has no part in it.

All are connected with process 0, which listens: a star. A message is one line of JSON:

    {"manual_backprop": 1, "index", "of"}   the first to process 0: who comes, and what has to be alike
    {"welcome": port}, {"refused": why}     its answer, when all are there
    {"beat": 1}                             each second, both ways
    {"say": key, "value"}                   to process 0: an exchange
    {"all": key, "values"}                  its answer, when all have said it
    {"failing": why}                        to process 0: the sender ends because of an error
    {"end": [kind, why]}                    from process 0: end
"""

from __future__ import annotations

import ipaddress
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, NoReturn

from manual_backprop.errors import InputError

LOST = 75  # the exit code of a process that lost another: a failure that passes, try again
BEAT = 1.0  # seconds between two signs of life
GRACE = 2.0  # seconds in which all processes that fail may fail alike
HELLO, LEAVE = "manual_backprop", "leave"
SILENCE = 5.0  # seconds
TIMEOUT = 5.0  # seconds that it may take to send a line


class Line:
    """A connection, and what came over it."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.lock, self.rest = connection, threading.Lock(), b""
        self.messages: list[dict] = []
        self.heard = time.monotonic()

    def send(self, message: dict) -> None:
        """If nobody is there any more, the watch sees it."""
        with suppress(OSError), self.lock:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self, seconds: float = TIMEOUT) -> bool:
        """Takes what comes into `messages`. False if nothing does, or nothing more will."""
        try:
            self.connection.settimeout(seconds)
            more = self.connection.recv(1 << 16)
            *whole, self.rest = (self.rest + more).split(b"\n")
            self.messages += [dict(json.loads(line)) for line in whole]
        except (OSError, ValueError, TypeError):
            return False
        self.heard = time.monotonic()
        return bool(more)

    def first(self, seconds: float) -> dict:
        """The first message; an empty one, if none comes in time."""
        deadline = time.monotonic() + seconds
        while not self.messages:
            if not self.read(max(0.01, deadline - time.monotonic())):
                return {}
        return self.messages.pop(0)

    def ended(self) -> bool:
        """Whether the other side has closed it, though nobody has read that yet."""
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(TIMEOUT)

    def close(self) -> None:
        with suppress(OSError):
            self.connection.close()


# ── to meet ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def receive(address: tuple[str, int], count: int, mine: dict, wait: float) -> tuple[dict[int, Line], int]:
    """Process 0: its lines to the others, and a free port that they were told.

    mine: what has to be alike in all; values are text, or dictionaries of text. Raises InputError, in the others too.
    """
    deadline, lines = time.monotonic() + wait, {}
    others = "1 other process" if count == 2 else f"{count - 1} other processes"
    with listening(*address) as server, said_late(f"waiting for {others} at {written(address)}, up to {wait:g} s"):
        try:
            while len(lines) < count - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                line = Line(server.accept()[0])
                hello = line.first(min(TIMEOUT, deadline - time.monotonic()))
                index = hello.get("index")
                if HELLO not in hello or not isinstance(index, int):
                    line.close()  # it wants something else
                    continue
                why = _difference(index, mine, hello.get("of", {}))
                for gone in [i for i, other in lines.items() if other.ended()]:
                    lines.pop(gone).close()  # it was started again, or will be
                if not why and (index in lines or not 0 < index < count):
                    why = f"hosts: two processes have the index {index}; wants each of 0 … {count - 1} once"
                lines[~count if why else index] = line
                if why:
                    raise InputError(why)
        except TimeoutError:
            missing = ", ".join(str(i) for i in range(1, count) if i not in lines)
            why = f"hosts: {len(lines) + 1} of {count} processes came within {wait:g} s; missing: {missing}; start all"
            _refuse(lines, why)
            raise InputError(why) from None
        except InputError as error:
            _refuse(lines, str(error))
            raise
    with listening(address[0], 0) as free:
        port = free.getsockname()[1]
    for line in lines.values():
        line.send({"welcome": port})
    return lines, port


def arrive(address: tuple[str, int], index: int, mine: dict, wait: float) -> tuple[Line, int]:
    """Another process: its line to process 0, and the port that this tells. Raises InputError."""
    with said_late(f"waiting for process 0 at {written(address)}, and for all others, up to {wait:g} s"):
        line = _connected(address, wait)
        line.send({HELLO: 1, "index": index, "of": mine})
        answer = line.first(wait + TIMEOUT)
    if "welcome" in answer:
        return line, answer["welcome"]
    line.close()
    other = f"hosts: process 0 ended, or it is another program that listens at {written(address)}"
    raise InputError(answer.get("refused", other))


def _connected(address: tuple[str, int], wait: float) -> Line:
    deadline = time.monotonic() + wait
    while True:
        try:
            return Line(socket.create_connection(address, max(0.1, deadline - time.monotonic())))
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise InputError(
                    f"hosts: process 0 is not reached at {written(address)} within {wait:g} s: {reason}; start it, or "
                    "give its address"
                ) from None
        time.sleep(0.2)


@contextmanager
def said_late(text: str) -> Iterator[None]:
    """Says it, where the block takes longer than one would wait for it in silence."""
    timer = threading.Timer(SILENCE, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _refuse(lines: dict[int, Line], why: str) -> None:
    for line in lines.values():
        line.send({"refused": why})
        line.close()


def _difference(index: int, mine: dict, theirs: dict) -> str | None:
    differ = []
    for what, a in mine.items():
        b = theirs.get(what)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differ += [f"{key} ({a.get(key)}, {b.get(key)})" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        elif a != b:
            differ.append(f"{what} ({a}, {b})")
    return differ and f"hosts: processes 0 and {index} differ in {', '.join(differ)}; wants the same in all"


def listening(host: str, port: int) -> socket.socket:
    """At this machine's loopback if the host is that, else at all its addresses: it may have others than it knows."""
    try:
        if is_loopback(host):
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(
            f"hosts: process 0 cannot listen at port {port}: {reason}; is another one running? wants a free port"
        ) from None


def is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def written(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ── to stay together ─────────────────────────────────────────────────────────────────────────────────────────────────


class End(NamedTuple):
    """Why a process has to end: another is lost, or failed."""

    kind: str
    why: str


class Company:
    """The processes that have met, and the thread that watches over them.

    lines: of process 0 to all the others; of another one to process 0.
    """

    def __init__(self, count: int, index: int, lines: dict[int, Line], patience: float):
        self.count, self.index, self.lines, self.patience = count, index, lines, patience
        self.change = threading.Condition()
        self.times: dict[str, int] = defaultdict(int)  # how often something was exchanged under this name
        self.said: dict[str, dict[int, Any]] = defaultdict(dict)  # by key and process: what not all have said yet
        self.results: dict[str, list] = {}
        self.failing: dict[int, str] = {}
        self.failing_since = 0.0
        self.over = False  # that a connection ends is no loss any more
        self.here = set(lines)
        for line in lines.values():
            line.heard = time.monotonic()
        self.watch = threading.Thread(target=self._watch, name="hosts", daemon=True)
        self.watch.start()

    def exchange(self, name: str, value: Any) -> list:
        """What all processes say, by index."""
        with self.change:
            key = f"{name} {self.times[name]}"
            self.times[name] += 1
        if self.index:
            self.lines[0].send({"say": key, "value": value})
        else:
            self._says(0, key, value)
        with self.change:
            self.change.wait_for(lambda: key in self.results)
            return self.results.pop(key)

    def part(self) -> None:
        """When all have said LEAVE."""
        for line in self.lines.values():
            with suppress(OSError):
                line.connection.shutdown(socket.SHUT_WR)
        self.watch.join(GRACE)
        for line in self.lines.values():
            line.close()

    def settle(self) -> None:
        """Ends this process if another is lost; an error is as likely to come first as the news."""
        self.watch.join(GRACE)

    def fail(self, code: int, why: str) -> NoReturn:
        """Ends this process. The others are told, unless all fail: then each says it itself."""
        why = why.strip().split("\n")[0]
        self._fails(self.index, why)
        if self.index:
            self.lines[0].send({"failing": why})
        self.watch.join(GRACE + self.patience)
        _exit(code)

    # ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, index: int, message: dict) -> End | None:
        match message:
            case {"end": [kind, why]}:
                return End(kind, why)
            case {"failing": why}:
                self._fails(index, why)
            case {"say": key, "value": value}:
                self._says(index, key, value)
            case {"all": key, "values": values}:
                self._ends_exchange(key, values)
        return None

    def _says(self, index: int, key: str, value: Any) -> None:
        """At process 0."""
        with self.change:
            self.said[key][index] = value
            if len(self.said[key]) < self.count:
                return
            said = self.said.pop(key)
        values = [said[i] for i in range(self.count)]
        for line in self.lines.values():
            line.send({"all": key, "values": values})
        self._ends_exchange(key, values)

    def _ends_exchange(self, key: str, values: list) -> None:
        with self.change:
            self.over |= key == f"{LEAVE} 0"
            self.results[key] = values
            self.change.notify_all()

    def _fails(self, index: int, why: str) -> None:
        with self.change:
            self.failing_since = self.failing_since or time.monotonic()
            self.failing[index] = why

    # ── the watch ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        awake = spoken = time.monotonic()
        end = None
        with selectors.DefaultSelector() as selector:
            for index, line in self.lines.items():
                selector.register(line.connection, selectors.EVENT_READ, index)
            while self.here and not end:
                ready = [key.data for key, _ in selector.select(BEAT / 2)]
                now = time.monotonic()
                if now - awake > 4 * BEAT:  # it was this process that stood still: it cannot tell of the others
                    for line in self.lines.values():
                        line.heard = now
                awake = now
                for index in ready:
                    end = end or self._read(index, selector)
                end = end or self._silent(now) or self._failed(now)
                if now - spoken > BEAT and not self.over:
                    spoken = now
                    self._tell({"beat": 1})
        if end:
            self._end(end)

    def _read(self, index: int, selector: selectors.BaseSelector) -> End | None:
        line = self.lines[index]
        more, messages, line.messages = line.read(), line.messages, []
        ends = [end for message in messages if (end := self._take(index, message))]
        if ends or more:
            return ends[0] if ends else None
        selector.unregister(line.connection)
        self.here.discard(index)
        if self.over or index in self.failing:
            return None
        return End("lost", f"process {index} of {self.count} is lost: its connection broke, as when it is killed")

    def _silent(self, now: float) -> End | None:
        for index in self.here:
            if now - self.lines[index].heard > self.patience and not self.over:
                self.here.discard(index)
                return End("lost", f"process {index} of {self.count} is lost: no sign of life for {self.patience:g} s")
        return None

    def _failed(self, now: float) -> End | None:
        """At process 0."""
        if self.index or not self.failing or (now - self.failing_since < GRACE and len(self.failing) < self.count):
            return None
        index, why = next(iter(self.failing.items()))
        return End("failed", f"process {index} of {self.count} failed: {why}")

    def _end(self, end: End) -> None:
        """Process 0 tells the others, and goes when they have gone: what JAX has in it, they still see until then."""
        if not self.index:
            self._tell({"end": end})
            deadline = time.monotonic() + GRACE
            for index in self.here:
                while (left := deadline - time.monotonic()) > 0 and self.lines[index].read(left):
                    pass
        if end.kind == "failed" and self.index in self.failing:
            return  # `fail` goes on
        what = f"lost: {end.why}; so process {self.index} ends: start all again, in any number, to resume"
        with suppress(OSError):
            os.write(2, f"{what}\n".encode())
        _exit(LOST)

    def _tell(self, message: dict) -> None:
        for index in self.here:
            self.lines[index].send(message)


def _exit(code: int) -> NoReturn:
    """At once; what was printed is written, if that takes no time."""
    flush = threading.Thread(target=lambda: [stream.flush() for stream in (sys.stdout, sys.stderr)], daemon=True)
    flush.start()
    flush.join(1.0)
    os._exit(code)
