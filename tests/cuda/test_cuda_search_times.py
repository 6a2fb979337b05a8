"""How a GPU's kernels are timed: warm, as the model runs them, and with time for a new context.

The GPU is a table here; what a real timer answers is test_cuda_search_rpc.py's.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mobilenet_tvm import cuda
from mobilenet_tvm.search import Failure, Trial
from mobilenet_tvm.search import gpu as timing
from mobilenet_tvm.search.measure import LocalMeasurer

MODEL_BYTES = {"in L2": 1 << 20, "beyond L2": 1 << 30}


class Gpu:
    """A kernel's time on a GPU that is slow until it has worked for 40 ms.

    Attributes:
        asked: (number, repeat, prepare) of each call of a timer.
        busy_s: what it has worked so far.
    """

    def __init__(self, kernel_s: float, cold: float, idle_s: float = 0.0) -> None:
        self.kernel_s, self.cold, self.idle_s = kernel_s, cold, idle_s
        self.asked: list[tuple[int, int, str]] = []
        self.busy_s = 0.0
        self.array = SimpleNamespace(device=SimpleNamespace(l2_cache_size_bytes=40 << 20))

    def time_evaluator(
        self, _name: str, _device: Any, *, number: int, repeat: int, f_preproc: str
    ) -> Any:
        self.asked.append((number, repeat, f_preproc))

        def timer(*_arrays: Any) -> Any:
            return SimpleNamespace(results=[self._row(number, f_preproc) for _ in range(repeat)])

        return timer

    def _row(self, number: int, prepare: str) -> float:
        total_s = 0.0
        for _ in range(number):
            once_s = self.kernel_s * (self.cold if self.busy_s < 0.04 else 1.0)
            self.busy_s += once_s
            total_s += once_s + (self.idle_s if prepare else 0.0)
        return total_s / number

    def times(self, model_bytes: int, best_s: float = float("inf")) -> tuple[float, ...]:
        return timing.time_on_gpu(
            self, "f", [self.array], model_bytes=model_bytes, best_s=best_s, prepare="flush"
        )


@pytest.mark.parametrize("model_bytes", MODEL_BYTES.values(), ids=MODEL_BYTES)
@pytest.mark.parametrize("kernel_s", [5e-6, 2e-3, 0.2])
def test_nothing_is_timed_before_the_clocks_have_risen(model_bytes: int, kernel_s: float) -> None:
    gpu = Gpu(kernel_s, cold=3.0)
    times = gpu.times(model_bytes)
    assert times == pytest.approx([kernel_s] * len(times))
    assert gpu.busy_s > 0.05


@pytest.mark.parametrize("model_bytes", MODEL_BYTES.values(), ids=MODEL_BYTES)
def test_a_kernel_is_not_hopeless_for_being_timed_cold(model_bytes: int) -> None:
    gpu = Gpu(1e-4, cold=3.0)
    assert len(gpu.times(model_bytes, best_s=0.9e-4)) >= 8


def test_what_no_clocks_explain_costs_a_few_calls() -> None:
    gpu = Gpu(1e-4, cold=3.0)
    assert len(gpu.times(1 << 20, best_s=1e-5)) == 3
    assert len(gpu.asked) == 1


def test_a_launch_is_timed_as_the_models_kernels_are() -> None:
    """Alone from an idle GPU where L2 is flushed: a kernel is compared with that."""

    def launch_s(model_bytes: int) -> float:
        gpu = Gpu(2e-6, cold=1.0, idle_s=5e-6)
        return timing.time_launch(gpu, gpu.array, model_bytes=model_bytes, prepare="flush")

    assert launch_s(MODEL_BYTES["in L2"]) == pytest.approx(2e-6)
    assert launch_s(MODEL_BYTES["beyond L2"]) == pytest.approx(7e-6)


def test_a_new_child_has_time_to_make_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.DEVICE_VARIABLE, raising=False)
    measurer = timing.GpuMeasurer(1 << 20)
    outcomes = [None, Failure.WRONG_OUTPUT, Failure.RUN_ERROR, None]
    limits_s = []

    def measure(self: Any, _task: Any, config: Any, _deadline_s: float, _best_s: float) -> Trial:
        limits_s.append(self._to_run(None, 1.0).timeout_s)
        return Trial(config, (), outcomes[len(limits_s) - 1], "", 0.0)

    monkeypatch.setattr(LocalMeasurer, "measure", measure)
    for index in range(len(outcomes)):
        measurer.measure(None, index, 1.0)  # type: ignore[arg-type]
    assert limits_s == [40.0, 10.0, 10.0, 40.0]
