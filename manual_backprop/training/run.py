"""A run's folder, its files, and how it ends. Nothing saved is overwritten."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from manual_backprop.errors import InputError
from manual_backprop.training.loop import NonFinite


def new_folder(experiment: str, folder: Path | None = None) -> Path:
    """Makes a folder: `folder`, or runs/<experiment>/<time>. Raises InputError if it exists or cannot be made."""
    chosen = folder or Path("runs") / experiment / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path, number = chosen, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if folder:
                raise InputError(f"run folder {path} exists; nothing is overwritten: name another") from None
            number += 1
            path = chosen.with_name(f"{chosen.name}_{number}")  # a second run in the same second
        except OSError as error:
            raise InputError(f"run folder {path} cannot be made: {error.strerror}") from None


def want_seed(seed: int) -> None:
    """Raises InputError for a seed that JAX's keys do not take."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} is out of range; wants 0 … {2**32 - 1}")


def write_json(path: Path, value: Any) -> None:
    """All of the file or none of it; paths as text."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1, default=str) + "\n")
    partial.rename(path)


def append_row(file: IO[str], row: dict) -> None:
    """One line of a metrics file, on disk at once."""
    file.write(json.dumps(row) + "\n")
    file.flush()


class Stop:
    """Whether the run was asked to stop."""

    requested = False


@contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """The first Ctrl-C asks the loop to stop and finish its files; the second quits at once."""
    stop = Stop()

    def ask(signum, frame):
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


def main(experiment: Callable[[], int | None]) -> None:
    """Runs and exits: 2 and one line for a user's mistake, 1 for a cost that is not finite, 130 for Ctrl-C."""
    try:
        code = experiment() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except NonFinite as error:
        print(f"stopped: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; so do we, in silence
        code = 141
    sys.exit(code)
