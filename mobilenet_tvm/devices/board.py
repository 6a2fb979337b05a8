"""What the board is and how it feels, asked on the board itself.

Linux tells most of it in ``/sys``; what a board does not tell is None.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import psutil

from mobilenet_tvm.devices.cuda import ServedGpu
from mobilenet_tvm.targets import cpu_features, cpu_name, physical_cores

# The function that a server of ours registers for its clients: ``BoardInfo`` as JSON.
FUNCTION: Final = "mobilenet_tvm.board"

_SYS: Final = Path("/sys")
# The firmware of a Raspberry Pi: bits 0 to 3 say what is wrong now (voltage, clock, heat).
_PI_THROTTLED: Final = "devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW: Final = 0xF


class BoardInfo(msgspec.Struct, frozen=True):
    """A board at one moment. Unknown fields of another version's server are passed over.

    ``machine`` is as ``platform.machine()`` says, ``features`` are Linux's and archspec's
    names. ``temperature_c`` is the hottest thermal zone. ``throttled`` says whether the clock
    is held down for heat or voltage now. ``emulated`` names the CPU that an emulator plays:
    times taken there mean nothing. ``gpu`` is the one that sessions can use.
    """

    machine: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    memory_bytes: int
    available_bytes: int
    model: str | None = None
    load_average: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    frequency_mhz: float | None = None
    emulated: str | None = None
    gpu: ServedGpu | None = None


def board_info(
    emulated: str | None = None, sys_folder: Path = _SYS, gpu: ServedGpu | None = None
) -> BoardInfo:
    """This machine as it is now. ``sys_folder`` is ``/sys``, another in tests."""
    memory = psutil.virtual_memory()
    return BoardInfo(
        machine=platform.machine(),
        cpu=f"{emulated} (emulated)" if emulated else cpu_name(),
        features=tuple(sorted(cpu_features())),
        cores=physical_cores(),
        memory_bytes=int(memory.total),
        available_bytes=int(memory.available),
        model=_text(Path("/proc/device-tree/model")),
        load_average=os.getloadavg()[0],
        temperature_c=None if emulated else _temperature(sys_folder),
        throttled=None if emulated else _throttled(sys_folder),
        frequency_mhz=None if emulated else _frequency(sys_folder),
        emulated=emulated,
        gpu=gpu,
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _numbers(sys_folder: Path, pattern: str, base: int = 10) -> Iterator[int]:
    for path in sorted(sys_folder.glob(pattern)):
        text = _text(path)
        if text is not None:
            try:
                yield int(text, base)
            except ValueError:
                continue


def _temperature(sys_folder: Path) -> float | None:
    milli = list(_numbers(sys_folder, "class/thermal/thermal_zone*/temp"))
    return max(milli) / 1000 if milli else None


def _throttled(sys_folder: Path) -> bool | None:
    told = list(_numbers(sys_folder, _PI_THROTTLED, 16))
    if told:
        return any(bits & _PI_NOW for bits in told)
    states = [
        state
        for folder in sys_folder.glob("class/thermal/cooling_device*")
        # A fan that turns holds nothing down.
        if "cpu" in (_text(folder / "type") or "").lower()
        for state in _numbers(folder, "cur_state")
    ]
    return any(states) if states else None


def _frequency(sys_folder: Path) -> float | None:
    """Of the fastest core, in MHz."""
    khz = list(_numbers(sys_folder, "devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"))
    return max(khz) / 1000 if khz else None
