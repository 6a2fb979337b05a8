"""Which NVIDIA GPU this machine has, and how it was doing while something ran on it.

Asked of the driver's management library (NVML, by nvidia-ml-py), which makes no CUDA context: it
costs no GPU memory and works before, during and after another process's run. A Jetson's driver
has no NVML or half of one; what is missing there Linux's own files say (``jetson``).
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil

from mobilenet_tvm.cuda import jetson, nvml

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
        others: processes with a CUDA context that are neither this one nor its children, of those
            that can be seen from here: in a container not those of other ones.
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
        return bool(causes(self.reasons or ()))


_Told = TypeVar("_Told", GpuInfo, GpuState)


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
            parts.append(f"THROTTLED ({', '.join(causes(self.reasons))})")
        if self.others:
            parts.append(f"shared with {self.others} other process{'es'[: 2 * (self.others > 1)]}")
        return ", ".join(parts)


def causes(reasons: Iterable[str]) -> tuple[str, ...]:
    """Those of a state's or summary's ``reasons`` for which a GPU is said to be throttled."""
    return tuple(reason for reason in reasons if reason not in _HARMLESS)


def find_gpu(index: int = 0) -> GpuInfo | None:
    """The GPU that a CUDA program would call device ``index``; None where there is none.

    ``CUDA_VISIBLE_DEVICES`` is honoured, numbers, UUIDs and MIG slices. Its numbers are taken in
    the PCI bus's order, which this also sets as ``CUDA_DEVICE_ORDER`` unless another one is set.
    Makes no CUDA context and never raises.
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
    with _opened(index) as device:
        return _look_now(device, index)


class Watch:
    """Samples of a GPU, taken by ``watch``."""

    def __init__(self, index: int = 0, device: nvml.Device | str | None = None) -> None:
        """``device`` is NVML's, kept open for longer than this; None opens it for each sample."""
        self._index, self._device = index, device
        self._states: list[GpuState] = []

    def sample(self) -> None:
        """Look once."""
        if self._device is None:
            state = read_state(self._index)
        else:
            state = _look_now(self._device, self._index)
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
    it ran at. None takes none within. NVML stays open from the first to the last. Without a GPU
    nothing is done.
    """
    if find_gpu(index) is None:
        yield Watch(index)
        return
    with _opened(index) as device:
        yield from _sampled(Watch(index, device), period_s)


def _sampled(seen: Watch, period_s: float | None) -> Iterator[Watch]:
    seen.sample()
    stop = threading.Event()
    thread: threading.Thread | None = None
    if period_s is not None:

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
        seen.sample()


def _opened(index: int) -> contextlib.AbstractContextManager[nvml.Device | str]:
    return nvml.opened(nvml.module(), index, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _look_now(device: nvml.Device | str, index: int) -> GpuState:
    """What NVML tells, and of a Jetson's own GPU Linux where NVML does not."""
    state = GpuState() if isinstance(device, str) else _state(device)
    found, board = find_gpu(index), jetson.read_board(jetson.ROOT)
    if index != 0 or found is None or board is None:
        return state
    return state if _is_card(found, board) else _filled(state, _jetson_state())


def _look(index: int) -> GpuInfo | str:
    """The GPU, or why there is none."""
    nvml.number_alike()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return _ask(nvml.module(), index, visible, jetson.ROOT)


# A machine's GPUs do not change, and starting NVML takes a second where no process keeps the
# driver awake. What the answer depends on is in the key.
@functools.cache
def _ask(api: Any, index: int, visible: str | None, root: Path) -> GpuInfo | str:
    with nvml.opened(api, index, visible) as device:
        board = jetson.read_board(root) if index == 0 and visible not in ("", "-1") else None
        capability = None if board is None else board.compute_capability
        found = device if isinstance(device, str) else _info(device, capability)
    if board is None or (isinstance(found, GpuInfo) and _is_card(found, board)):
        return found
    told = GpuInfo(
        name=board.name,
        compute_capability=board.compute_capability,
        driver_version=board.release,
        memory_bytes=psutil.virtual_memory().total,  # the CPU's is the GPU's, too
    )
    return told if isinstance(found, str) else _filled(found, told)


def _is_card(found: GpuInfo, board: jetson.Board) -> bool:
    """Whether a GPU in a Jetson is one that was plugged in."""
    return found.compute_capability != board.compute_capability


def _filled(one: _Told, other: _Told) -> _Told:
    """``one``, and what it leaves None as ``other`` has it."""
    missing = [field.name for field in fields(one) if getattr(one, field.name) is None]
    return replace(one, **{name: getattr(other, name) for name in missing})


def _info(device: nvml.Device, known: tuple[int, int] | None) -> GpuInfo | str:
    """``known`` is the compute capability where the driver does not tell it."""
    capability = device.shared("nvmlDeviceGetCudaComputeCapability") or known
    if capability is None:
        return "its driver does not tell its compute capability"
    major, minor = capability
    memory = device.own("nvmlDeviceGetMemoryInfo")
    version = device.system("nvmlSystemGetCudaDriverVersion_v2")
    limit_mw = device.shared("nvmlDeviceGetEnforcedPowerLimit")
    return GpuInfo(
        name=device.own("nvmlDeviceGetName") or "NVIDIA GPU",
        compute_capability=(int(major), int(minor)),
        uuid=device.own("nvmlDeviceGetUUID"),
        driver_version=device.system("nvmlSystemGetDriverVersion"),
        cuda_version=f"{version // 1000}.{version % 1000 // 10}" if version else None,
        memory_bytes=None if memory is None else int(memory.total),
        multiprocessors=_multiprocessors(device, (int(major), int(minor))),
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        max_sm_clock_mhz=device.shared("nvmlDeviceGetMaxClockInfo", about="NVML_CLOCK_SM"),
        mig=device.mig,
    )


def _multiprocessors(device: nvml.Device, capability: tuple[int, int]) -> int | None:
    if device.mig:
        attributes = device.own("nvmlDeviceGetAttributes")
        return None if attributes is None else int(attributes.multiprocessorCount)
    cores = device.own("nvmlDeviceGetNumGpuCores")
    # CUDA C++ Programming Guide, "Arithmetic Instructions": float32 lanes of a multiprocessor.
    lanes = 64 if capability <= (8, 0) else 128
    return int(cores) // lanes if cores else None


def _state(device: nvml.Device) -> GpuState:
    bits = device.shared(
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",  # its name until driver 535
    )
    power_mw = device.shared("nvmlDeviceGetPowerUsage")
    rates = device.shared("nvmlDeviceGetUtilizationRates")
    processes = device.own("nvmlDeviceGetComputeRunningProcesses")
    return GpuState(
        sm_clock_mhz=device.shared("nvmlDeviceGetClockInfo", about="NVML_CLOCK_SM"),
        memory_clock_mhz=device.shared("nvmlDeviceGetClockInfo", about="NVML_CLOCK_MEM"),
        temperature_c=device.shared(
            "nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV", about="NVML_TEMPERATURE_GPU"
        ),
        power_w=None if power_mw is None else power_mw / 1000,
        reasons=None if bits is None else _words(bits),
        utilization=None if rates is None else int(rates.gpu),
        others=None if processes is None else _others(process.pid for process in processes),
    )


def _words(bits: int) -> tuple[str, ...]:
    return tuple(word for bit, word in _REASONS.items() if bits & bit)


def _others(pids: Iterable[int]) -> int:
    own = psutil.Process()
    return sum(pid != own.pid and _is_other(pid, own) for pid in set(pids))


def _is_other(pid: int, own: psutil.Process) -> bool:
    try:
        return own not in psutil.Process(pid).parents()
    # It has ended; or this is a container, where NVML tells the host's numbers, our own too.
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # another user's
        return True


def _jetson_state() -> GpuState:
    reading = jetson.read_state(jetson.ROOT)
    return GpuState(
        sm_clock_mhz=reading.clock_mhz,
        temperature_c=reading.temperature_c,
        utilization=reading.utilization,
    )


def _told(values: Iterable[_Value | None]) -> list[_Value]:
    return [value for value in values if value is not None]


def _range(low: int | None, high: int | None) -> str:
    if low is None or high is None:
        return "unknown"
    return f"{low} MHz" if low == high else f"{low}-{high} MHz"
