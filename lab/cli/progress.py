# SPDX-License-Identifier: GPL-2.0-or-later
"""How far long work is: drawn on a terminal, plain lines in a log. Used by the command line alone."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from lab.model.verdict import Outcome, TrialRecord
from lab.report.text import clean

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

#: In a log, so many trials make a line.
LOG_EVERY: Final = 10
#: In a log, steps that are only a moment apart are not all worth a line.
LOG_STEP_S: Final = 5.0


class Progress:
    """Told of steps and trials. Made by :func:`open_progress`."""

    def __init__(self, bar: "Bar | None") -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None) if bar is not None else None
        self._total = 0
        self._done: Counter[Outcome] = Counter()
        self._told_at = 0.0
        self._told_head = ""

    def tell(self, step: str) -> None:
        """Say what is being done."""
        step = clean(step)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=step)
            return
        head = step.split()[0] if step else ""
        if head != self._told_head or time.monotonic() - self._told_at >= LOG_STEP_S:
            self._told_head, self._told_at = head, time.monotonic()
            sys.stderr.write(f"{step}\n")
            sys.stderr.flush()

    def begin(self, total: int) -> None:
        """Say how many trials there will be."""
        self._total = total
        if self._bar is not None and self._task is not None:
            self._bar.reset(self._task, total=total, description="trials")

    def advance(self, record: TrialRecord) -> None:
        """Say that a trial has ended."""
        self._done[record.outcome] += 1
        counts = " ".join(f"{outcome.value} {self._done[outcome]}" for outcome in Outcome if self._done[outcome])
        done = sum(self._done.values())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, description=counts)
        elif done % LOG_EVERY == 0 or done == self._total:
            sys.stderr.write(f"trial {done} of {self._total}: {counts}\n")
            sys.stderr.flush()

    def show_points(self, tried: int, known: int, broken: int) -> None:
        """Say how far a sweep is; how many points are known may grow."""
        text = f"points tried {tried} / points known {known}" + (f", {broken} broke" if broken else "")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=tried, total=known, description=text)
        elif tried == known or time.monotonic() - self._told_at >= LOG_STEP_S:
            self._told_at = time.monotonic()
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


@contextlib.contextmanager
def open_progress() -> Iterator[Progress]:
    """Show progress on standard error until the block is left."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    if not console.is_terminal:
        yield Progress(None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        yield Progress(bar)
