"""Progress of a tuning run: one live line a task in a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichBar,
)

from mobilenet_tvm.records import Task
from mobilenet_tvm.search.trial import Trial


class Progress(Protocol):
    """What a tuning run reports."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def started(self, tasks: int, budget_s: float | None) -> None:
        """The run begins."""

    def trial(self, task: Task, tried: int, limit: int, best_gflops: float, trial: Trial) -> None:
        """One trial ended; ``best_gflops`` is 0 while nothing has succeeded."""

    def finished(self, task: Task, tried: int, best_gflops: float, failed: int) -> None:
        """Nothing is left to try of a task, or the budget is used up."""


class PlainProgress:
    """One line a task when it is finished: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._count = 0
        self._total = 0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def started(self, tasks: int, budget_s: float | None) -> None:
        """See ``Progress``."""
        self._total = tasks
        limit = f" in at most {budget_s:.0f} s" if budget_s else ""
        self._console.print(f"tuning {tasks} tasks{limit}", highlight=False)

    def trial(self, task: Task, tried: int, limit: int, best_gflops: float, trial: Trial) -> None:
        """See ``Progress``."""

    def finished(self, task: Task, tried: int, best_gflops: float, failed: int) -> None:
        """See ``Progress``."""
        self._count += 1
        self._console.print(
            f"[{self._count}/{self._total}] {summary(task, tried, best_gflops, failed)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


class RichProgress:
    """One live line a task, with its best GFLOP/s, its trials and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[best]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=2,  # drawing takes time from the core that is measured
        )
        self._lines: dict[str, TaskID] = {}
        self._count = 0
        self._total = 0

    def __enter__(self) -> RichProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def started(self, tasks: int, budget_s: float | None) -> None:
        """See ``Progress``."""
        self._total = tasks

    def trial(self, task: Task, tried: int, limit: int, best_gflops: float, trial: Trial) -> None:
        """See ``Progress``."""
        if task.key not in self._lines:
            self._lines[task.key] = self._bar.add_task(escape(task.label), total=limit, best="")
        best = f"{best_gflops:6.1f} GFLOP/s" if best_gflops else "nothing runs yet"
        self._bar.update(self._lines[task.key], completed=tried, best=best)

    def finished(self, task: Task, tried: int, best_gflops: float, failed: int) -> None:
        """See ``Progress``."""
        self._count += 1
        line = self._lines.pop(task.key, None)
        if line is not None:
            self._bar.remove_task(line)
        self._bar.console.print(
            f"[{self._count}/{self._total}] {summary(task, tried, best_gflops, failed)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def summary(task: Task, tried: int, best_gflops: float, failed: int) -> str:
    """``depthwise 3x3/2 64 @ 112x112: 62.5 GFLOP/s, 24 trials, 2 failed``."""
    best = f"{best_gflops:.1f} GFLOP/s" if best_gflops else "nothing ran"
    failures = f", {failed} failed" if failed else ""
    return f"{task.label}: {best}, {tried} trials{failures}"
