"""The display of a running study: the position of each running trial, finished trials, and the time left.

On a terminal it is a table that redraws itself, elsewhere (a log file, CI) a line every few seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_EVERY_SECONDS = 15.0


@dataclass
class _Running:
    position: str = "starting"
    accuracy: str = ""  # with the images that it is of
    remaining: float | None = None  # seconds
    share: float = 0.0
    since: float = field(default_factory=time.monotonic)


class Progress:
    """Shows one phase of a study (the searches, or the evaluations).

    Args:
        what: the noun of the trials, in plural.
        total: the number of trials of the phase.
        done: the number of trials that earlier runs finished.
        slots: the number of trials at the same time.
    """

    def __init__(self, what: str, total: int, done: int, slots: int, console: Console | None = None) -> None:
        self.what, self.total, self.done, self.slots = what, total, done, slots
        self.failed = 0
        self.running: dict[str, _Running] = {}
        self.durations: list[float] = []
        self.console = console or Console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.last_line = time.monotonic()

    def __enter__(self) -> Self:
        again = f", {self.done} already done" if self.done else ""
        self.console.print(f"{self.total} {self.what}{again}, {self.slots} at a time", highlight=False)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def started(self, trial_id: str) -> None:
        """A trial got its resources."""
        self.running[trial_id] = _Running()
        self._show()

    def epoch(
        self,
        trial_id: str,
        position: str,
        accuracy: tuple[str, float],
        done_epochs: int,
        total_epochs: int,
        epoch_seconds: float,
        warning: str = "",
    ) -> None:
        """A trial finished an epoch. `accuracy` names the images that it is of (validation, training), then says the fraction.

        A warning is printed at once, on a line that stays.
        """
        if warning:
            self.console.print(
                f"{self._count()} {trial_id}: [yellow]warning[/yellow]: {escape(warning)}", highlight=False, soft_wrap=True
            )
        row = self.running.setdefault(trial_id, _Running())
        row.position, row.accuracy = position, f"{accuracy[0]} {100 * accuracy[1]:.1f} %"
        row.remaining = (total_epochs - done_epochs) * epoch_seconds
        row.share = done_epochs / total_epochs
        self._show()

    def retried(self, trial_id: str, error: str) -> None:
        """A trial failed and is started again from its last finished epoch."""
        self.running.pop(trial_id, None)
        self.console.print(f"{self._count()} {trial_id}: [yellow]started again[/yellow] after {escape(error)}", highlight=False)

    def finished(self, trial_id: str, error: str | None = None) -> None:
        """A trial is over, for good."""
        row = self.running.pop(trial_id, _Running())
        self.done += 1
        self.failed += error is not None
        self.durations.append(time.monotonic() - row.since)
        accuracy = f", accuracy: {row.accuracy}" if row.accuracy else ""
        outcome = f"[red]failed[/red]: {escape(error)}" if error else f"done in {_span(self.durations[-1])}{accuracy}"
        self.console.print(f"{self._count()} {trial_id}: {outcome}", highlight=False)
        self._show()

    def _count(self) -> str:
        return f"{self.done:{len(str(self.total))}}/{self.total}"

    def seconds_left(self) -> float | None:
        """Until the phase is over: the mean duration of finished trials over the slots; None before there is one."""
        if not self.durations:
            return None
        mean = sum(self.durations) / len(self.durations)
        waiting = self.total - self.done - len(self.running)
        under_way = sum(mean * (1 - row.share) for row in self.running.values())
        return (waiting * mean + under_way) / self.slots

    def _show(self) -> None:
        remaining = self.seconds_left()
        over = "" if remaining is None else f", about {_span(remaining)} left"
        if self.live:
            table = Table(box=None, pad_edge=False)
            for name, justify in (("trial", "left"), ("position", "left"), ("accuracy", "right"), ("time left", "right")):
                table.add_column(name, justify=justify)  # type: ignore[arg-type]
            for trial_id, row in self.running.items():
                table.add_row(trial_id, row.position, row.accuracy, "" if row.remaining is None else _span(row.remaining))
            bar = ProgressBar(self.total, self.done, width=40)
            self.live.update(Group(table, bar, Text(f"{self._count()} {self.what}{over}")), refresh=True)
        elif time.monotonic() - self.last_line >= LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            under_way = "; ".join(
                f"{trial_id} {row.position}" + (f", accuracy: {row.accuracy}" if row.accuracy else "")
                for trial_id, row in self.running.items()
            )
            self.console.print(f"{self._count()} {self.what}{over} | {under_way}", highlight=False, soft_wrap=True)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
