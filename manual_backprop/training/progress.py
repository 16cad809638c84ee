"""What a run shows while it runs: a bar with throughput and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
