"""The display of a running study: the variants so far, the position of each running trial, finished trials, and the time left.

On a terminal it redraws itself. Elsewhere (a log file, CI) it prints a line for each finished trial and the variants every few
seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text
from tabulate import tabulate

LINE_EVERY_SECONDS = 15.0
EVALUATIONS = "evaluations"


@dataclass
class _Running:
    position: str = "starting"
    accuracy: str = ""  # with the images that it is of
    remaining: float | None = None  # seconds
    share: float = 0.0
    since: float = field(default_factory=time.monotonic)


class Progress:
    """Shows a study while it runs.

    Args:
        total: the number of trials of each kind: searches (or schedules) first, then `EVALUATIONS`. It may change on the way.
        done: the numbers of trials that earlier runs finished.
        slots: the number of trials at the same time.
        table: the variants so far, as text; drawn anew when a trial ends.
    """

    def __init__(
        self,
        total: Mapping[str, int],
        done: Mapping[str, int],
        slots: int,
        table: Callable[[], str] = str,
        console: Console | None = None,
    ) -> None:
        self.total, self.done, self.slots, self.table = dict(total), dict(done), slots, table
        self.failed = 0
        self.running: dict[str, _Running] = {}
        self.durations: dict[str, list[float]] = {kind: [] for kind in self.total}
        self.console = console or Console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.last_line = self.last_table = time.monotonic()
        self.variants = ""

    def __enter__(self) -> Self:
        counts = [
            f"{'at most ' if kind == EVALUATIONS else ''}{total} {kind}"
            + (f" ({self.done[kind]} already done)" if self.done[kind] else "")
            for kind, total in self.total.items()
        ]
        self._print(f"{', '.join(counts)}, {self.slots} at a time")
        if self.live:
            self.live.start()
            self.variants = self.table()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def started(self, trial_id: str) -> None:
        """A trial got its resources."""
        self.running[trial_id] = _Running()
        self._show()

    def epoch(self, trial_id: str, report: Mapping[str, Any]) -> None:
        """A trial finished an epoch, and reports what `study/trainable.py` says. A warning is printed at once and stays.

        The accuracy of a report names the images that it is of (validation, training), then says the fraction.
        """
        if warning := report.get("warning"):
            self._print(f"{trial_id}: [yellow]warning[/yellow]: {escape(warning)}")
        row, (images, accuracy) = self.running.setdefault(trial_id, _Running()), report["accuracy"]
        row.position, row.accuracy = report["position"], f"{images} {100 * accuracy:.1f} %"
        row.remaining = (report["total_epochs"] - report["done_epochs"]) * report["epoch_seconds"]
        row.share = report["done_epochs"] / report["total_epochs"]
        self._show()

    def retried(self, trial_id: str, error: str) -> None:
        """A trial failed and is started again from its last finished epoch."""
        self.running.pop(trial_id, None)
        self._print(f"{trial_id}: [yellow]started again[/yellow] after {escape(error)}")

    def finished(self, trial_id: str, *, is_evaluation: bool = False, error: str | None = None) -> None:
        """A trial is over, for good."""
        row, kind = self.running.pop(trial_id, _Running()), EVALUATIONS if is_evaluation else next(iter(self.total))
        self.done[kind] += 1
        self.failed += error is not None
        self.durations[kind].append(time.monotonic() - row.since)
        accuracy = f", accuracy: {row.accuracy}" if row.accuracy else ""
        outcome = f"[red]failed[/red]: {escape(error)}" if error else f"done in {_span(self.durations[kind][-1])}{accuracy}"
        self._print(f"{self._count(kind)} {trial_id}: {outcome}")
        if self.live:
            self.variants = self.table()
        elif time.monotonic() - self.last_table >= LINE_EVERY_SECONDS and (table := self.table()):
            self.last_table = self.last_line = time.monotonic()
            self.console.print(Text(table), soft_wrap=True)
        self._show()

    def seconds_left(self) -> float | None:
        """Until the study is over, from the mean duration of each kind's finished trials; None before there are any."""
        left = 0.0
        for kind, durations in self.durations.items():
            waiting = self.total[kind] - self.done[kind]
            if waiting and not durations:
                return None
            left += waiting * fmean(durations) if waiting else 0.0
        means = [fmean(durations) for durations in self.durations.values() if durations]
        under_way = sum(row.share for row in self.running.values()) * fmean(means) if means else 0.0
        return max(0.0, left - under_way) / self.slots

    def _count(self, kind: str) -> str:
        return f"{kind} {self.done[kind]:{len(str(self.total[kind]))}}/{self.total[kind]}"

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)  # a line a record, at any width

    def _show(self) -> None:
        remaining = self.seconds_left()
        counts = ", ".join(map(self._count, self.total)) + ("" if remaining is None else f", about {_span(remaining)} left")
        if self.live:
            rows = [
                (trial_id, row.position, row.accuracy, "" if row.remaining is None else _span(row.remaining))
                for trial_id, row in self.running.items()
            ]
            trials = tabulate(rows, ("trial", "position", "accuracy", "time left"), tablefmt="plain", disable_numparse=True)
            self.live.update(Text(f"{self.variants}\n\n{trials}\n\n{counts}".lstrip(), no_wrap=True), refresh=True)
        elif time.monotonic() - self.last_line >= LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            under_way = "; ".join(
                f"{trial_id} {row.position}" + (f", accuracy: {row.accuracy}" if row.accuracy else "")
                for trial_id, row in self.running.items()
            )
            self._print(f"{counts} | {escape(under_way)}")


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
