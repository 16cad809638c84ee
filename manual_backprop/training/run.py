"""A run: what it writes, how it goes on, and how it ends. An experiment ends with `run.main(main)`.

def main(stop) -> int:
    config, folder = parsed(Config, "digits")
    with place(config) as mesh, opened("digits", config, folder, mesh, stop, console, speed) as run:
        run.restore(training)                                       the newest whole checkpoint, if there is one
        for training, metrics in run.chunks(step, data, chunk):
            run.record(training, metrics, {"accuracy": …}, score)   a row; and a checkpoint, when it is time
        return run.finished({"accuracy": …})                        run.training is where it ended
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from manual_backprop.errors import InputError
from manual_backprop.training import hosts, writers
from manual_backprop.training.checkpoints import Checkpoints, digest
from manual_backprop.training.config import CONFIG, Config, absolute, changes, made, read
from manual_backprop.training.environment import differences, environment
from manual_backprop.training.folder import (
    ENVIRONMENT,
    EVENTS,
    METRICS,
    RESULT,
    append,
    flushed,
    lines,
    locked,
    new_folder,
    now,
    trimmed,
    write_json,
)  # fmt: skip
from manual_backprop.training.loop import Metrics, NonFinite, Step, Training, train
from manual_backprop.training.progress import Speed, progress
from manual_backprop.training.report import write_report
from manual_backprop.training.signals import GRACE, Stop, stopping

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what is no fault of ours
OF_ONE_START = ("folder", "resume", "allow_change", "hosts")  # not in config.json: it can be used again as it is


class Run:
    """One that is open; `opened` makes it."""

    def __init__(self, folder: Path, config: Config, stop: Stop, console: Console, speed: Speed, here: dict):
        self.folder, self.config, self.stop, self.speed = folder, config, stop, speed
        self.console = console if hosts.is_first() else Console(quiet=True)
        self.here = here  # what environment.json is to hold
        self.checkpoints = Checkpoints(folder / "checkpoints", config.save.keep, self.warn, self.saved, here["run"])
        self.every = config.save.every or max(1, config.steps // 10)
        self.asked = 0  # the step of the last one
        self.rows: list[dict] = []
        self.training: Training | None = None  # after the last row
        self.score: float | None = None
        self.failure: NonFinite | None = None
        self.stopping = False  # every process knows that one was asked to stop
        self.saving = threading.Lock()
        self.open = ExitStack()

    @property
    def step(self) -> int:
        """How many are done."""
        return int(self.training.step) if self.training else 0

    @property
    def complete(self) -> bool:
        """Whether the last one was reached."""
        return not (self.failure or self.stopping)

    # ── what an experiment calls ─────────────────────────────────────────────────────────────────────────────────────

    def restore(self, training: Training) -> None:
        """Goes on from the newest whole checkpoint; from `training` itself where there is none yet.

        Raises InputError where there were some, and none can be used.
        """
        found = self.checkpoints.restore(training, saved_steps(self.folder))
        self.training = training if found is None else found
        self.asked = self.step
        if self.step > self.config.steps:
            raise InputError(f"--steps {self.config.steps}: the run is at step {self.step}; wants at least as many")
        if found is not None:
            self.event("restored", self.step)
            self.print(f"resumed at step {self.step} of {self.config.steps}")
        if hosts.is_first():
            self.change()
            if found is None and lines(self.folder / METRICS):
                self.warn("there is no checkpoint yet: from the beginning")
            self.rows = trimmed(self.folder / METRICS, self.step, self.warn)
            if (self.rows[-1]["step"] if self.rows else 0) != self.step:
                self.warn(f"{METRICS} has no row of step {self.step}: rows before it are lost")

    def chunks(self, step: Step, data, chunk: int) -> Iterator[tuple[Training, Metrics]]:
        """`train`, to the last step, a signal, or a cost that is not finite; `finished` knows which."""
        self.writers = list(self.start_writers()) if hosts.is_first() else []
        self.update = self.open.enter_context(progress(self.console, self.config.steps))
        self.stop.grace = GRACE if jax.process_count() == 1 else 6 * GRACE  # several save together, or not at all
        chunk = self.config.log.every or min(chunk, self.config.save.every or chunk)
        try:
            for training, metrics in self.speed.timed(train(step, self.training, data, self.config.steps, chunk)):
                yield training, metrics
                if not self.complete:
                    return
        except NonFinite as error:
            self.failure = error

    def record(self, training: Training, metrics: Metrics, more: dict[str, Any], score: float | None = None) -> None:
        """A row of metrics for the steps of a chunk, and a checkpoint when it is time. The lowest score is kept."""
        row = {"step": int(training.step), **summary(metrics), **more}
        self.rows.append(row)
        if hosts.is_first():
            append(self.folder / METRICS, row)
            for write in self.writers:
                write(row)
        self.training, self.score = training, score
        self.stopping = hosts.agreed(self.stop.requested)
        self.event("speed", self.step, **self.speed.of_chunk())
        if row["skipped"]:
            self.event("skipped", self.step, count=row["skipped"])
        shown = [
            f"{name.replace('_', ' ')} {row[name]:.4f}" for name in ("cost", *more) if isinstance(row[name], float)
        ]
        self.update(self.step, "  ".join(filter(None, [*shown, self.speed.in_words()])))
        if self.stopping:
            self.stop.grace = math.inf  # the loop has come round: it may take the time that it needs
        if self.step == self.config.steps or self.stopping or self.due():
            try:
                self.save()
            except NonFinite as error:
                self.failure = error

    def finished(self, results: dict[str, Any]) -> int:
        """Writes what is left, and gives the exit code. Raises the NonFinite that ended the run."""
        self.open.close()
        with self.saving:
            self.checkpoints.wait()
        if self.failure:
            self.event("failed", self.step, why=str(self.failure))
        elif self.stopping:
            self.event("stopped", self.step, by=str(self.stop))
        else:
            results = {"step": self.step, **results, "sha256": digest(self.training)}
            if hosts.is_first() and (self.speed.last or not (self.folder / RESULT).exists()):
                write_json(self.folder / RESULT, results)
            self.event("finished", self.step, sha256=results["sha256"])
        if hosts.is_first():
            write_report(self.folder)
        self.print(f"wrote   {self.folder}/")
        hosts.barrier("finished")  # all end alike
        if self.failure:
            raise self.failure
        if self.stopping:
            self.print(f"stopped by {self.stop} after step {self.step}; {self.kept()}")
            self.print(f"go on   --resume {self.folder}")
            return self.stop.exit_code
        self.print(f"state   sha256 {results['sha256']}")
        if self.checkpoints.failure:
            raise InputError(f"{self.folder}: the last checkpoint could not be written: {self.checkpoints.failure}")
        return 0

    def file(self, name: str) -> Path:
        """A file of this run's end; one that an earlier end left can be made again, and is."""
        (self.folder / name).unlink(missing_ok=True)
        return self.folder / name

    def print(self, text: Any) -> None:
        """On the console of the first process."""
        self.console.print(text)

    # ── within ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def event(self, name: str, step: int, **more: Any) -> None:
        if hosts.is_first():
            append(self.folder / EVENTS, {"time": now(), "event": name, "step": step, **more})

    def warn(self, text: str) -> None:
        self.print(f"warning: {text}")
        self.event("warning", self.step, text=text)

    def due(self) -> bool:
        """Whether it is time for a checkpoint. Where nobody said when, no step waits for the disk."""
        if self.step // self.every == self.asked // self.every:
            return False
        return bool(self.config.save.every) or not hosts.agreed(self.checkpoints.busy)

    def save(self) -> None:
        """A checkpoint; the rows up to it are on the disk before."""
        self.asked = self.step
        with self.saving:
            if hosts.is_first():
                flushed(self.folder / METRICS)
            self.checkpoints.save(self.training, self.score)

    def saved(self, step: int, seconds: float, score: float | None) -> None:
        """In the thread that wrote it."""
        self.event("saved", step, seconds=round(seconds, 3), score=score)

    def rescue(self) -> None:
        """In the thread of the signals, where the loop has not come back from compiling, evaluating or a long chunk."""
        self.console.show_cursor(True)
        if self.training and jax.process_count() == 1:  # several would have to save at the same step
            self.save()
            self.checkpoints.wait()
        self.event("stopped", self.step, by=str(self.stop))
        when = "before the first step" if self.training is None else "before or between two rows"
        self.print(f"stopped by {self.stop} {when}; {self.kept()}")
        self.print(f"go on   --resume {self.folder}")
        hosts.fail(self.stop.exit_code, f"stopped by {self.stop}")

    def kept(self) -> str:
        """What can be gone on from."""
        newest, failure = self.checkpoints.newest, self.checkpoints.failure
        known = "nothing is saved yet" if newest is None else f"step {newest} is saved"
        return f"{known}; the last checkpoint could not be written: {failure}" if failure else known

    def change(self) -> None:
        """Tells what is different from before, keeps it, and writes config.json and environment.json."""
        own, before = read(self.folder / CONFIG), read(self.folder / ENVIRONMENT)
        if different := differences(before, self.here):
            self.warn(f"the same bits want the same packages, device and topology: {'; '.join(different)}")
        if different := changes(made(type(self.config), own, str(self.folder / CONFIG)), self.config):
            (kept := self.folder / f"before-{len(list(self.folder.glob('before-*'))) + 1}").mkdir()
            for name in (CONFIG, METRICS, RESULT):
                if (self.folder / name).exists():
                    shutil.copy2(self.folder / name, kept)
            self.warn(f"the configuration is another: {'; '.join(different)}; the old one is in {kept}")
        if self.step < self.config.steps:
            (self.folder / RESULT).unlink(missing_ok=True)  # of an end that is none any more; it is made again
        self.describe()

    def describe(self) -> None:
        """config.json is the last: it makes a folder a run's."""
        config = dataclasses.asdict(self.config)
        write_json(self.folder / ENVIRONMENT, self.here)
        write_json(self.folder / CONFIG, absolute({k: v for k, v in config.items() if k not in OF_ONE_START}))

    def start_writers(self) -> Iterator[Callable[[dict], None]]:
        log = self.config.log
        if log.tensorboard:
            yield self.open.enter_context(writers.tensorboard(self.folder, self.step))
        if log.wandb:
            described = dataclasses.asdict(self.config)
            yield self.open.enter_context(writers.wandb_run(self.folder, log.wandb, described, self.step))


@contextmanager
def opened(
    experiment: str,
    config: Config,
    folder: Path | None,
    mesh: Mesh,
    stop: Stop,
    console: Console,
    speed: Speed,
    data: str = "",
) -> Iterator[Run]:
    """A new run, or the one in `folder` that goes on. Raises InputError for a folder that is taken or in use.

    speed: what its steps have, and how many of it.  data: what they read, in a few words; another is a warning.
    """
    make = lambda: str(folder or new_folder(experiment, config.folder, config.resume != "never"))
    path = Path(hosts.from_first(make))
    with ExitStack() as held:
        if hosts.is_first():
            held.enter_context(locked(path))
        own = lambda: read(path / ENVIRONMENT).get("run", "") if folder else secrets.token_hex(8)
        here = environment(experiment, config, mesh, data) | {"run": hosts.from_first(own)}
        run = Run(path, config, stop, console, speed, here)
        if hosts.is_first():
            if not folder:
                run.describe()
            (path / METRICS).touch()
        run.event("resumed" if folder else "started", 0, processes=here["processes"], pid=os.getpid())
        held.callback(run.open.close)
        held.callback(run.checkpoints.close)
        held.callback(setattr, stop, "rescue", None)  # the first to be called
        stop.rescue = run.rescue
        yield run


def saved_steps(folder: Path) -> list[int]:
    """The steps that were saved since the run last went on, and the one from where it did."""
    steps = []
    for event in lines(folder / EVENTS):
        if event.get("event") == "restored":
            steps = []
        if event.get("event") in ("restored", "saved"):
            steps.append(event["step"])
    return steps


def summary(metrics: Metrics) -> dict[str, Any]:
    """Means over the steps of a chunk that were not left out; None where all were."""
    kept = ~metrics.skipped
    mean = lambda values: None if values is None or not kept.any() else values[kept].mean(0).tolist()
    row = {"cost": mean(metrics.cost), "gradient_norm": mean(metrics.gradient_norm), "skipped": int((~kept).sum())}
    return row | ({"layer_norms": jax.tree.map(mean, metrics.more)} if metrics.more else {})


def main(experiment: Callable[[Stop], int | None]) -> None:
    """Runs and exits: 2 and one line for a user's mistake, 1 for a cost that is not finite, 130 for Ctrl-C, 143 for
    SIGTERM, 141 where nobody reads any more, `hosts.LOST` where another process was lost."""
    with stopping() as stop:
        code, why = 0, ""
        try:
            code = experiment(stop) or 0
        except InputError as error:
            code, why = 2, f"error: {error}"
        except NonFinite as error:
            code, why = 1, f"stopped: {error}"
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; so do we, in silence
            code = 141
        except OSError as error:
            if not error.filename and error.errno not in DISK:
                raise
            code, why = 2, f"error: {error.filename or 'a file'}: {error.strerror}"
        if why:
            print(why, file=sys.stderr)
        if code:
            hosts.fail(code, why)
    sys.exit(code)
