"""What a person sees of a tuning run."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from mobilenet_tvm.records import Task
from mobilenet_tvm.search import Failure, PlainProgress, RichProgress, Trial

GOOD, BAD = Trial(0, (1e-6,)), Trial(1, (), Failure.RUN_ERROR, "no")


def report(progress: PlainProgress | RichProgress, tasks: tuple[Task, ...]) -> None:
    with progress:
        progress.started(len(tasks), 72, 90.0)
        for task in tasks:
            progress.trial(task, 1, 24, 0.0, BAD, None)
            progress.trial(task, 2, 24, 62.46, GOOD, 9.87e-3)
        progress.finished(tasks[0], 24, 62.46, 2, "nothing left to try")
        progress.finished(tasks[1], 5, 0.0, 5, "no gain expected")
        progress.finished(tasks[2], 1, 103.0, 0, "near the roofline")


LINES = [
    "[1/3] autotvm conv 3x3/2 3->8 @ 32x32: 62.5 GFLOP/s after 24 trials, 2 failed "
    "(nothing left to try)",
    "[2/3] autotvm depthwise 3x3 8 @ 16x16: nothing ran after 5 trials, 5 failed "
    "(no gain expected)",
    "[3/3] ansor depthwise 3x3 8 @ 16x16: 103.0 GFLOP/s after 1 trial (near the roofline)",
]


@pytest.fixture
def three(tiny_tasks: tuple[Task, ...], ansor_task: Callable[..., Task]) -> tuple[Task, ...]:
    return *tiny_tasks[:2], ansor_task(tiny_tasks[1].label)


def live(width: int) -> tuple[StringIO, RichProgress]:
    screen = StringIO()
    return screen, RichProgress(
        Console(file=screen, width=width, force_terminal=True, color_system=None)
    )


def test_plain_progress_is_one_line_a_task(three: tuple[Task, ...]) -> None:
    screen = StringIO()
    report(PlainProgress(Console(file=screen, width=30)), three)
    assert screen.getvalue().splitlines() == ["tuning 3 tasks in at most 90 s", *LINES]


def test_plain_progress_without_a_time_budget() -> None:
    screen = StringIO()
    PlainProgress(Console(file=screen)).started(21, 500, None)
    assert screen.getvalue() == "tuning 21 tasks\n"


def test_a_task_without_a_trial_is_said_to_have_none(three: tuple[Task, ...]) -> None:
    screen = StringIO()
    progress = PlainProgress(Console(file=screen))
    progress.started(3, 72, 1.0)
    progress.finished(three[2], 0, 0.0, 0, "out of time")
    assert screen.getvalue().splitlines()[1] == (
        "[1/3] ansor depthwise 3x3 8 @ 16x16: not tried (out of time)"
    )


@pytest.mark.parametrize("width", [100, 200])
def test_live_progress_leaves_the_same_lines(three: tuple[Task, ...], width: int) -> None:
    screen, progress = live(width)
    report(progress, three)
    for line in LINES:
        assert line in screen.getvalue()


def test_live_line_shows_the_task_at_hand_and_the_model(three: tuple[Task, ...]) -> None:
    screen, progress = live(200)
    with progress:
        progress.started(3, 72, 90.0)
        progress.trial(three[0], 1, 24, 0.0, BAD, None)
        progress._bar.refresh()
        first = screen.getvalue()
        progress.trial(three[2], 2, 24, 62.46, GOOD, 9.87e-3)
        progress._bar.refresh()
    assert "autotvm conv 3x3/2 3->8 @ 32x32 1/24: nothing runs yet" in first
    assert "model" not in first
    later = screen.getvalue()[len(first) :]
    assert "ansor depthwise 3x3 8 @ 16x16 2/24: 62.5 GFLOP/s" in later
    assert "model about 9.87 ms" in later
    assert "0/90 s" in later


def test_live_line_is_one_however_many_tasks(tiny_tasks: tuple[Task, ...]) -> None:
    screen, progress = live(200)
    with progress:
        progress.started(len(tiny_tasks), 1000, 90.0)
        for task in tiny_tasks:
            progress.trial(task, 1, 24, 62.46, GOOD, 1e-3)
        progress._bar.refresh()
        progress._bar.refresh()
    drawn = screen.getvalue().split("\r")[-1]
    assert drawn.count("GFLOP/s") <= 1


def test_without_a_time_budget_trials_are_counted(three: tuple[Task, ...]) -> None:
    screen, progress = live(200)
    with progress:
        progress.started(2, 48, None)
        progress.trial(three[0], 4, 24, 62.46, GOOD, 1e-3)
        progress.trial(three[1], 10, 24, 62.46, GOOD, 1e-3)
        progress._bar.refresh()
        assert "2/48 trials" in screen.getvalue()
        # What a task that stops early leaves is not possible any more.
        progress.finished(three[1], 10, 62.46, 0, "near the roofline")
        progress._bar.refresh()
    assert "2/34 trials" in screen.getvalue()
