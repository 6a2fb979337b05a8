"""Candidates on this machine: one that works, and every way in which one can fail."""

from __future__ import annotations

import copy
import errno
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import psutil
import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Task, extract_tasks, parse_line
from mobilenet_tvm.search import (
    AnsorSearcher,
    CostModel,
    Failure,
    LocalMeasurer,
    Trial,
    measure,
)

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


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does other things meanwhile is no reason for a candidate to fail."""
    for limit in ("BUILD_TIMEOUT_S", "RUN_TIMEOUT_S", "CHECK_TIMEOUT_S"):
        monkeypatch.setattr(measure, limit, PLENTY_S)


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


def storing(value: Callable[[Any, Any], Any], written: int = 16) -> Callable[..., Any]:
    """A template that adds 1 to its input, and whose schedule puts ``value(tvm, x)`` in place
    of ``x + 1``, into so many of every 16 elements."""

    def template(*_args: Any) -> Any:
        import tvm
        from tvm import te

        def adding(data: Any) -> Any:
            return te.compute(data.shape, lambda *i: data(*i) + tvm.tir.const(1, "float32"))

        row = te.placeholder((16,), name="row")
        row_out = adding(row)
        given, taken = (
            tvm.tir.decl_buffer(t.shape, t.dtype, name=t.op.name, offset_factor=1, strides=[1])
            for t in (row, row_out)
        )

        def store(inputs: Any, outputs: Any) -> Any:
            builder = tvm.tir.ir_builder.create()
            for i in range(written):
                builder.emit(outputs[0].vstore([i], value(tvm, inputs[0].vload([i]))))
            return builder.get()

        intrinsic = te.decl_tensor_intrin(row_out.op, store, binds={row: given, row_out: taken})
        data = te.placeholder((4, 16), name="data")
        out = adding(data)
        schedule = te.create_schedule(out.op)
        schedule[out].tensorize(out.op.axis[1], intrinsic)
        return schedule, [data, out]

    return template


def right(tvm: Any, x: Any) -> Any:
    return x + tvm.tir.const(1, "float32")


NEVER_WRITTEN = "part of the result is NaN or was never written"
WRONG = {
    "a constant": (storing(lambda tvm, x: tvm.tir.const(0.5, "float32")), "differs from the"),
    "a thousandth": (storing(lambda tvm, x: x + tvm.tir.const(1.002, "float32")), "by 1.0e-03 of"),
    "NaN": (storing(lambda tvm, x: tvm.tir.const(float("nan"), "float32")), NEVER_WRITTEN),
    "infinity": (storing(lambda tvm, x: tvm.tir.const(float("inf"), "float32")), "by inf of"),
    "half of it": (storing(right, written=8), NEVER_WRITTEN),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("best_s", [float("inf"), 1.0], ids=["first", "better"])
def test_wrong_winner_fails(
    measurer: LocalMeasurer, good: Task, planted: Planted, wrong: str, best_s: float
) -> None:
    template, words = WRONG[wrong]
    trial = measurer.measure(planted(template), good.default, PLENTY_S, best_s)
    assert trial.failure is Failure.WRONG_OUTPUT, trial
    assert words in trial.message
    assert (trial.costs_s, trial.cost_s) == ((), float("inf"))


def test_right_winner_does_not_fail(measurer: LocalMeasurer, planted: Planted) -> None:
    works(measurer, planted(storing(right)))


def test_wrong_kernel_that_wins_nothing_is_not_compared(
    measurer: LocalMeasurer, good: Task, planted: Planted
) -> None:
    template, _ = WRONG["a constant"]
    trial = measurer.measure(planted(template), good.default, PLENTY_S, 1e-9)
    assert trial.failure is None


def test_hopeless_kernel_is_timed_by_a_few_calls(measurer: LocalMeasurer, good: Task) -> None:
    usual = works(measurer, good)
    assert len(usual.costs_s) >= measure.MIN_CALLS // 2
    trial = measurer.measure(good, good.default, PLENTY_S, usual.cost_s / 100)
    assert (trial.failure, len(trial.costs_s)) == (None, 3)
    assert trial.cost_s > usual.cost_s / 100


def test_result_of_zeros_is_no_difference(measurer: LocalMeasurer, planted: Planted) -> None:
    def template(*_args: Any) -> Any:
        from tvm import te

        data = te.placeholder((64,), name="data")
        out = te.compute((64,), lambda i: data[i] * 0.0, name="out")
        return te.create_schedule(out.op), [data, out]

    works(measurer, planted(template))


def test_worker_that_prints_garbage_is_not_listened_to(
    measurer: LocalMeasurer, good: Task, planted: Planted
) -> None:
    def template(*_args: Any) -> Any:
        import os
        import sys

        import tvm
        from tvm import te

        for stream in (1, 2):
            os.write(stream, b"\x80\x04garbage\xff\n" * 1000)
        print("garbage", file=sys.stderr, flush=True)
        print("garbage", flush=True)
        data = te.placeholder((16,), name="data")
        out = te.compute(
            (16,),
            lambda i: (
                data[i] + 0.0 * tvm.tir.call_extern("int32", "puts", "garbage").astype("float32")
            ),
            name="out",
        )
        return te.create_schedule(out.op), [data, out]

    works(measurer, planted(template))
    works(measurer, good)


def test_trial_of_ansor(measurer: LocalMeasurer, tiny_ansor: Mapping[str, Task]) -> None:
    """From the searcher's proposal to the line in the log."""
    task = tiny_ansor["pointwise 1x1 32->32 @ 8x8"]
    searcher = AnsorSearcher(task, trials=3, seed=0, model=CostModel(seed=0, cores=1))
    best_s = float("inf")
    while (config := searcher.next()) is not None:
        trial = measurer.measure(task, config, PLENTY_S, best_s)
        assert trial.failure is None, trial.message
        assert 0 < task.flops / trial.cost_s < 1e12
        record = parse_line(searcher.record_line(trial))
        assert (record.key, record.config) == (task.key, config)
        assert record.cost_s == pytest.approx(trial.cost_s)
        searcher.tell(trial)
        best_s = min(best_s, trial.cost_s)
    assert searcher.tried == 3


def test_steps_that_do_not_apply_are_a_build_error(
    measurer: LocalMeasurer, tiny_ansor: Mapping[str, Task]
) -> None:
    task = tiny_ansor["pointwise 1x1 32->32 @ 8x8"]
    for steps in ('[["CA",0,77,3]]', '[["SP",0]]'):
        trial = measurer.measure(task, steps, PLENTY_S)
        assert trial.failure is Failure.BUILD_ERROR
        assert trial.message
        assert "\n" not in trial.message


def test_no_worker_is_not_the_candidates_failure(
    good: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    measurer = LocalMeasurer()
    monkeypatch.setattr("tvm.contrib.popen_pool.subprocess.Popen", no_memory)
    with pytest.raises(DeviceError, match=r"cannot start a worker .*Cannot allocate memory"):
        measurer.measure(good, good.default, PLENTY_S)
    monkeypatch.undo()
    works(measurer, good)
    measurer.close()


def test_worker_does_not_grow(good: Task) -> None:
    """A run has thousands of trials: nothing of one is left in the next."""
    measurer = LocalMeasurer(model_bytes=32 << 20)

    def held_mb() -> float:
        works(measurer, good)
        return float(psutil.Process(measurer._worker._worker._proc.pid).memory_info().rss) / 1e6

    held_mb()
    before_mb = held_mb()
    after_mb = [held_mb() for _ in range(8)]
    assert max(after_mb) < before_mb + 2 * 34, after_mb
    measurer.close()


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
