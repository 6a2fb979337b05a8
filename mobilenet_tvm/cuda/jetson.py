"""A Jetson's GPU as Linux's own files tell of it, where NVML does not.

Paths are those of Jetson Linux 35 (JetPack 5) and 36 (JetPack 6) on Orin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class Board:
    """A Jetson: its name, its GPU's compute capability, and Jetson Linux's release (``36.3.0``)."""

    name: str
    compute_capability: tuple[int, int]
    release: str | None


@dataclass(frozen=True)
class Reading:
    """The GPU's clock, temperature in degrees Celsius and busy percent; None is not told."""

    clock_mhz: int | None
    temperature_c: int | None
    utilization: int | None


def read_board(root: Path = ROOT) -> Board | None:
    """The Jetson that this machine is; None if it is none, or older than any preset's."""
    name = _text(root / "proc/device-tree/model")
    # Xavier (7.2) and what came before have no preset, and no driver for CUDA 12.
    if name is None or "Orin" not in name:
        return None
    told = _text(root / "etc/nv_tegra_release") or ""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", told)
    return Board(name, (8, 7), f"{found[1]}.{found[2]}" if found else None)


def read_state(root: Path = ROOT) -> Reading:
    """How the GPU is doing."""
    clock_hz = temperature_mc = None
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if folder.name.endswith((".gpu", ".ga10b")):
            clock_hz = _number(folder / "cur_freq")
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if (_text(zone / "type") or "").lower().startswith("gpu-therm"):
            temperature_mc = _number(zone / "temp")
    loads = (_number(root / "sys/devices" / path) for path in ("gpu.0/load", "platform/gpu.0/load"))
    load = next((load for load in loads if load is not None), None)  # per mille
    return Reading(
        clock_mhz=None if clock_hz is None else round(clock_hz / 1e6),
        temperature_c=None if temperature_mc is None else round(temperature_mc / 1000),
        utilization=None if load is None else round(load / 10),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None
