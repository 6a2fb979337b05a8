"""Candidates on this machine: one that works, and every way in which one can fail."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.records import Task, extract_tasks
from mobilenet_tvm.search import Failure, LocalMeasurer, Trial, measure

Planted = Callable[[Callable[..., Any]], Task]

PLENTY_S = 60.0


@pytest.fixture(scope="module")
def good() -> Task:
    """A real task of a real model."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    tasks = extract_tasks(relay.module, targets.resolve("x86"))
    return next(task for task in tasks if task.label.startswith("pointwise"))


@pytest.fixture(scope="module")
def measurer() -> Iterator[LocalMeasurer]:
    measurer = LocalMeasurer()
    yield measurer
    measurer.close()


@pytest.fixture
def planted(good: Task) -> Planted:
    """``planted(template)``: the task with another template.

    The template travels to the worker by value, so it must be a function in a function and
    import what it needs. It runs for any valid configuration, ``good.default`` for one.
    """

    def plant(template: Callable[..., Any]) -> Task:
        handle = copy.copy(good.handle)
        handle.func = template
        return replace(good, handle=handle)

    return plant


def works(measurer: LocalMeasurer, task: Task) -> Trial:
    assert task.default is not None
    trial = measurer.measure(task, task.default, PLENTY_S)
    assert trial.failure is None, trial.message
    return trial


def test_candidate_that_works_has_plausible_times(measurer: LocalMeasurer, good: Task) -> None:
    trial = works(measurer, good)
    assert trial.config == good.default
    assert len(trial.costs_s) >= 5
    assert 1e-8 < trial.cost_s < 0.1
    assert good.flops / trial.cost_s < 1e12  # no core does that
    assert trial.cost_s * len(trial.costs_s) < trial.elapsed_s < PLENTY_S
    assert trial.message == ""


def test_candidates_of_one_task_differ(measurer: LocalMeasurer, good: Task) -> None:
    costs = {measurer.measure(good, c, PLENTY_S).cost_s for c in good.candidates[::12]}
    assert len(costs) > 1
    assert float("inf") not in costs


def test_template_that_raises_is_a_build_error_in_its_own_words(
    measurer: LocalMeasurer, good: Task, planted: Planted
) -> None:
    def template(*_args: Any) -> Any:
        raise ValueError("13 does not divide 224")

    trial = measurer.measure(planted(template), good.default, PLENTY_S)
    assert trial.failure is Failure.BUILD_ERROR
    assert trial.message == "ValueError: 13 does not divide 224"
    assert (trial.costs_s, trial.cost_s) == ((), float("inf"))
    works(measurer, good)


def test_key_error_is_told_in_one_line(
    measurer: LocalMeasurer, good: Task, planted: Planted
) -> None:
    def template(*_args: Any) -> Any:
        return {}["tile_ow"]

    trial = measurer.measure(planted(template), good.default, PLENTY_S)
    assert (trial.failure, trial.message) == (Failure.BUILD_ERROR, "KeyError: 'tile_ow'")


def test_compiler_that_aborts_is_a_build_error(
    measurer: LocalMeasurer, good: Task, planted: Planted
) -> None:
    def template(*_args: Any) -> Any:
        import os

        os.abort()  # what an assertion in LLVM does

    trial = measurer.measure(planted(template), good.default, PLENTY_S)
    assert (trial.failure, trial.message) == (Failure.BUILD_ERROR, "the compiler crashed")
    works(measurer, good)


def test_build_that_hangs_is_stopped(
    measurer: LocalMeasurer, good: Task, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def template(*_args: Any) -> Any:
        import time

        time.sleep(300)

    works(measurer, good)
    monkeypatch.setattr(measure, "BUILD_TIMEOUT_S", 0.5)
    trial = measurer.measure(planted(template), good.default, PLENTY_S)
    assert trial.failure is Failure.BUILD_TIMEOUT
    assert trial.message == "building took more than 0.5 s"
    assert 0.5 <= trial.elapsed_s < 10
    monkeypatch.undo()
    works(measurer, good)


def test_deadline_comes_before_the_time_out(
    measurer: LocalMeasurer, good: Task, planted: Planted
) -> None:
    def template(*_args: Any) -> Any:
        import time

        time.sleep(300)

    works(measurer, good)  # the worker is up
    start = time.monotonic()
    trial = measurer.measure(planted(template), good.default, 0.5)
    assert trial.failure is Failure.BUILD_TIMEOUT
    assert time.monotonic() - start < 5


def calling(symbol: str, argument: int) -> Callable[..., Any]:
    """A template whose kernel calls a function of the C library."""

    def template(*_args: Any) -> Any:
        import tvm
        from tvm import te

        out = te.compute(
            (16,),
            lambda _i: tvm.tir.call_extern("int32", symbol, argument).astype("float32"),
            name="out",
        )
        return te.create_schedule(out.op), [out]

    return template


@pytest.mark.parametrize("number", [11, 6], ids=["SIGSEGV", "SIGABRT"])
def test_kernel_that_crashes_is_a_run_error(
    measurer: LocalMeasurer, good: Task, planted: Planted, number: int
) -> None:
    trial = measurer.measure(planted(calling("raise", number)), good.default, PLENTY_S)
    assert (trial.failure, trial.message) == (Failure.RUN_ERROR, "the kernel crashed")
    works(measurer, good)


def test_kernel_that_hangs_is_stopped(
    measurer: LocalMeasurer, good: Task, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "RUN_TIMEOUT_S", 0.5)
    trial = measurer.measure(planted(calling("sleep", 300)), good.default, PLENTY_S)
    assert trial.failure is Failure.RUN_TIMEOUT
    assert trial.message == "running took more than 0.5 s"
    monkeypatch.undo()
    works(measurer, good)


def test_closed_measurer_starts_again(measurer: LocalMeasurer, good: Task) -> None:
    works(measurer, good)
    measurer.close()
    works(measurer, good)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "no"),
        (ValueError(), "ValueError"),
        (
            ValueError("Traceback:\n  File x\nRuntimeError: LLVM said no\n\n"),
            "RuntimeError: LLVM said no",
        ),
        (KeyError("Traceback:\n  File x\nKeyError: 'a'\n"), "KeyError: 'a'"),
        (
            RuntimeError("TVMError: Check failed: (a) is false\n  at x.cc:1"),
            "TVMError: Check failed: (a) is false",
        ),
        (RuntimeError("x" * 1000), "x" * 300),
        (OSError(28, "No space left"), "[Errno 28] No space left"),
    ],
)
def test_first_line_of_an_error_is_the_telling_one(error: Exception, line: str) -> None:
    assert measure.first_line(error) == line
