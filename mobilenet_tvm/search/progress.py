"""Progress of a tuning run: one live line in a terminal, plain lines elsewhere.

Turns go from task to task and back, so a task's own line comes when it gets no more turns.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichBar

from mobilenet_tvm.records import Task
from mobilenet_tvm.search.allocation import Reason
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

    def started(self, tasks: int, trials: int, budget_s: float | None) -> None:
        """The run begins: of so many tasks, with at most so many trials or seconds."""

    def trial(
        self,
        task: Task,
        tried: int,
        limit: int,
        best_gflops: float,
        trial: Trial,
        model_s: float | None,
    ) -> None:
        """One trial ended.

        ``best_gflops`` is 0 while nothing of the task has succeeded; ``model_s`` is the estimate
        of one inference in seconds, None while a layer has nothing that runs.
        """

    def finished(
        self, task: Task, tried: int, best_gflops: float, failed: int, reason: Reason
    ) -> None:
        """The task gets no more turns."""


class PlainProgress:
    """One line a task when it is finished: for logs and pipes.

    With ``timed`` false, where times are an emulator's, it says what ran and not how fast.
    """

    def __init__(self, console: Console, *, timed: bool = True) -> None:
        self._console = console
        self._timed = timed
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

    def started(self, tasks: int, trials: int, budget_s: float | None) -> None:
        """See ``Progress``."""
        self._total = tasks
        limit = f" in at most {budget_s:.0f} s" if budget_s else ""
        self._console.print(f"tuning {tasks} tasks{limit}", highlight=False)

    def trial(
        self,
        task: Task,
        tried: int,
        limit: int,
        best_gflops: float,
        trial: Trial,
        model_s: float | None,
    ) -> None:
        """See ``Progress``."""

    def finished(
        self, task: Task, tried: int, best_gflops: float, failed: int, reason: Reason
    ) -> None:
        """See ``Progress``."""
        self._count += 1
        self._console.print(
            f"[{self._count}/{self._total}] "
            + summary(task, tried, best_gflops, failed, reason, timed=self._timed),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


class RichProgress(PlainProgress):
    """Below the finished tasks' lines one live bar of the whole run.

    It shows the time (without a time budget: the trials) used up, the estimate of one inference
    and the task at hand.
    """

    def __init__(self, console: Console, *, timed: bool = True) -> None:
        super().__init__(console, timed=timed)
        self._bar = RichBar(
            BarColumn(bar_width=20),
            TextColumn("{task.fields[used]}"),
            TextColumn("{task.fields[model]}"),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            refresh_per_second=2,  # drawing takes time from the core that is measured
        )
        self._line = self._bar.add_task("", used="", model="", visible=False)
        self._start_s = time.monotonic()
        self._budget_s: float | None = None
        self._made = 0
        self._possible = 0
        # Trials that a task has left: when it stops early they are not possible any more.
        self._left: dict[tuple[str, str], int] = {}

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

    def started(self, tasks: int, trials: int, budget_s: float | None) -> None:
        """See ``Progress``."""
        self._total, self._possible, self._budget_s = tasks, trials, budget_s
        self._start_s = time.monotonic()
        self._show()

    def trial(
        self,
        task: Task,
        tried: int,
        limit: int,
        best_gflops: float,
        trial: Trial,
        model_s: float | None,
    ) -> None:
        """See ``Progress``."""
        self._made += 1
        self._left[task.searcher, task.key] = limit - tried
        best = _speed(best_gflops, self._timed) if best_gflops else "nothing runs yet"
        self._bar.update(
            self._line,
            description=escape(f"{name(task)} {tried}/{limit}: {best}"),
            model=""
            if model_s is None or not self._timed
            else f"model about {1e3 * model_s:.3g} ms",
        )
        self._show()

    def finished(
        self, task: Task, tried: int, best_gflops: float, failed: int, reason: Reason
    ) -> None:
        """See ``Progress``."""
        super().finished(task, tried, best_gflops, failed, reason)
        self._possible -= self._left.pop((task.searcher, task.key), 0)
        self._show()

    def _show(self) -> None:
        """Bring the bar up to date."""
        if self._budget_s is None:
            done, total = float(self._made), float(self._possible)
            used = f"{self._made}/{self._possible} trials"
        else:
            done, total = min(time.monotonic() - self._start_s, self._budget_s), self._budget_s
            used = f"{done:.0f}/{total:.0f} s"
        self._bar.update(self._line, completed=done, total=total, used=used, visible=True)


def name(task: Task) -> str:
    """``ansor depthwise 3x3/2 64 @ 112x112``."""
    return f"{task.searcher} {task.label}"


def _speed(best_gflops: float, timed: bool) -> str:
    return f"{best_gflops:.1f} GFLOP/s" if timed else "it runs"


def summary(
    task: Task,
    tried: int,
    best_gflops: float,
    failed: int,
    reason: Reason,
    *,
    timed: bool = True,
) -> str:
    """``ansor conv 3x3 8 @ 9x9: 62.5 GFLOP/s after 24 trials, 2 failed (near the roofline)``."""
    if not tried:
        return f"{name(task)}: not tried ({reason})"
    best = _speed(best_gflops, timed) if best_gflops else "nothing ran"
    trials = f"{tried} trial" if tried == 1 else f"{tried} trials"
    failures = f", {failed} failed" if failed else ""
    return f"{name(task)}: {best} after {trials}{failures} ({reason})"
