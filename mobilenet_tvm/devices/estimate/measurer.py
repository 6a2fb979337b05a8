"""Rank candidates with no board: a ``Measurer`` whose seconds are an estimate, never a latency."""

from __future__ import annotations

import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobilenet_tvm import toolchain
from mobilenet_tvm.build.link import llvm_tool
from mobilenet_tvm.devices.estimate.cores import CORES, Core, core_of
from mobilenet_tvm.devices.estimate.cost import Cost, cost_of
from mobilenet_tvm.devices.estimate.emulator import Arguments, Emulation, EmulationError, Emulator
from mobilenet_tvm.devices.estimate.native import harness, plugin, qemu_of
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
from mobilenet_tvm.search.measure import first_line
from mobilenet_tvm.search.trial import Failure, Trial
from mobilenet_tvm.targets import Preset

BUILD_TIMEOUT_S = 10.0
RUN_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 60.0
TOLERANCE = TOLERANCES["float32"]


def why_not(preset: Preset, core: Core | None = None) -> str | None:
    """Why nothing can be estimated for ``preset`` here; None where it can. One line.

    Compiles the plugin and the harness the first time, which takes seconds.
    """
    if (core or core_of(preset)) is None:
        return f"no figures of {preset.name}'s core ({preset.cpu}): {', '.join(CORES)} have some"
    if preset.qemu is None or platform.system() != "Linux":
        return f"qemu-user, which runs on Linux only, emulates no machine for {preset.name}"
    missing = [name for name in ("llvm-mca", "llvm-objdump") if not llvm_tool(name).exists()]
    if missing:
        return f"{missing[0]} of {toolchain.LLVM_PACKAGE} is not at {llvm_tool(missing[0])}"
    try:
        plugin(qemu_of(preset))
        harness(preset.arch)
    except DeviceError as error:
        return str(error)
    return None


class EstimateMeasurer:
    """Estimates trials for a machine that is not there. Implements ``search.Measurer``.

    Each candidate is built in a child that may die, and run once under qemu-user. A new best's
    result, as the emulator computed it, is compared with the same computation unscheduled on this
    machine. The same candidate has the same cost each time, to the last bit; whatever else this
    machine does changes nothing but how long it takes.

    Args:
        preset: what to compile for.
        core: whose time to estimate, in place of the preset's own.
        model_bytes: weights of the whole model, which pass through the caches between two calls.

    Raises:
        DeviceError: nothing can be estimated here (``why_not``).
    """

    # What is written beside its records, which are no latencies.
    timing: Literal["estimated"] = "estimated"

    def __init__(
        self, preset: Preset, *, core: Core | None = None, model_bytes: int = 4 << 20
    ) -> None:
        core = core or core_of(preset)
        if (reason := why_not(preset, core)) is not None or core is None:
            raise DeviceError(f"--device estimate does not work for {preset.name}: {reason}")
        self._triple = preset.triple
        self._core = core
        self._model_bytes = model_bytes
        self._emulator = Emulator(preset, core)
        self._worker = toolchain.Worker()
        self._folder = tempfile.TemporaryDirectory(prefix="mobilenet_tvm-estimate-")
        # Of the task that was checked last: its trials come in a row.
        self._expected: tuple[object, Any] = (None, None)

    @property
    def cpu(self) -> str:
        """What the times are of, for run files: ``cortex-a72 (estimated)``."""
        return f"{self._core.mcpu} (estimated)"

    def measure(
        self, task: Task, config: Config, deadline_s: float, best_s: float = float("inf")
    ) -> Trial:
        """See ``search.Measurer``; the one cost is cycles by the core's nominal clock."""
        start = time.monotonic()
        try:
            cost = self._estimate(task, config, start + deadline_s, best_s)
        except _FailedError as error:
            return Trial(config, (), error.failure, str(error), time.monotonic() - start)
        seconds = cost.cycles / self._core.clock_hz
        return Trial(config, (seconds,), None, "", time.monotonic() - start)

    def cost(self, task: Task, config: Config, timeout_s: float = CHECK_TIMEOUT_S) -> Cost | Trial:
        """What ``measure`` makes its figure of, for looking into it; the trial where it failed."""
        try:
            return self._estimate(task, config, time.monotonic() + timeout_s, 0.0)
        except _FailedError as error:
            return Trial(config, (), error.failure, str(error))

    def _estimate(self, task: Task, config: Config, end: float, best_s: float) -> Cost:
        candidate = describe(task, config)
        program, emulation = self._emulate(build, candidate, task, end)
        try:
            cost = cost_of(program, emulation, self._core, triple=self._triple)
        except EmulationError as error:
            raise _FailedError(Failure.RUN_ERROR, str(error)) from None
        # What is hardly slower may be chosen too (records.choose_records).
        if cost.cycles / self._core.clock_hz < CLEARLY * best_s:
            self._check(task, candidate, emulation, end)
        return cost

    def _emulate(
        self, make: Callable[[Candidate], Kernel], candidate: Candidate, task: Task, end: float
    ) -> tuple[Path, Emulation]:
        """Build a candidate one way or the other, and run it once."""
        folder = Path(self._folder.name)
        kernel, program = folder / "kernel.o", folder / "kernel"
        limit_s = _left_s(end, BUILD_TIMEOUT_S)
        try:
            arguments = self._worker.call(
                _build, make, candidate, str(kernel), task.weight_bytes, timeout_s=limit_s
            )
            self._emulator.link(kernel, program)
        except TimeoutError:
            message = f"building took more than {limit_s:.1f} s"
            raise _FailedError(Failure.BUILD_TIMEOUT, message) from None
        except ChildProcessError:
            raise _FailedError(Failure.BUILD_ERROR, "the compiler crashed") from None
        except subprocess.CalledProcessError as error:
            reason = ((error.stderr or "").strip().splitlines() or [str(error)])[0]
            raise _FailedError(Failure.BUILD_ERROR, f"linking failed: {reason}") from None
        except DeviceError:
            raise
        except Exception as error:  # whatever TVM or LLVM raised in the child
            raise _FailedError(Failure.BUILD_ERROR, first_line(error)) from None
        limit_s = _left_s(end, RUN_TIMEOUT_S)
        try:
            return program, self._emulator.run(
                program, arguments, model_bytes=self._model_bytes, timeout_s=limit_s
            )
        except TimeoutError:
            message = f"the emulator took more than {limit_s:.1f} s"
            raise _FailedError(Failure.RUN_TIMEOUT, message) from None
        except EmulationError as error:
            raise _FailedError(Failure.RUN_ERROR, str(error)) from None

    def _check(self, task: Task, candidate: Candidate, emulation: Emulation, end: float) -> None:
        """Fail where the candidate computes something else than its task."""
        if candidate.searcher == "ansor":  # its weights are laid out anew in the model
            _, emulation = self._emulate(build_to_check, candidate, task, end)
        # The arguments' layout, and with it their random data, may follow the configuration.
        of = (task.key, emulation.arguments)
        if self._expected[0] != of:
            limit_s = _left_s(end, CHECK_TIMEOUT_S)
            try:
                result = self._worker.call(_reference, candidate, timeout_s=limit_s)
            except TimeoutError:
                message = f"the reference kernel took more than {limit_s:.1f} s"
                raise _FailedError(Failure.RUN_TIMEOUT, message) from None
            except ChildProcessError:
                message = "the reference kernel crashed"
                raise _FailedError(Failure.RUN_ERROR, message) from None
            except DeviceError:
                raise
            except Exception as error:  # whatever TVM or LLVM raised in the child
                raise _FailedError(Failure.RUN_ERROR, first_line(error)) from None
            self._expected = (of, result)
        if (wrong := difference(emulation.result, self._expected[1])) is not None:
            raise _FailedError(Failure.WRONG_OUTPUT, wrong)

    def close(self) -> None:
        """Kill the child and remove what was built."""
        self._worker.close()
        self._folder.cleanup()


class _FailedError(Exception):
    """A step failed."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


def _left_s(end: float, limit_s: float) -> float:
    return max(min(limit_s, end - time.monotonic()), 0.1)


def difference(
    result: np.ndarray[Any, np.dtype[np.float32]], expected: np.ndarray[Any, np.dtype[np.float32]]
) -> str | None:
    """What is wrong with a kernel's result, None where it is right. One line."""
    scale = max(float(np.max(np.abs(expected))), float(np.finfo(np.float32).tiny))
    error = float(np.max(np.abs(result - expected))) / scale
    if np.isnan(error):
        return "part of the result is NaN or was never written"
    if error > TOLERANCE:
        return f"differs from the reference kernel by {error:.1e} of its largest value"
    return None


def _build(
    make: Callable[[Candidate], Kernel], candidate: Candidate, path: str, weight_bytes: int
) -> Arguments:
    """Child side: compile a candidate into an object. Returns what it is called with."""
    kernel = make(candidate)
    kernel.function.save(path)
    return _arguments(kernel, weight_bytes)


def _arguments(kernel: Kernel, weight_bytes: int = 0) -> Arguments:
    from tvm.topi.utils import get_const_tuple

    if any(tensor.dtype != "float32" for tensor in kernel.arguments):
        raise TypeError("only float32 kernels can be estimated")
    shapes = tuple(tuple(map(int, get_const_tuple(t.shape))) for t in kernel.arguments)
    inputs = [i for i in reversed(range(len(shapes))) if i != kernel.result]
    weights = (i for i in inputs if 4 * int(np.prod(shapes[i])) == weight_bytes)
    return Arguments(shapes, kernel.result, next(weights, None))


def _reference(candidate: Candidate) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Child side: what the candidate is to compute, by this machine, with no schedule."""
    import tvm

    kernel = build_reference(candidate, "llvm")
    arguments = _arguments(kernel)
    arrays = [tvm.nd.array(data, tvm.cpu(0)) for data in arguments.random()]
    kernel.function(*arrays)
    result: np.ndarray[Any, np.dtype[np.float32]] = arrays[kernel.result].numpy()
    return result
