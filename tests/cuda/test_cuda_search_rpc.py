"""Candidates on the GPU of a board: a served emulator, which is told of as one."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from mobilenet_tvm import targets
from mobilenet_tvm.devices.cuda import ServedGpu
from mobilenet_tvm.devices.emulated import tracker
from mobilenet_tvm.devices.rpc import RpcDevice
from mobilenet_tvm.records import Task, extract_tasks
from mobilenet_tvm.search import Failure, RemoteMeasurer

PLENTY_S = 300.0
PRESET = targets.resolve("cuda-sm80")
KEY = "gpus"


@pytest.fixture(scope="module")
def served(cuda_compiler: Any) -> Iterator[tuple[RpcDevice, psutil.Process]]:
    """A board with an emulated GPU, and its supervisor."""
    with tracker() as (host, port):
        command = [sys.executable, "-m", "mobilenet_tvm.serve", "--tracker", f"{host}:{port}"]
        command += ["--key", KEY, "--port", "0", "--parent", str(os.getpid()), "--emulated-cuda"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        assert "GPU CUDA emulator (sm_80)" in said, said
        yield RpcDevice(host, port, KEY, gpu=True), psutil.Process(process.pid)
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def measurer(served: tuple[RpcDevice, psutil.Process]) -> Iterator[RemoteMeasurer]:
    measurer = RemoteMeasurer(served[0], PRESET)
    yield measurer
    measurer.close()


@pytest.fixture(scope="module")
def good(convolutions: Any) -> Task:
    (task,) = extract_tasks(convolutions((8, 16, 1, 1), size=8), PRESET)
    return task


def test_board_says_which_gpu_it_has(served: tuple[RpcDevice, psutil.Process]) -> None:
    device, supervisor = served
    with device.open(session_timeout_s=60, wait_s=30) as session:
        info = session.info()
        assert info is not None
        assert info.gpu == ServedGpu("CUDA emulator (sm_80)", (8, 0), emulated=True)
        assert (session.cpu_name(), session.timing) == ("CUDA emulator (sm_80)", "emulated")
        with session.calls(limit_s=30):
            assert session.device().exist
            assert session.device().compute_version == "8.0"
    assert supervisor.num_threads() == 1, "what forks must have one thread"


def test_its_cpu_is_a_board_as_any(served: tuple[RpcDevice, psutil.Process]) -> None:
    with replace(served[0], gpu=False).open(session_timeout_s=60, wait_s=30) as session:
        assert (session.cpu_name(), session.timing) == (targets.cpu_name(), "measured")
        assert session.device().device_type % 128 == 1  # kDLCPU, behind RPC


def test_candidates_run_there(measurer: RemoteMeasurer, good: Task) -> None:
    board = measurer.find_board()
    assert (board.timing, board.gpu and board.gpu.capability) == ("emulated", (8, 0))
    assert good.default is not None
    trial = measurer.measure(good, good.default, PLENTY_S)
    assert (trial.failure, trial.message, len(trial.costs_s)) == (None, "", 1)
    assert measurer.launch_s() == 0.0  # of an emulator


def test_kernel_that_faults_there_costs_its_trial_alone(
    measurer: RemoteMeasurer, good: Task
) -> None:
    def template(*_args: Any) -> Any:
        """Adds 1, and writes beyond its result."""
        import tvm
        from tvm import te

        data = te.placeholder((64,), name="data")

        def store(inputs: Any, outputs: Any) -> Any:
            builder = tvm.tir.ir_builder.create()
            out, given = builder.buffer_ptr(outputs[0]), builder.buffer_ptr(inputs[0])
            thread = te.thread_axis("threadIdx.x")
            builder.scope_attr(thread, "thread_extent", 64)
            out[thread + 64] = given[thread] + 1.0
            return builder.get()

        result = te.extern((64,), [data], store, dtype="float32", name="result")
        return te.create_schedule(result.op), [data, result]

    handle = copy.copy(good.handle)
    handle.func = template
    trial = measurer.measure(replace(good, handle=handle), good.default, PLENTY_S)
    assert trial.failure is Failure.RUN_ERROR, trial
    assert measurer.measure(good, good.default, PLENTY_S).failure is None
