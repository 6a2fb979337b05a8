"""Which NVIDIA GPU this machine has, and how it was doing while something ran on it.

Asked of the driver's management library (NVML, by nvidia-ml-py), which makes no CUDA context: it
costs no GPU memory and works before, during and after another process's run. A Jetson's driver
has no NVML or half of one; there Linux's own files say what they can (``jetson``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from mobilenet_tvm.cuda import jetson

_Value = TypeVar("_Value")

# Bits of NVML's clock event reasons (nvml.h, nvmlClocksEventReason*) in words.
_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
    0x100: "display clocks",
}
# Why a clock is low though nothing is wrong: nothing to do, or somebody's setting.
_HARMLESS = frozenset(("idle", "application clocks", "display clocks"))


@dataclass(frozen=True)
class GpuInfo:
    """One GPU. What its driver does not tell is None.

    Attributes:
        name: ``NVIDIA A100-SXM4-40GB``; of a MIG slice NVML's name for it.
        compute_capability: ``(8, 0)``.
        uuid: ``GPU-...``, or ``MIG-...`` of a slice.
        driver_version: ``550.54.15``.
        cuda_version: the newest CUDA that the driver runs, ``12.4``.
        memory_bytes: of the GPU or slice.
        multiprocessors: of the GPU or slice.
        power_limit_w: that the driver holds it to.
        max_sm_clock_mhz: what the card can do.
        mig: whether it is a slice of a GPU.
    """

    name: str
    compute_capability: tuple[int, int]
    uuid: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    memory_bytes: int | None = None
    multiprocessors: int | None = None
    power_limit_w: float | None = None
    max_sm_clock_mhz: int | None = None
    mig: bool = False

    @property
    def arch(self) -> str:
        """``sm_80``."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"

    def __str__(self) -> str:
        """One line: ``NVIDIA A100-SXM4-40GB (sm_80, 108 SMs, 40.0 GiB), driver 550.54.15``."""
        parts = [self.arch]
        if self.multiprocessors is not None:
            parts.append(f"{self.multiprocessors} SMs")
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes / (1 << 30):.1f} GiB")
        driver = f", driver {self.driver_version}" if self.driver_version else ""
        return f"{self.name} ({', '.join(parts)}){driver}"


@dataclass(frozen=True)
class GpuState:
    """One look at a GPU. What its driver does not tell is None.

    Attributes:
        sm_clock_mhz: of the multiprocessors, now.
        memory_clock_mhz: now.
        temperature_c: degrees Celsius.
        power_w: drawn now.
        reasons: why the clock is not higher, in words; None where nobody says.
        utilization: percent of the last sample period (1/6 to 1 s) in which any kernel ran.
        others: processes with a CUDA context that are neither this one nor its children.
    """

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    reasons: tuple[str, ...] | None = None
    utilization: int | None = None
    others: int | None = None

    @property
    def throttled(self) -> bool:
        """Whether heat or power holds the clock down."""
        return any(reason not in _HARMLESS for reason in self.reasons or ())


@dataclass(frozen=True)
class GpuSummary:
    """How the GPU did during a run, for a run file. What was not told is None.

    Clocks are those of samples in which it was not idle, if there were any.
    """

    samples: int
    min_sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    min_memory_clock_mhz: int | None
    max_memory_clock_mhz: int | None
    max_temperature_c: int | None
    max_power_w: float | None
    throttled: bool
    reasons: tuple[str, ...]
    others: int | None

    def __str__(self) -> str:
        """One line: clocks, temperature, and whether it throttled."""
        parts = [f"SM clock {_range(self.min_sm_clock_mhz, self.max_sm_clock_mhz)}"]
        if self.max_memory_clock_mhz is not None:
            low, high = self.min_memory_clock_mhz, self.max_memory_clock_mhz
            parts.append(f"memory clock {_range(low, high)}")
        if self.max_temperature_c is not None:
            parts.append(f"at most {self.max_temperature_c} °C")
        if self.max_power_w is not None:
            parts.append(f"at most {self.max_power_w:.0f} W")
        if self.throttled:
            causes = [reason for reason in self.reasons if reason not in _HARMLESS]
            parts.append(f"THROTTLED ({', '.join(causes)})")
        if self.others:
            parts.append(f"shared with {self.others} other process{'es'[: 2 * (self.others > 1)]}")
        return ", ".join(parts)


def find_gpu(index: int = 0) -> GpuInfo | None:
    """The GPU that a CUDA program would call device ``index``; None where there is none.

    ``CUDA_VISIBLE_DEVICES`` is honoured, numbers, UUIDs and MIG slices. Its numbers are taken in
    the PCI bus's order: where GPUs differ, set ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, or CUDA may
    number them otherwise. Makes no CUDA context and never raises.
    """
    found = _look(index)
    return None if isinstance(found, str) else found


def why_none(index: int = 0) -> str | None:
    """Why ``find_gpu`` finds none, in words (``no NVIDIA GPU: ...``); None if it finds one."""
    found = _look(index)
    return f"no NVIDIA GPU: {found}" if isinstance(found, str) else None


def read_state(index: int = 0) -> GpuState | None:
    """How the GPU that ``find_gpu`` finds is doing now; None where there is none."""
    if find_gpu(index) is None:
        return None
    nvml = _nvml()
    if isinstance(nvml, str):
        return _jetson_state()
    with _session(nvml) as problem:
        handle = problem or _handle(nvml, index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return _jetson_state() if isinstance(handle, str) else _state(nvml, handle)


class Watch:
    """Samples of a GPU, taken by ``watch``."""

    def __init__(self, index: int = 0) -> None:
        self._index = index
        self._states: list[GpuState] = []

    def sample(self) -> None:
        """Look once."""
        state = read_state(self._index)
        if state is not None:
            self._states.append(state)

    @property
    def states(self) -> tuple[GpuState, ...]:
        """All so far, the first from before the run."""
        return tuple(self._states)

    def summary(self) -> GpuSummary | None:
        """Of all samples; None where there is no GPU."""
        states = self.states
        if not states:
            return None
        busy = [state for state in states if "idle" not in (state.reasons or ())] or states
        clocks = _told(state.sm_clock_mhz for state in busy)
        memory = _told(state.memory_clock_mhz for state in busy)
        reasons = {reason for state in states for reason in state.reasons or ()}
        return GpuSummary(
            samples=len(states),
            min_sm_clock_mhz=min(clocks, default=None),
            max_sm_clock_mhz=max(clocks, default=None),
            min_memory_clock_mhz=min(memory, default=None),
            max_memory_clock_mhz=max(memory, default=None),
            max_temperature_c=max(_told(state.temperature_c for state in states), default=None),
            max_power_w=max(_told(state.power_w for state in states), default=None),
            throttled=any(state.throttled for state in states),
            reasons=tuple(word for word in _REASONS.values() if word in reasons),
            others=max(_told(state.others for state in states), default=None),
        )


@contextlib.contextmanager
def watch(index: int = 0, period_s: float | None = 1.0) -> Iterator[Watch]:
    """Sample the GPU before and after the block, and within it every ``period_s`` seconds.

    A GPU with nothing to do lowers its clock within seconds, so only samples from within say what
    it ran at. One costs this machine's CPU about a millisecond; None takes none within. Without a
    GPU nothing is done.
    """
    seen = Watch(index)
    seen.sample()
    stop = threading.Event()
    thread: threading.Thread | None = None
    if seen.states and period_s is not None:

        def follow(period_s: float) -> None:
            while not stop.wait(period_s):
                seen.sample()

        thread = threading.Thread(target=follow, args=(period_s,), daemon=True)
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        if thread is not None:
            thread.join()
        if seen.states:
            seen.sample()


def _look(index: int) -> GpuInfo | str:
    """The GPU, or why there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _ask(_nvml(), index, visible, jetson.ROOT)


# A machine's GPUs do not change, and starting NVML takes a second where no process keeps the
# driver awake. What the answer depends on is in the key.
@functools.cache
def _ask(nvml: Any, index: int, visible: str | None, root: Any) -> GpuInfo | str:
    problem = nvml if isinstance(nvml, str) else None
    if problem is None:
        with _session(nvml) as failed:
            handle = failed or _handle(nvml, index, visible)
            if not isinstance(handle, str):
                found = _info(nvml, handle)
                if found is not None:
                    return found
                handle = "the driver does not tell its compute capability"
            problem = handle
    board = jetson.read_board(root) if index == 0 and visible not in ("", "-1") else None
    if board is None:
        return problem
    return GpuInfo(
        name=board.name,
        compute_capability=board.compute_capability,
        driver_version=board.release,
        memory_bytes=psutil.virtual_memory().total,  # the CPU's is the GPU's, too
    )


def _nvml() -> Any:
    """nvidia-ml-py's module, or why there is none."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed (pip install 'mobilenet-tvm[cuda]')"


@contextlib.contextmanager
def _session(nvml: Any) -> Iterator[str | None]:
    """NVML started, or why it cannot be."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if isinstance(error, nvml.NVMLError_LibraryNotFound):
            yield "no NVIDIA driver is installed (NVML's library is not found)"
        elif isinstance(error, nvml.NVMLError_DriverNotLoaded):
            yield "the NVIDIA driver is installed and not loaded"
        else:
            yield f"NVML says {error}"
        return
    try:
        yield None
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _told(values: Iterator[_Value | None]) -> list[_Value]:
    return [value for value in values if value is not None]


def _range(low: int | None, high: int | None) -> str:
    if low is None or high is None:
        return "unknown"
    return f"{low} MHz" if low == high else f"{low}-{high} MHz"


def _get(nvml: Any, function: str, *arguments: Any) -> Any:
    """What an NVML function returns, None where it cannot (N/A on this GPU, too old a driver)."""
    try:
        value = getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError, ValueError, OSError):
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _handle(nvml: Any, index: int, visible: str | None) -> Any:
    """NVML's handle of what CUDA calls device ``index``, or why there is none."""
    count = _get(nvml, "nvmlDeviceGetCount") or 0
    if not count:
        return "the driver finds no device"
    if visible is None:
        entries = [str(number) for number in range(count)]
    else:
        entries = [entry.strip() for entry in visible.split(",")]
    handles: list[Any] = []
    for entry in entries[: index + 1]:
        handle = _by_entry(nvml, entry, count)
        if handle is None:  # CUDA, too, ignores all that follows
            break
        handles.append(handle)
    if index < len(handles):
        return handles[index]
    given = "" if visible is None else f", CUDA_VISIBLE_DEVICES is {visible!r}"
    return f"there is no device {index} ({count} in the machine{given})"


def _by_entry(nvml: Any, entry: str, count: int) -> Any:
    """The handle of one entry of ``CUDA_VISIBLE_DEVICES``; None if it names no device."""
    if entry.isdigit():
        handle = (
            _get(nvml, "nvmlDeviceGetHandleByIndex", int(entry)) if int(entry) < count else None
        )
        slices = [] if handle is None else _slices(nvml, handle)
        return slices[0] if slices else handle  # where there are slices, CUDA takes the first
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    whole = [_get(nvml, "nvmlDeviceGetHandleByIndex", number) for number in range(count)]
    for handle in whole:
        slices = [] if handle is None else _slices(nvml, handle)
        for candidate in slices if entry.startswith("MIG-") else [handle]:
            # CUDA takes the beginning of a UUID for the whole.
            if candidate is not None and str(_uuid(nvml, candidate)).startswith(entry):
                return slices[0] if slices and candidate is handle else candidate
    return _get(nvml, "nvmlDeviceGetHandleByUUID", entry)


def _uuid(nvml: Any, handle: Any) -> str | None:
    value: str | None = _get(nvml, "nvmlDeviceGetUUID", handle)
    return value


def _slices(nvml: Any, handle: Any) -> list[Any]:
    """Handles of a GPU's MIG slices; none where it is not in that mode."""
    mode = _get(nvml, "nvmlDeviceGetMigMode", handle)
    if not mode or not mode[0]:
        return []
    most = _get(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    found = (_get(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, i) for i in range(most))
    return _told(found)


def _whole(nvml: Any, handle: Any) -> tuple[Any, bool]:
    """The GPU that a handle is of, and whether it is a slice of it."""
    parent = _get(nvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
    return (handle, False) if parent is None else (parent, True)


def _info(nvml: Any, handle: Any) -> GpuInfo | None:
    gpu, mig = _whole(nvml, handle)
    # A slice does not answer for what it shares with the others.
    capability = _get(nvml, "nvmlDeviceGetCudaComputeCapability", gpu)
    if capability is None:
        return None
    major, minor = capability
    memory = _get(nvml, "nvmlDeviceGetMemoryInfo", handle)
    version = _get(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    limit_mw = _get(nvml, "nvmlDeviceGetEnforcedPowerLimit", gpu)
    return GpuInfo(
        name=_get(nvml, "nvmlDeviceGetName", handle) or "NVIDIA GPU",
        compute_capability=(int(major), int(minor)),
        uuid=_uuid(nvml, handle),
        driver_version=_get(nvml, "nvmlSystemGetDriverVersion"),
        cuda_version=f"{version // 1000}.{version % 1000 // 10}" if version else None,
        memory_bytes=None if memory is None else int(memory.total),
        multiprocessors=_multiprocessors(nvml, handle, (major, minor)),
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        max_sm_clock_mhz=_clock(nvml, "nvmlDeviceGetMaxClockInfo", gpu, "SM"),
        mig=mig,
    )


def _multiprocessors(nvml: Any, handle: Any, capability: tuple[int, int]) -> int | None:
    attributes = _get(nvml, "nvmlDeviceGetAttributes", handle)  # a slice's
    if attributes is not None and attributes.multiprocessorCount:
        return int(attributes.multiprocessorCount)
    cores = _get(nvml, "nvmlDeviceGetNumGpuCores", handle)
    # CUDA C++ Programming Guide, "Arithmetic Instructions": float32 lanes of a multiprocessor.
    lanes = 64 if capability <= (8, 0) else 128
    return None if not cores else int(cores) // lanes


def _clock(nvml: Any, function: str, handle: Any, kind: str) -> int | None:
    value: int | None = _get(nvml, function, handle, getattr(nvml, f"NVML_CLOCK_{kind}", None))
    return value


def _first(calls: tuple[Callable[[], Any], ...]) -> Any:
    """What the first call that is answered returns: NVML renames its functions."""
    return next((value for call in calls if (value := call()) is not None), None)


def _state(nvml: Any, handle: Any) -> GpuState:
    gpu, _ = _whole(nvml, handle)
    sensor = getattr(nvml, "NVML_TEMPERATURE_GPU", 0)
    bits = _first(
        (
            lambda: _get(nvml, "nvmlDeviceGetCurrentClocksEventReasons", gpu),
            lambda: _get(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", gpu),
        )
    )
    temperature = _first(
        (
            lambda: _get(nvml, "nvmlDeviceGetTemperatureV", gpu, sensor),
            lambda: _get(nvml, "nvmlDeviceGetTemperature", gpu, sensor),
        )
    )
    power_mw = _get(nvml, "nvmlDeviceGetPowerUsage", gpu)
    rates = _get(nvml, "nvmlDeviceGetUtilizationRates", gpu)
    processes = _get(nvml, "nvmlDeviceGetComputeRunningProcesses", gpu)
    return GpuState(
        sm_clock_mhz=_clock(nvml, "nvmlDeviceGetClockInfo", gpu, "SM"),
        memory_clock_mhz=_clock(nvml, "nvmlDeviceGetClockInfo", gpu, "MEM"),
        temperature_c=temperature,
        power_w=None if power_mw is None else power_mw / 1000,
        reasons=None if bits is None else _words(bits),
        utilization=None if rates is None else int(rates.gpu),
        others=None if processes is None else _others([process.pid for process in processes]),
    )


def _words(bits: int) -> tuple[str, ...]:
    return tuple(word for bit, word in _REASONS.items() if bits & bit)


def _others(pids: list[int]) -> int:
    own = psutil.Process()
    mine = {own.pid, *(child.pid for child in own.children(recursive=True))}
    return len(set(pids) - mine)


def _jetson_state() -> GpuState:
    reading = jetson.read_state(jetson.ROOT)
    return GpuState(
        sm_clock_mhz=reading.clock_mhz,
        temperature_c=reading.temperature_c,
        utilization=reading.utilization,
    )
