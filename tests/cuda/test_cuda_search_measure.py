"""Candidates for a GPU on the emulator: those that work, and the ways in which one can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mobilenet_tvm import cuda, frontend, targets, zoo
from mobilenet_tvm.records import Task, extract_tasks
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks
from mobilenet_tvm.search import AnsorSearcher, CostModel, Failure, Trial
from mobilenet_tvm.search.gpu import GpuMeasurer

PLENTY_S = 300.0
PRESET = targets.resolve("cuda-sm80")

Templates = Callable[[Callable[..., Any]], Task]


@pytest.fixture(scope="module")
def relay() -> Any:
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    return frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))


@pytest.fixture(scope="module")
def good(relay: Any) -> Task:
    """A real task of a real model."""
    tasks = extract_tasks(relay.module, PRESET)
    return next(task for task in tasks if task.label.startswith("pointwise"))


@pytest.fixture(scope="module")
def measurer(cuda_compiler: Any) -> Iterator[GpuMeasurer]:
    """On the emulator; this process itself keeps the CUDA device that it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cuda.DEVICE_VARIABLE, cuda.EMULATED)
        measurer = GpuMeasurer(1 << 20)
        yield measurer
        measurer.close()


@pytest.fixture
def planted(good: Task) -> Templates:
    """``planted(template)``: the task with another template, which travels by value."""

    def plant(template: Callable[..., Any]) -> Task:
        handle = copy.copy(good.handle)
        handle.func = template
        return replace(good, handle=handle)

    return plant


def works(measurer: GpuMeasurer, task: Task) -> Trial:
    assert task.default is not None
    trial = measurer.measure(task, task.default, PLENTY_S)
    assert trial.failure is None, trial.message
    return trial


def test_templates_candidates_work(measurer: GpuMeasurer, good: Task) -> None:
    trial = works(measurer, good)
    assert len(trial.costs_s) == 1, "an emulator is asked once"
    other = next(config for config in good.candidates if config != good.default)
    assert measurer.measure(good, other, PLENTY_S).failure is None


def test_ansors_candidates_work(measurer: GpuMeasurer, convolutions: Any) -> None:
    (task,) = extract_ansor_tasks(convolutions((16, 16, 1, 1), size=8), PRESET)
    assert (task.label, task.target) == ("pointwise 1x1 16->16 @ 8x8", PRESET.target)
    searcher = AnsorSearcher(task, trials=2, seed=0, model=CostModel(seed=0, cores=1))
    config = searcher.next()
    assert config is not None
    trial = measurer.measure(task, config, PLENTY_S)
    assert (trial.failure, trial.message) == (None, "")
    assert '"cuda -keys=cuda,gpu -arch=sm_80' in searcher.record_line(trial)


def storing(value: Callable[[Any, Any], Any], *, shift: int = 0) -> Callable[..., Any]:
    """A template that adds 1 to its input, and whose schedule puts ``value(tvm, x)`` in place
    of ``x + 1``, so many elements behind where it belongs."""

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
            for i in range(16):
                builder.emit(outputs[0].vstore([i + shift], value(tvm, inputs[0].vload([i]))))
            return builder.get()

        intrinsic = te.decl_tensor_intrin(row_out.op, store, binds={row: given, row_out: taken})
        data = te.placeholder((4, 16), name="data")
        out = adding(data)
        schedule = te.create_schedule(out.op)
        schedule[out].bind(out.op.axis[0], te.thread_axis("threadIdx.x"))
        schedule[out].tensorize(out.op.axis[1], intrinsic)
        return schedule, [data, out]

    return template


def test_wrong_output_is_caught(measurer: GpuMeasurer, good: Task, planted: Templates) -> None:
    right = planted(storing(lambda tvm, x: x + tvm.tir.const(1, "float32")))
    assert measurer.measure(right, good.default, PLENTY_S).failure is None
    wrong = planted(storing(lambda tvm, x: x + tvm.tir.const(1.01, "float32")))
    # Another task to the measurer, which remembers what the last one is to compute.
    trial = measurer.measure(replace(wrong, key="other"), good.default, PLENTY_S)
    assert trial.failure is Failure.WRONG_OUTPUT
    assert "differs from the reference kernel by" in trial.message


def test_kernel_that_faults_costs_its_trial_alone(
    measurer: GpuMeasurer, good: Task, planted: Templates
) -> None:
    faulty = planted(storing(lambda tvm, x: x, shift=64))
    trial = measurer.measure(faulty, good.default, PLENTY_S)
    assert trial.failure is Failure.RUN_ERROR, trial
    works(measurer, good)


def test_what_exceeds_the_gpu_is_a_build_error_with_the_limit(
    measurer: GpuMeasurer, good: Task, planted: Templates
) -> None:
    def template(*_args: Any) -> Any:
        from tvm import te

        data = te.placeholder((64, 64), name="data")
        out = te.compute(data.shape, lambda i, j: data[i, j] * 2.0, name="out")
        schedule = te.create_schedule(out.op)
        for axis, thread in zip(out.op.axis, ("threadIdx.x", "threadIdx.y"), strict=True):
            schedule[out].bind(axis, te.thread_axis(thread))
        return schedule, [data, out]

    trial = measurer.measure(planted(template), good.default, PLENTY_S)
    assert trial.failure is Failure.BUILD_ERROR
    assert trial.message == (
        "RuntimeError: it exceeds the GPU's limits: Used threads per block (4096) is greater than "
        "the allowed maximum (1024)"
    )
    works(measurer, good)


def test_emulator_has_no_launch_to_measure(measurer: GpuMeasurer) -> None:
    assert measurer.launch_s(PRESET) == 0.0
