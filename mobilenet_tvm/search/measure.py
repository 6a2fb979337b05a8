"""Measure candidates on this machine: built and run in a child process that may die.

The child is TVM's own ``PopenWorker`` (see ``toolchain.Worker``). One child builds and runs:
the kernel goes from LLVM's JIT straight to the timer, with no file, no linker and no RPC
between, so a trial takes a tenth of what AutoTVM's LocalBuilder and LocalRunner need.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from mobilenet_tvm import toolchain
from mobilenet_tvm.records import Task
from mobilenet_tvm.search.trial import Failure, Trial

BUILD_TIMEOUT_S = 10.0
RUN_TIMEOUT_S = 10.0
# Calls of one trial: as many as fit the time, within bounds.
MEASURE_S = 0.03
MIN_CALLS = 20
MAX_CALLS = 60

_PREPARE = "mobilenet_tvm.as_in_the_model"


class Measurer(Protocol):
    """Where trials are measured: this machine, a recorded table, later a board."""

    def measure(self, task: Task, config: int, deadline_s: float) -> Trial:
        """Measure one configuration, in at most about ``deadline_s`` seconds."""

    def close(self) -> None:
        """Release the device."""


# What the child keeps between its two calls for one trial.
_built: dict[str, Any] = {}


def _build(handle: Any, config: int) -> None:
    """Child side: compile one candidate."""
    import tvm
    from tvm import autotvm

    import mobilenet_tvm.schedules  # noqa: F401  (registers our templates)

    # Templates then take the layout they want as their input, as they find it in the model.
    autotvm.GLOBAL_SCOPE.in_tuning = True
    with handle.target, tvm.transform.PassContext(config=toolchain.pass_config()):
        schedule, arguments = handle.instantiate(handle.config_space.get(config))
        function = tvm.build(schedule, arguments, target=handle.target)
    _built["function"], _built["arguments"] = function, arguments


def _run(threads: int, model_bytes: int) -> tuple[float, ...]:
    """Child side: time the candidate built last, on random data. Seconds of one call each.

    Before every call the caches are put into the state they have in the model: the kernel's
    input was just written, and since its weights were last used all other layers' went by. A
    kernel timed in a loop finds its weights in L1 or L2, and other configurations win there.
    """
    import numpy as np
    import tvm
    from tvm.topi.utils import get_const_tuple

    device = tvm.cpu(0)
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    random = np.random.default_rng(0)
    arrays = [
        tvm.nd.array(random.uniform(-1, 1, get_const_tuple(t.shape)).astype(t.dtype), device)
        for t in _built["arguments"]
    ]
    other_layers = np.ones(model_bytes // 4 + 1, np.float32)
    activations = np.from_dlpack(arrays[0])

    def as_in_the_model(*_arguments: object) -> None:
        other_layers.sum()
        activations.sum()

    tvm.register_func(_PREPARE, as_in_the_model, override=True)
    function = _built["function"]

    def time_calls(calls: int) -> tuple[float, ...]:
        timer = function.time_evaluator(
            function.entry_name, device, number=1, repeat=calls, f_preproc=_PREPARE
        )
        return tuple(timer(*arrays).results)

    once = min(time_calls(3))
    calls = int(np.clip(MEASURE_S / max(once, 1e-6), MIN_CALLS, MAX_CALLS))
    # A neighbour's burst only ever adds: the faster half is the kernel's own.
    return tuple(sorted(time_calls(calls))[: calls // 2])


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

    def measure(self, task: Task, config: int, deadline_s: float) -> Trial:
        """See ``Measurer``. A crash or a time-out costs this one trial and nothing else."""
        start = time.monotonic()

        def failed(kind: Failure, message: str) -> Trial:
            return Trial(config, (), kind, message, time.monotonic() - start)

        limit_s = min(BUILD_TIMEOUT_S, deadline_s)
        try:
            self._worker.call(_build, task.handle, config, timeout_s=limit_s)
        except TimeoutError:
            return failed(Failure.BUILD_TIMEOUT, f"building took more than {limit_s:.1f} s")
        except ChildProcessError:
            return failed(Failure.BUILD_ERROR, "the compiler crashed")
        except Exception as error:  # whatever TVM or LLVM raised in the child
            return failed(Failure.BUILD_ERROR, first_line(error))
        left_s = deadline_s - (time.monotonic() - start)
        limit_s = max(min(RUN_TIMEOUT_S, left_s), 0.1)
        try:
            costs = self._worker.call(_run, self._threads, self._model_bytes, timeout_s=limit_s)
        except TimeoutError:
            return failed(Failure.RUN_TIMEOUT, f"running took more than {limit_s:.1f} s")
        except ChildProcessError:
            return failed(Failure.RUN_ERROR, "the kernel crashed")
        except Exception as error:
            return failed(Failure.RUN_ERROR, first_line(error))
        return Trial(config, costs, elapsed_s=time.monotonic() - start)

    def close(self) -> None:
        """Kill the child."""
        self._worker.close()


def first_line(error: BaseException) -> str:
    """The line of an error that says what is wrong: the last one of a traceback's."""
    # The text of a KeyError is the repr of its message, a whole traceback in one line.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    telling = [line for line in lines if "Error" in line or "Check failed" in line]
    return (telling or lines)[-1][:300]
