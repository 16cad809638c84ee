"""SIGTERM and Ctrl-C: asked to stop, a run saves and ends within seconds, whatever it is doing.

Python's own handlers wait until the main thread comes back from compiled code, or from compiling, which may take
minutes. So a thread waits for the signals. It asks the loop to stop; where the loop does not get round to it in time,
the thread does itself what has to be done, and ends the process. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

GRACE = 5.0  # seconds that a loop has
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Stop:
    """Whether the process was asked to stop, and by what."""

    signal: signal.Signals | None = None
    grace = 0.0  # how long the thread waits: not at all, before there is a loop
    rescue: Callable[[], None] | None = None  # what it does then, before it ends the process

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.signal]

    def __str__(self) -> str:
        return "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name


@contextmanager
def stopping() -> Iterator[Stop]:
    """Watches over the signals of this block, which is in the main thread."""
    stop, (read, write) = Stop(), socket.socketpair()
    write.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in EXIT_CODES}
    wakeup = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(stop, read), name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        write.close()
        thread.join()
        read.close()


def _watch(stop: Stop, read: socket.socket) -> None:
    asked, ending = None, None
    while True:
        endless = asked is None or ending or stop.grace == math.inf
        left = None if endless else max(0.0, asked + stop.grace - time.monotonic())
        if not select.select([read], [], [], left)[0]:
            if time.monotonic() >= asked + stop.grace:  # else it was given more time meanwhile
                ending = threading.Thread(target=_end, args=(stop,), daemon=True)
                ending.start()  # while this one goes on listening, for a second Ctrl-C
            continue
        numbers = read.recv(64)
        if not numbers:  # the block has ended
            return
        for number in numbers:
            if number == signal.SIGINT and stop.requested:
                os._exit(EXIT_CODES[signal.SIGINT])
            if number in EXIT_CODES and not stop.requested:
                stop.signal, asked = signal.Signals(number), time.monotonic()


def _end(stop: Stop) -> None:
    try:
        if stop.rescue:
            stop.rescue()
        else:
            print("interrupted" if stop.signal == signal.SIGINT else f"ended by {stop}", file=sys.stderr)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
    except Exception as error:
        print(f"stopped by {stop}: {error}", file=sys.stderr)
    finally:
        os._exit(stop.exit_code)
