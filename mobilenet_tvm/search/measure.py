"""Measure candidates on this machine: built and run in a child process that may die.

The child is TVM's own ``PopenWorker`` (see ``toolchain.Worker``). One child builds and runs:
the kernel goes from LLVM's JIT straight to the timer, with no file, no linker and no RPC
between, so a trial takes a tenth of what AutoTVM's LocalBuilder and LocalRunner need.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol, runtime_checkable

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.parity.tolerances import TOLERANCES
from mobilenet_tvm.records import CLEARLY, Config, Task
from mobilenet_tvm.search.candidates import (
    Candidate,
    Kernel,
    build,
    build_reference,
    build_to_check,
    describe,
)
from mobilenet_tvm.search.trial import Failure, Trial

BUILD_TIMEOUT_S = 6.0
RUN_TIMEOUT_S = 4.0
CHECK_TIMEOUT_S = 30.0
# Of the largest value of the result. Sums of a thousand float32 products in another order differ
# by 1e-6 of it; a kernel that is wrong by a thousandth is wrong. What the model's outputs may be
# off by is enough for one layer of it.
TOLERANCE = TOLERANCES["float32"]
# Calls of one trial: as many as fit the time, within bounds.
MEASURE_S = 0.03
MIN_CALLS = 20
MAX_CALLS = 60
# A kernel that takes so many times as long as the best one need not be known more exactly.
HOPELESS = 1.5

_PREPARE = "mobilenet_tvm.as_in_the_model"


class Measurer(Protocol):
    """Where trials are measured: this machine, a recorded table, boards."""

    def measure(
        self, task: Task, config: Config, deadline_s: float, best_s: float = float("inf")
    ) -> Trial:
        """Measure one configuration, in at most about ``deadline_s`` seconds.

        ``best_s`` is the task's best time so far. What is faster is compared with a reference
        kernel, and fails with ``Failure.WRONG_OUTPUT`` where the two differ; what is far slower
        is timed by a few calls only.

        Raises:
            DeviceError: nothing can be measured any more.
        """

    def close(self) -> None:
        """Release the device."""


@dataclass(frozen=True)
class Request:
    """One trial to measure: what ``Measurer.measure`` is given."""

    task: Task
    config: Config
    best_s: float = float("inf")


@runtime_checkable
class FleetMeasurer(Measurer, Protocol):
    """A measurer that measures several trials at once. See ``RemoteMeasurer``."""

    def width(self) -> int:
        """How many trials it takes at once now, at least 1: boards come and go."""

    def measure_all(
        self, requests: Sequence[Request], deadline_s: float
    ) -> Iterator[tuple[int, Trial]]:
        """Measure all, in at most about ``deadline_s`` seconds together.

        Yields:
            (Index of the request, its trial), each as early as the requests' order allows.

        Raises:
            DeviceError: nothing can be measured any more. What was finished by then has been
                yielded before, here alone out of order.
        """


# What the child keeps between its calls for one trial, and of the task that it checked last.
_built: dict[str, Any] = {}
_expected: dict[str, Any] = {}
# Arrays that are read before each call of the kernel, all other layers' weights first.
_read_before_calls: list[Any] = []


def _as_in_the_model(*_arguments: object) -> None:
    for data in _read_before_calls:
        data.sum()


def _build(candidate: Candidate) -> None:
    """Child side: compile one candidate."""
    _built["kernel"] = build(candidate)


def _run(threads: int, model_bytes: int, weight_bytes: int, best_s: float) -> tuple[float, ...]:
    """Child side: time the candidate built last, on random data. Seconds of one call each.

    Before every call the caches are put into the state they have in the model: the kernel's
    input was just written, and since its weights were last used all other layers' went by. A
    kernel timed in a loop finds its weights in L1 or L2, and other configurations win there.
    """
    import numpy as np
    import tvm

    device = tvm.cpu(0)
    # TVM asks at each launch. Told by its pool alone, one thread still goes through the pool's
    # queue: 8 us a launch, that no artifact's kernel takes.
    os.environ["TVM_NUM_THREADS"] = str(threads)
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    kernel: Kernel = _built["kernel"]
    arrays = [tvm.nd.array(data, device) for data in _random(kernel)]
    other_layers = np.ones(model_bytes // 4 + 1, np.float32)
    data = [np.from_dlpack(array) for array in arrays]
    inputs = [i for i in range(len(data)) if i != kernel.result]
    weights = next((i for i in reversed(inputs) if data[i].nbytes == weight_bytes), None)
    _read_before_calls[:] = [other_layers, *(data[i] for i in inputs if i != weights)]
    # Once: what TVM's registry holds it never lets go of, were it registered anew.
    if tvm.get_global_func(_PREPARE, allow_missing=True) is None:
        tvm.register_func(_PREPARE, _as_in_the_model)
    function = kernel.function

    def time_calls(calls: int) -> tuple[float, ...]:
        timer = function.time_evaluator(
            function.entry_name, device, number=1, repeat=calls, f_preproc=_PREPARE
        )
        return tuple(timer(*arrays).results)

    once = min(first := time_calls(3))
    if once > HOPELESS * best_s:
        return first
    calls = int(np.clip(MEASURE_S / max(once, 1e-6), MIN_CALLS, MAX_CALLS))
    # A neighbour's burst only ever adds: the faster half is the kernel's own.
    return tuple(sorted(time_calls(calls))[: calls // 2])


def random_data(tensors: Sequence[tuple[Sequence[int], str]], result: int) -> list[Any]:
    """The same random inputs each time, and NaN for the result: what is left unwritten shows.

    Args:
        tensors: shape and dtype of each argument.
        result: which of them the result is.
    """
    import numpy as np

    random = np.random.default_rng(0)
    data = [random.uniform(-1, 1, tuple(shape)).astype(dtype) for shape, dtype in tensors]
    data[result][:] = np.nan
    return data


def _random(kernel: Kernel) -> list[Any]:
    from tvm.topi.utils import get_const_tuple

    return random_data(
        [(get_const_tuple(t.shape), t.dtype) for t in kernel.arguments], kernel.result
    )


def _check(candidate: Candidate, task_key: str) -> float:
    """Child side: largest difference to the reference kernel, of the reference's largest value.

    NaN where the candidate yields NaN, or leaves it unwritten.
    """
    # AutoTVM's kernels take the same arguments in the model and alone.
    kernel: Kernel = _built["kernel"]
    if candidate.searcher == "ansor":
        kernel = build_to_check(candidate)
    shapes = [tuple(map(int, tensor.shape)) for tensor in kernel.arguments]
    if _expected.get("of") != (task_key, shapes):  # one task's trials come in a row
        _expected.update(result=_result(build_reference(candidate)), of=(task_key, shapes))
    return difference(_result(kernel), _expected["result"])


def difference(result: Any, reference: Any) -> float:
    """Largest difference of a result to the reference's, of the reference's largest value.

    NaN where the result holds NaN.
    """
    import numpy as np

    scale = max(float(np.max(np.abs(reference))), float(np.finfo(np.float32).tiny))
    return float(np.max(np.abs(result - reference))) / scale


def _result(kernel: Kernel) -> Any:
    """What a kernel makes of the random inputs."""
    import tvm

    arrays = [tvm.nd.array(data, tvm.cpu(0)) for data in _random(kernel)]
    kernel.function(*arrays)
    return arrays[kernel.result].numpy()


def wrong(off: float) -> str:
    """What is wrong with a result so far from the reference kernel's."""
    if math.isnan(off):
        return "part of the result is NaN or was never written"
    return f"differs from the reference kernel by {off:.1e} of its largest value"


@dataclass(frozen=True)
class Step:
    """One call of a trial in the child, and what its failures are called."""

    function: Callable[..., Any]
    doing: str
    who: str
    error: Failure
    timeout: Failure


def building(function: Callable[..., Any]) -> Step:
    """The step that compiles a candidate."""
    return Step(function, "building", "the compiler", Failure.BUILD_ERROR, Failure.BUILD_TIMEOUT)


def running(function: Callable[..., Any]) -> Step:
    """The step that times it."""
    return Step(function, "running", "the kernel", Failure.RUN_ERROR, Failure.RUN_TIMEOUT)


def checking(function: Callable[..., Any]) -> Step:
    """The step that compares what it computes."""
    return Step(function, "checking", "the kernel", Failure.RUN_ERROR, Failure.RUN_TIMEOUT)


@dataclass(frozen=True)
class Call:
    """A step with its arguments and its time limit."""

    step: Step
    timeout_s: float
    arguments: tuple[object, ...]


class LocalMeasurer:
    """Measure on this machine's CPU.

    Args:
        model_bytes: weights of the whole model; so much passes through the caches between
            two calls of a kernel.
        threads: of TVM's thread pool while a candidate runs.
    """

    def __init__(self, model_bytes: int = 4 << 20, threads: int = 1) -> None:
        self._model_bytes = model_bytes
        self._threads = threads
        self._worker = toolchain.Worker()

    def measure(
        self, task: Task, config: Config, deadline_s: float, best_s: float = float("inf")
    ) -> Trial:
        """See ``Measurer``. A crash or a time-out costs this one trial and nothing else."""
        start = time.monotonic()
        candidate = describe(task, config)

        def trial(costs_s: tuple[float, ...], failure: Failure | None, message: str) -> Trial:
            return Trial(config, costs_s, failure, message, time.monotonic() - start)

        def in_child(call: Call) -> Any:
            step, left_s = call.step, deadline_s - (time.monotonic() - start)
            limit_s = max(min(call.timeout_s, left_s), 0.1)
            try:
                return self._worker.call(step.function, *call.arguments, timeout_s=limit_s)
            except TimeoutError:
                message = f"{step.doing} took more than {limit_s:.1f} s"
                raise _FailedError(step.timeout, message) from None
            except ChildProcessError:
                raise _FailedError(step.error, f"{step.who} crashed") from None
            except DeviceError:  # there is no child: that is not the candidate's failure
                raise
            except Exception as error:  # whatever TVM or LLVM raised in the child
                raise _FailedError(step.error, first_line(error)) from None

        try:
            in_child(self._to_build(candidate, task))
            costs_s = in_child(self._to_run(task, best_s))
            if self._must_check(costs_s, best_s):
                off = in_child(self._to_check(candidate, task))
                if not off <= TOLERANCE:
                    return trial((), Failure.WRONG_OUTPUT, wrong(off))
        except _FailedError as error:
            self._after(error.failure)
            return trial((), error.failure, str(error))
        return trial(costs_s, None, "")

    def close(self) -> None:
        """Kill the child."""
        self._worker.close()

    def _to_build(self, candidate: Candidate, task: Task) -> Call:
        return Call(building(_build), BUILD_TIMEOUT_S, (candidate,))

    def _to_run(self, task: Task, best_s: float) -> Call:
        arguments = (self._threads, self._model_bytes, task.weight_bytes, best_s)
        return Call(running(_run), RUN_TIMEOUT_S, arguments)

    def _to_check(self, candidate: Candidate, task: Task) -> Call:
        return Call(checking(_check), CHECK_TIMEOUT_S, (candidate, task.key))

    def _must_check(self, costs_s: tuple[float, ...], best_s: float) -> bool:
        # What is hardly slower may be chosen too (records.choose_records).
        return median(costs_s) < CLEARLY * best_s

    def _after(self, failure: Failure) -> None:
        """What is to be done after a failure, before the next trial."""


class _FailedError(Exception):
    """A step failed."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


def first_line(error: BaseException) -> str:
    """The line of an error that says what is wrong: the last one of a traceback's."""
    # The text of a KeyError is the repr of its message, a whole traceback in one line.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    telling = [line for line in lines if "Error" in line or "Check failed" in line]
    return (telling or lines)[-1][:300]
