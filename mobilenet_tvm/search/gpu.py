"""Measure candidates on a GPU: here, on a board, or on the emulator, which only runs them.

A kernel is timed by CUDA's events (TVM's ``profiling.timer.cuda``), launched many times in a row as
a model launches its kernels. Between two kernels a GPU keeps nothing in L1, so what a kernel finds
is a matter of L2 alone:

- Where the whole model fits into L2 (a V1 has 17 MB of weights, an A100 40 MB of L2), its weights
  stay there from one inference to the next, and a row of launches is how the model runs it.
- Where it does not, L2 is flushed before every launch, and the input written anew, which the layer
  before has just written. Each launch is then timed alone, from an idle GPU: some microseconds of
  the host's are in it, the same for every candidate.

A kernel cannot take less than a launch does. How long that is is measured once, in the same way
(``launch_s``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mobilenet_tvm import cuda
from mobilenet_tvm.devices.cuda import AS_IN_THE_MODEL, register
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Config, Task
from mobilenet_tvm.runtime.cuda import reason
from mobilenet_tvm.search.candidates import (
    SENT_NAME,
    Candidate,
    Kernel,
    build_launch,
    build_reference_here,
    build_to_send,
)
from mobilenet_tvm.search.measure import (
    HOPELESS,
    MAX_CALLS,
    MEASURE_S,
    MIN_CALLS,
    Call,
    LocalMeasurer,
    building,
    checking,
    difference,
    random_data,
    running,
)
from mobilenet_tvm.search.trial import Failure, Trial

if TYPE_CHECKING:
    from mobilenet_tvm.targets import Preset

# NVRTC takes 0.1-3 s, and a child's first kernel has to wait for the plug-in to be loaded.
BUILD_TIMEOUT_S = 20.0
RUN_TIMEOUT_S = 10.0
# A child's first run makes its CUDA context as well: seconds on a host with many GPUs, or where the
# driver is not kept loaded.
CONTEXT_S = 30.0
CHECK_TIMEOUT_S = 30.0
# The emulator compiles a kernel for this machine's CPU and interleaves its threads there.
EMULATED_TIMEOUT_S = 180.0

# Launches in a row: so many first, then as many as take so long, several times.
_FIRST = 20
_ROW_S = 1e-3
_MOST = 1000
_ROWS = 15
# While NVRTC compiles a GPU idles and lowers its clocks, which take tens of milliseconds to rise:
# so much work comes before what is timed. A kernel that seems so many times too slow before it is
# hopeless with any clocks.
_WARM_S = 0.05
_COLD = 4.0
# A model that takes more of L2 does not leave it to its weights.
_SHARE_OF_L2 = 0.5

Arrays = list[Any]


def time_on_gpu(
    module: Any, name: str, arrays: Arrays, *, model_bytes: int, best_s: float, prepare: str
) -> tuple[float, ...]:
    """Seconds of one call each of a kernel on a GPU, this machine's or a board's.

    Args:
        module: with the kernel.
        name: the kernel's.
        arrays: on the device, the activation first.
        model_bytes: weights of the whole model.
        best_s: what is far slower is timed by a few calls only.
        prepare: the function that is called before each launch where L2 is to be flushed.
    """
    device = arrays[0].device

    def times(number: int, repeat: int, preparing: str = "") -> tuple[float, ...]:
        timer = module.time_evaluator(
            name, device, number=number, repeat=repeat, f_preproc=preparing
        )
        return tuple(timer(*arrays).results)

    in_l2 = model_bytes <= _SHARE_OF_L2 * (device.l2_cache_size_bytes or 0)

    def first_calls() -> tuple[float, ...]:
        return times(_FIRST, 3) if in_l2 else times(1, 3, prepare)

    once = min(first := first_calls())
    if once > _COLD * HOPELESS * best_s:
        return first
    _warm_up(lambda number: min(times(number, 1)), once)
    once = min(first := first_calls())
    if once > HOPELESS * best_s:
        return first
    if in_l2:
        found = times(max(_FIRST, min(_MOST, int(_ROW_S / max(once, 1e-6)))), _ROWS)
    else:
        found = times(1, max(MIN_CALLS, min(MAX_CALLS, int(MEASURE_S / max(once, 1e-6)))), prepare)
    # What else the GPU and its host do only ever adds: the faster half is the kernel's own.
    return tuple(sorted(found)[: (len(found) + 1) // 2])


def _warm_up(launches: Callable[[int], float], once_s: float) -> None:
    """Keep the GPU busy for ``_WARM_S``.

    Args:
        launches: runs so many in a row; seconds of one each.
        once_s: of one launch, as far as is known.
    """
    left_s = _WARM_S
    while left_s > 0:  # what was slow at first says too much of one launch
        number = int(left_s / max(once_s, 1e-6)) + 1
        once_s = max(launches(number), 1e-6)
        left_s -= number * once_s


def call_once(function: Any, arrays: Arrays) -> float:
    """Seconds of one call, this machine's clock: all that an emulator is asked for."""
    begun = time.perf_counter()
    function(*arrays)
    arrays[0].device.sync()
    return time.perf_counter() - begun


# What the child keeps between its calls for one trial, and of the task that it checked last.
_built: dict[str, Any] = {}
_expected: dict[str, Any] = {}


def _build(candidate: Candidate, weight_bytes: int) -> None:
    """Child side: compile one candidate."""
    _built.clear()
    _built["kernel"] = build_to_send(candidate, weight_bytes, as_in_model=True)


def _run(model_bytes: int, best_s: float) -> tuple[float, ...]:
    """Child side: time the candidate built last on random data. Seconds of one call each."""
    kernel: Kernel = _built["kernel"]
    arrays = _arrays(kernel)
    if cuda.emulated():
        seconds = _call(kernel, arrays)
        _built["result"] = arrays[-1].numpy()
        return (seconds,)
    register()
    return time_on_gpu(
        kernel.function,
        SENT_NAME,
        arrays,
        model_bytes=model_bytes,
        best_s=best_s,
        prepare=AS_IN_THE_MODEL,
    )


def _check(candidate: Candidate, weight_bytes: int, task_key: str) -> float:
    """Child side: largest difference to the reference kernel, of the reference's largest value.

    NaN where the candidate yields NaN, or leaves it unwritten.
    """
    # The weights have one layout on a GPU, in the model and alone.
    kernel: Kernel = _built["kernel"]
    if "result" not in _built:
        arrays = _arrays(kernel)
        _call(kernel, arrays)
        _built["result"] = arrays[-1].numpy()
    of = (task_key, _tensors(kernel))
    if _expected.get("of") != of:  # one task's trials come in a row
        _expected.update(result=_reference(candidate, weight_bytes), of=of)
    return difference(_built["result"], _expected["result"])


def _call(kernel: Kernel, arrays: Arrays) -> float:
    try:
        return call_once(kernel.function[SENT_NAME], arrays)
    except cuda.CudaError as error:  # the emulator refuses it: that ends no run
        raise RuntimeError(str(error)) from None


def _launch(target: str, host: str | None, model_bytes: int) -> float:
    """Child side: seconds that a launch takes, timed as kernels are."""
    import numpy as np
    import tvm

    module = build_launch(target, host)
    array = tvm.nd.array(np.zeros(1, np.float32), tvm.cuda(0))
    register()
    return time_launch(module, array, model_bytes=model_bytes, prepare=AS_IN_THE_MODEL)


def time_launch(module: Any, array: Any, *, model_bytes: int, prepare: str) -> float:
    """Seconds of a launch, of ``build_launch``'s kernel on a GPU.

    Timed as the model's kernels are (``time_on_gpu``, whose arguments these are): a launch from an
    idle GPU takes several times as long as one in a row, and a kernel's time is compared with it.
    """
    never_hopeless = float("inf")
    return min(
        time_on_gpu(
            module,
            SENT_NAME,
            [array],
            model_bytes=model_bytes,
            best_s=never_hopeless,
            prepare=prepare,
        )
    )


def _reference(candidate: Candidate, weight_bytes: int) -> Any:
    import tvm

    kernel = build_reference_here(candidate, weight_bytes)
    arrays = [tvm.nd.array(data) for data in random_data(_tensors(kernel), _last(kernel))]
    kernel.function(*arrays)
    return arrays[-1].numpy()


def _arrays(kernel: Kernel) -> Arrays:
    import tvm

    device = tvm.cuda(0)
    return [tvm.nd.array(data, device) for data in random_data(_tensors(kernel), _last(kernel))]


def _tensors(kernel: Kernel) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple((tuple(map(int, t.shape)), str(t.dtype)) for t in kernel.arguments)


def _last(kernel: Kernel) -> int:
    return len(kernel.arguments) - 1


def _no_launch(why: str) -> cuda.CudaError:
    return cuda.CudaError(
        f"the GPU does not run the smallest kernel ({why}): look at its driver, its memory and "
        "what else runs there with nvidia-smi, and run the same command again"
    )


class GpuMeasurer(LocalMeasurer):
    """Measure on this machine's GPU, or run on the emulator where the environment says so.

    Args:
        model_bytes: weights of the whole model.
    """

    def __init__(self, model_bytes: int) -> None:
        super().__init__(model_bytes)
        self.emulated = cuda.emulated()
        self._has_context = False  # the child, on the GPU

    def launch_s(self, preset: Preset) -> float:
        """Seconds of a launch; 0 of the emulator, which has none.

        Raises:
            DeviceError: the GPU cannot be used.
        """
        if self.emulated:
            return 0.0
        arguments = (preset.target, preset.host, self._model_bytes)
        limit_s = BUILD_TIMEOUT_S + CONTEXT_S + RUN_TIMEOUT_S
        try:
            found = float(self._worker.call(_launch, *arguments, timeout_s=limit_s))
        except (TimeoutError, ChildProcessError) as error:
            raise _no_launch(type(error).__name__) from None
        except DeviceError:  # it says what to do itself
            raise
        except Exception as error:  # whatever TVM raised in the child
            raise _no_launch(reason(error)) from error
        self._has_context = True
        return found

    def measure(
        self, task: Task, config: Config, deadline_s: float, best_s: float = float("inf")
    ) -> Trial:
        """See ``Measurer``."""
        trial = super().measure(task, config, deadline_s, best_s)
        # Most failures end the child; of the others the next trial has more time than it needs.
        self._has_context = trial.failure in (None, Failure.WRONG_OUTPUT)
        return trial

    def _limit_s(self, measured_s: float) -> float:
        return EMULATED_TIMEOUT_S if self.emulated else measured_s

    def _to_build(self, candidate: Candidate, task: Task) -> Call:
        limit_s = self._limit_s(BUILD_TIMEOUT_S)
        return Call(building(_build), limit_s, (candidate, task.weight_bytes))

    def _to_run(self, task: Task, best_s: float) -> Call:
        limit_s = RUN_TIMEOUT_S + (0.0 if self._has_context else CONTEXT_S)
        return Call(running(_run), self._limit_s(limit_s), (self._model_bytes, best_s))

    def _to_check(self, candidate: Candidate, task: Task) -> Call:
        limit_s = self._limit_s(CHECK_TIMEOUT_S)
        return Call(checking(_check), limit_s, (candidate, task.weight_bytes, task.key))

    def _must_check(self, costs_s: tuple[float, ...], best_s: float) -> bool:
        return self.emulated or super()._must_check(costs_s, best_s)

    def _after(self, failure: Failure) -> None:
        # After an error of a kernel's a process can no longer use its GPU.
        if failure is Failure.RUN_ERROR:
            self._worker.close()
