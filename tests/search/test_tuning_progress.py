"""What a person sees of a tuning run."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from mobilenet_tvm.records import Task
from mobilenet_tvm.search import Failure, PlainProgress, RichProgress, Trial

GOOD, BAD = Trial(0, (1e-6,)), Trial(1, (), Failure.RUN_ERROR, "no")


def report(progress: PlainProgress | RichProgress, tasks: tuple[Task, ...]) -> None:
    with progress:
        progress.started(len(tasks), 90.0)
        for task in tasks:
            progress.trial(task, 1, 24, 0.0, BAD)
            progress.trial(task, 2, 24, 62.46, GOOD)
        progress.finished(tasks[0], 24, 62.46, 2)
        progress.finished(tasks[1], 5, 0.0, 5)
        progress.finished(tasks[2], 1, 103.0, 0)


LINES = [
    "[1/3] conv 3x3/2 3->8 @ 32x32: 62.5 GFLOP/s, 24 trials, 2 failed",
    "[2/3] depthwise 3x3 8 @ 16x16: nothing ran, 5 trials, 5 failed",
    "[3/3] pointwise 1x1 8->16 @ 16x16: 103.0 GFLOP/s, 1 trials",
]


def test_plain_progress_is_one_line_a_task(tiny_tasks: tuple[Task, ...]) -> None:
    screen = StringIO()
    report(PlainProgress(Console(file=screen, width=30)), tiny_tasks[:3])
    assert screen.getvalue().splitlines() == ["tuning 3 tasks in at most 90 s", *LINES]


def test_plain_progress_without_a_time_budget() -> None:
    screen = StringIO()
    PlainProgress(Console(file=screen)).started(21, None)
    assert screen.getvalue() == "tuning 21 tasks\n"


@pytest.mark.parametrize("width", [60, 200])
def test_live_progress_leaves_the_same_lines(tiny_tasks: tuple[Task, ...], width: int) -> None:
    screen = StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    report(RichProgress(console), tiny_tasks[:3])
    for line in LINES:
        assert line in screen.getvalue()


def test_live_line_shows_trials_and_best(tiny_tasks: tuple[Task, ...]) -> None:
    screen = StringIO()
    console = Console(file=screen, width=200, force_terminal=True, color_system=None)
    with RichProgress(console) as progress:
        progress.started(1, None)
        progress.trial(tiny_tasks[0], 1, 24, 0.0, BAD)
        progress._bar.refresh()
        progress.trial(tiny_tasks[0], 2, 24, 62.46, GOOD)
        progress._bar.refresh()
    shown = screen.getvalue()
    assert "nothing runs yet" in shown
    assert "conv 3x3/2 3->8 @ 32x32" in shown
    assert " 2/24" in shown
    assert "62.5 GFLOP/s" in shown
