"""Trials over RPC on real servers of this machine: what works, and every way in which one fails."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.devices.emulated import tracker
from mobilenet_tvm.devices.rpc import RpcDevice
from mobilenet_tvm.records import Task, extract_tasks, parse_line
from mobilenet_tvm.search import (
    AnsorSearcher,
    CostModel,
    Failure,
    LocalMeasurer,
    RemoteMeasurer,
    Request,
    Trial,
    remote,
)

pytestmark = pytest.mark.slow
PLENTY_S = 240.0
KEY = "x86"


class Fleet:
    """Boards that are processes of this machine."""

    def __init__(self, host: str, port: int) -> None:
        self.device = RpcDevice(host, port, KEY)
        self.boards: list[subprocess.Popen[Any]] = []

    def add(self) -> subprocess.Popen[Any]:
        command = [sys.executable, "-m", "mobilenet_tvm.serve", "--key", KEY, "--port", "0"]
        command += ["--tracker", f"{self.device.host}:{self.device.port}"]
        board = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.boards.append(board)
        assert board.stdout is not None
        assert "serving" in board.stdout.readline()
        return board

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while self.device.boards() != count:
            assert time.monotonic() < deadline, self.device.boards()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with tracker() as (host, port):
        fleet = Fleet(host, port)
        for _ in range(2):
            fleet.add()
        yield fleet
        for board in fleet.boards:
            board.kill()
            board.communicate()


@pytest.fixture(scope="module")
def notices() -> list[str]:
    return []


@pytest.fixture(scope="module")
def measurer(fleet: Fleet, notices: list[str]) -> Iterator[RemoteMeasurer]:
    fleet.wait_for(2)
    measurer = RemoteMeasurer(fleet.device, targets.resolve("x86"), notice=notices.append)
    yield measurer
    measurer.close()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does other things meanwhile is no reason for a candidate to fail."""
    for limit in ("BUILD_TIMEOUT_S", "REFERENCE_TIMEOUT_S", "SESSION_S"):
        monkeypatch.setattr(remote, limit, 60.0)


@pytest.fixture(scope="module")
def good() -> Task:
    """A real task of a real model."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    tasks = extract_tasks(relay.module, targets.resolve("x86"))
    return next(task for task in tasks if task.label.startswith("pointwise"))


def planted(good: Task, template: Callable[..., Any]) -> Task:
    """The task with another template; it travels to the builder by value."""
    handle = copy.copy(good.handle)
    handle.func = template
    return replace(good, handle=handle)


def works(measurer: RemoteMeasurer, task: Task, *, best_s: float = float("inf")) -> Trial:
    assert task.default is not None
    trial = measurer.measure(task, task.default, PLENTY_S, best_s)
    assert trial.failure is None, trial.message
    return trial


def test_times_are_those_of_the_machine(measurer: RemoteMeasurer, good: Task) -> None:
    """Two ways to measure the same kernel on the same machine."""
    here = LocalMeasurer()
    try:
        local = here.measure(good, good.default, PLENTY_S)  # type: ignore[arg-type]
    finally:
        here.close()
    trial = works(measurer, good)
    assert len(trial.costs_s) >= 10
    assert local.cost_s / 4 < trial.cost_s < local.cost_s * 4


def test_both_boards_are_found(measurer: RemoteMeasurer) -> None:
    first = measurer.find_board()
    assert (first.cpu, first.timing) == (targets.cpu_name(), "measured")
    assert measurer.width() == 2 * remote.PER_BOARD


def calling(symbol: str, argument: int) -> Callable[..., Any]:
    """A template whose kernel calls a function of the C library."""

    def template(*_args: Any) -> Any:
        import tvm
        from tvm import te

        data = te.placeholder((16,), name="data")
        out = te.compute(
            (16,),
            lambda i: data[i] + tvm.tir.call_extern("int32", symbol, argument).astype("float32"),
            name="out",
        )
        return te.create_schedule(out.op), [out, data]

    return template


def test_a_kernel_that_crashes_costs_itself_alone(
    measurer: RemoteMeasurer, good: Task, fleet: Fleet
) -> None:
    bad = planted(good, calling("raise", signal.SIGSEGV))
    requests = [Request(task, good.default) for task in (good, bad, good)]  # type: ignore[arg-type]
    trials = [trial for _, trial in measurer.measure_all(requests, PLENTY_S)]
    assert [trial.failure for trial in trials] == [None, Failure.RUN_ERROR, None]
    assert "SIGSEGV" in trials[1].message
    assert fleet.device.boards() == 2


def test_a_kernel_that_hangs_is_ended_by_its_board(
    measurer: RemoteMeasurer, good: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    works(measurer, good)
    monkeypatch.setattr(remote, "SESSION_S", 4.0)
    bad = planted(good, calling("sleep", 300))
    trial = measurer.measure(bad, good.default, PLENTY_S)  # type: ignore[arg-type]
    assert trial.failure is Failure.RUN_TIMEOUT, trial.message
    monkeypatch.undo()
    works(measurer, good)


def test_a_kernel_that_computes_something_else(measurer: RemoteMeasurer, good: Task) -> None:
    def template(*_args: Any) -> Any:
        """Its schedule writes half of each row."""
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
            for i in range(8):
                builder.emit(outputs[0].vstore([i], inputs[0].vload([i]) + 1.0))
            return builder.get()

        intrinsic = te.decl_tensor_intrin(row_out.op, store, binds={row: given, row_out: taken})
        data = te.placeholder((4, 16), name="data")
        out = adding(data)
        schedule = te.create_schedule(out.op)
        schedule[out].tensorize(out.op.axis[1], intrinsic)
        return schedule, [data, out]

    trial = measurer.measure(planted(good, template), good.default, PLENTY_S)  # type: ignore[arg-type]
    assert trial.failure is Failure.WRONG_OUTPUT, trial
    assert "never written" in trial.message


def test_a_template_that_raises_is_a_build_error(measurer: RemoteMeasurer, good: Task) -> None:
    def template(*_args: Any) -> Any:
        raise ValueError("13 does not divide 224")

    trial = measurer.measure(planted(good, template), good.default, PLENTY_S)  # type: ignore[arg-type]
    assert trial.failure is Failure.BUILD_ERROR
    assert trial.message == "ValueError: 13 does not divide 224"


def test_trials_of_ansor(measurer: RemoteMeasurer, tiny_ansor: Mapping[str, Task]) -> None:
    """From the searcher's proposals to the lines in the log, checked against the reference."""
    task = tiny_ansor["pointwise 1x1 32->32 @ 8x8"]
    searcher = AnsorSearcher(task, trials=4, seed=0, model=CostModel(seed=0, cores=1))
    configs = [searcher.next() for _ in range(4)]
    requests = [Request(task, config) for config in configs if config is not None]
    assert len(requests) == 4
    for index, trial in measurer.measure_all(requests, PLENTY_S):
        assert trial.failure is None, trial.message
        record = parse_line(searcher.record_line(trial))
        assert (record.key, record.config) == (task.key, configs[index])
        searcher.tell(trial)


def test_a_board_that_is_killed_takes_no_candidate_along(
    measurer: RemoteMeasurer, good: Task, fleet: Fleet, notices: list[str]
) -> None:
    fleet.wait_for(2)
    victim = fleet.boards[0]
    slow = planted(good, calling("usleep", 20_000))  # so that the kill meets a running kernel
    requests = [Request(slow, good.default)] * 2 + [Request(good, good.default)] * 4  # type: ignore[arg-type]
    killing = threading.Timer(2.0, victim.kill)
    killing.start()
    trials = [trial for _, trial in measurer.measure_all(requests, PLENTY_S)]
    killing.join()
    victim.wait(10)
    assert [trial.failure for trial in trials] == [None] * 6, trials
    fleet.wait_for(1)
    assert measurer.width() == remote.PER_BOARD


def test_a_board_that_joins_later_is_used(
    measurer: RemoteMeasurer,
    good: Task,
    fleet: Fleet,
    notices: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "LOOK_S", 0.3)
    for board in fleet.boards:
        board.kill()
        board.wait(10)
    fleet.wait_for(0)
    with ThreadPoolExecutor(1) as pool:
        trial = pool.submit(works, measurer, good)
        deadline = time.monotonic() + 60
        while not any("waiting for a board with key x86" in notice for notice in notices):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        fleet.add()  # by this thread, with which it would die
        trial.result()
    assert notices[-1].endswith("is there: going on")
