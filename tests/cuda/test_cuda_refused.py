"""What is said where a GPU cannot be used at all: by whoever is the first to ask it for memory."""

from __future__ import annotations

import traceback
from types import SimpleNamespace
from typing import Any

import pytest

from mobilenet_tvm import cuda, targets
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.runtime.cuda import open_module, reason
from mobilenet_tvm.runtime.steps import Steps
from mobilenet_tvm.search.gpu import GpuMeasurer

MANIFEST = SimpleNamespace(
    name="m", inputs=(), outputs=(), target=SimpleNamespace(cuda_arch="sm_80")
)


def _ask_for_too_much(*_arguments: Any) -> None:
    import tvm

    tvm.nd.empty((1 << 40,), "float32", tvm.cuda(0))


GRAPH = '{"nodes": [], "heads": [], "node_row_ptr": [0]}'
LIBRARY = {
    "default": _ask_for_too_much,
    "cuda_graph_create": _ask_for_too_much,
    "debug_create": _ask_for_too_much,
    "get_graph_json": lambda: GRAPH,
}


def _open(how: str) -> Any:
    if how == "steps":
        return Steps(LIBRARY, MANIFEST)
    return open_module(LIBRARY, MANIFEST, cuda_graph=how == "graph")  # type: ignore[arg-type]


def _told(how: str) -> str:
    with pytest.raises(DeviceError) as told:
        _open(how)
    return str(told.value)


@pytest.mark.parametrize("how", ["module", "graph", "steps"])
def test_a_full_gpu_is_one_line(emulated: Any, how: str) -> None:
    said = emulated.call(_told, how)
    assert said.startswith("m cannot be opened on the emulated GPU: "), said
    assert "out of memory: 4398046511104 bytes wanted" in said
    assert "\n" not in said


def _reason_with_a_traceback() -> str:
    try:
        _ask_for_too_much()
    except RuntimeError as error:  # as a worker's child sends it
        return reason(type(error)(traceback.format_exc()))
    return ""


def test_reason_is_found_in_what_a_child_raised(emulated: Any) -> None:
    said = emulated.call(_reason_with_a_traceback)
    assert said.startswith("CUDA: out of memory: 4398046511104 bytes")


class Child:
    """Stands for a measurer's child: raises, or answers, and remembers the limits it was given."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.limits_s: list[float] = []

    def call(self, _function: Any, *_arguments: Any, timeout_s: float) -> Any:
        self.limits_s.append(timeout_s)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def close(self) -> None:
        pass


@pytest.fixture
def measurer(monkeypatch: pytest.MonkeyPatch) -> GpuMeasurer:
    monkeypatch.delenv(cuda.DEVICE_VARIABLE, raising=False)
    return GpuMeasurer(1 << 20)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            RuntimeError(
                "Traceback (most recent call last):\n  0: f\ntvm.error.InternalError: Traceback "
                'of:\n  File "a.cc", line 145\nInternalError: Check failed: (e == cudaSuccess || '
                "e == cudaErrorCudartUnloading) is false: CUDA: out of memory"
            ),
            "(CUDA: out of memory)",
        ),
        (TimeoutError(), "(TimeoutError)"),
        (ChildProcessError(), "(ChildProcessError)"),
    ],
    ids=["error", "hangs", "crashes"],
)
def test_a_gpu_that_runs_nothing_is_one_line(
    measurer: GpuMeasurer, raised: Exception, told: str
) -> None:
    measurer._worker = Child(raised)  # type: ignore[assignment]
    with pytest.raises(cuda.CudaError) as error:
        measurer.launch_s(targets.resolve("cuda-sm80"))
    assert str(error.value).startswith(f"the GPU does not run the smallest kernel {told}: ")
    assert "nvidia-smi" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_says_what_to_do_is_told_as_it_is(measurer: GpuMeasurer) -> None:
    measurer._worker = Child(cuda.CudaError("install it"))  # type: ignore[assignment]
    with pytest.raises(cuda.CudaError, match=r"^install it$"):
        measurer.launch_s(targets.resolve("cuda-sm80"))
