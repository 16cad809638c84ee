"""What a run shows while it runs: a bar with throughput and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(console: Console, steps: int, lines: int = 10) -> Iterator[Callable[[int, str], None]]:
    """Gives `update(step, text)`. Where there is no terminal it prints about `lines` lines in all.

    The first update starts the clock, so that compiling does not count into the throughput.
    """
    clock = _Clock()
    if console.is_terminal:
        columns = "step {task.completed}/{task.total}", "{task.fields[rate]}", "{task.fields[text]}"
        bar = Progress(BarColumn(), *map(TextColumn, columns), TimeRemainingColumn(), console=console)
        with bar:
            task = bar.add_task("", total=steps, rate="", text="compiling …")
            yield lambda step, text: bar.update(task, completed=step, rate=clock.rate(step), text=text)
        return

    shown = 0

    def print_line(step: int, text: str) -> None:
        nonlocal shown
        rate = clock.rate(step)
        if step * lines // steps > shown or step == steps:
            shown = step * lines // steps
            console.print(f"step {step}/{steps}  {rate}  {clock.left(step, steps)}  {text}")

    yield print_line


class _Clock:
    """Throughput since the first call."""

    def __init__(self):
        self.start = None

    def rate(self, step: int) -> str:
        if self.start is None:
            self.start = step, time.perf_counter()
        return f"{self._per_second(step):.0f} steps/s"

    def left(self, step: int, steps: int) -> str:
        rate = self._per_second(step)
        return f"{(steps - step) / rate:.0f} s left" if rate else "? s left"

    def _per_second(self, step: int) -> float:
        first, start = self.start
        return (step - first) / (time.perf_counter() - start) if step > first else 0.0


@dataclass
class Speed:
    """Of training alone: without evaluation, and without the first chunk, in which the program is compiled.

    unit: what a step has `per_step` of.  flops: of a step, in matrix products; limit: what the device reaches in those.
    """

    unit: str = "examples"
    per_step: int = 1
    flops: float | None = None
    limit: float | None = None
    steps: int = 0
    seconds: float = 0.0
    last: tuple[int, float] | None = None  # steps and seconds of the last chunk

    def timed(self, chunks: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """The same chunks, (training, metrics), their time taken."""
        first, begin = True, time.perf_counter()
        for training, metrics in chunks:
            if not first:
                self.last = len(metrics.cost), time.perf_counter() - begin
                self.steps, self.seconds = self.steps + self.last[0], self.seconds + self.last[1]
            first = False
            yield training, metrics
            begin = time.perf_counter()

    def of_chunk(self) -> dict[str, Any]:
        """The last chunk's, for a row; nothing for the first."""
        return self._rates(*self.last) if self.last else {}

    def results(self) -> dict[str, Any]:
        """Of all chunks but the first; nothing where there was one."""
        return self._rates(self.steps, self.seconds) if self.steps else {}

    def in_words(self) -> str:
        rates = self.of_chunk()
        if not rates:
            return ""
        used = f", {100 * rates['utilization']:.0f} % MFU" if "utilization" in rates else ""
        return f"{rates['units_per_second']:,.0f} {self.unit}/s{used}"

    def _rates(self, steps: int, seconds: float) -> dict[str, Any]:
        rate = steps / seconds
        rates = {"steps_per_second": rate, "units_per_second": rate * self.per_step, "unit": self.unit}
        if self.flops and self.limit:
            rates |= {"flops_per_second": rate * self.flops, "utilization": rate * self.flops / self.limit}
        return rates
