"""Which GPU an artifact needs, and whether this machine has it."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Final

from mobilenet_tvm import cuda
from mobilenet_tvm.build.manifest import DeviceInfo, Manifest
from mobilenet_tvm.cuda import gpu, switch
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets import Preset, presets

Capability = tuple[int, int]

# Machine code of these runs on no other (CUDA C++ Programming Guide, "Binary Compatibility").
_INTEGRATED: Final = ((7, 2), (8, 7))
# CUDA that a driver must know (and its release): for machine code of any CUDA 12, by minor version
# compatibility; for PTX that of the compiler that wrote it (CUDA Compatibility, tables 1 and 2).
_CODE: Final = ((12, 0), "525")
_PTX: Final = ((12, 9), "575")
_EMULATED: Final = "check it here with --device emulated"


def can_run(needed: Capability, found: Capability, *, ptx: bool) -> bool:
    """Whether a GPU runs machine code of another compute capability, or PTX with it.

    Machine code runs on its own major version, of the same or a later minor one; PTX is compiled
    by the driver for whatever is newer.
    """
    if ptx and found >= needed:
        return True
    if needed in _INTEGRATED or found in _INTEGRATED:
        return found == needed
    return found[0] == needed[0] and found[1] >= needed[1]


def why_not(needed: Capability, preset: str, *, ptx: bool = True) -> str | None:
    """Why this machine cannot run kernels of a compute capability, and what to do; else None.

    ``needs an NVIDIA GPU of ...``: to follow the name of what needs it.
    """
    if cuda.emulated():
        return None
    found = gpu.find_gpu()
    if found is not None and can_run(needed, found.compute_capability, ptx=ptx):
        return _why_not_driver(needed, found)
    text = f"needs an NVIDIA GPU of compute capability {_range(needed, ptx=ptx)} (preset {preset});"
    if found is not None:
        return (
            f"{text} this machine's {found.name} has {_dotted(found.compute_capability)}: compile "
            f"it with --target cuda on this machine, or {_EMULATED}"
        )
    if not _has_driver():
        return (
            f"{text} this machine has no NVIDIA driver: run it where there is one, or {_EMULATED}"
        )
    why = (gpu.why_none() or "").removeprefix("no NVIDIA GPU: ")
    return f"{text} this machine has none ({why}): run it where there is one, or {_EMULATED}"


def _why_not_driver(needed: Capability, found: gpu.GpuInfo) -> str | None:
    """Why the driver of a GPU that fits is too old; None if it is not, or does not tell."""
    if found.cuda_version is None:
        return None
    by_ptx = not can_run(needed, found.compute_capability, ptx=False)
    least, release = _PTX if by_ptx else _CODE
    major, minor = map(int, found.cuda_version.split("."))
    if (major, minor) >= least:
        return None
    driver = f"driver {found.driver_version}" if found.driver_version else "driver"
    known = f"this machine's {driver} knows CUDA {found.cuda_version}: update it to {release}"
    needs = f"needs an NVIDIA driver that knows CUDA {_dotted(least)}"
    if not by_ptx:
        return f"{needs}; {known} or later, or {_EMULATED}"
    of_its_own = any(
        one.gpu is not None
        and can_run(one.gpu.compute_capability, found.compute_capability, ptx=False)
        for one in presets.CUDA_PRESETS
    )
    mend = ", compile it with --target cuda on this machine" if of_its_own else ""
    return (
        f"{needs} to compile its PTX for {found.name} ({_dotted(found.compute_capability)}); "
        f"{known} or later{mend}, or {_EMULATED}"
    )


def require_gpu_artifact(path: Path, manifest: Manifest, what: str) -> None:
    """Refuse an artifact of which no kernel is for a GPU, of which ``what`` was asked.

    Raises:
        UsageError: it is such a one.
    """
    if manifest.target.cuda_arch is None:
        raise UsageError(
            f"{path} is for the CPU (preset {manifest.target.preset}), and {what} is for GPUs: "
            "leave that out, or compile it with --target cuda"
        )


def emulate_for(path: Path, manifest: Manifest) -> None:
    """Make the emulator the GPU that an artifact runs on, in this process and its children.

    Raises:
        UsageError: the artifact is for no GPU.
        CudaError: this process has used a GPU already.
    """
    require_gpu_artifact(path, manifest, "--device emulated")
    assert manifest.target.cuda_arch is not None
    switch.emulate(manifest.target.cuda_arch)


def runs_here(preset: Preset) -> bool:
    """Whether this machine, the emulator included, runs what is compiled for the preset."""
    if not preset.runs_here():
        return False
    return preset.gpu is None or why_not(preset.gpu.compute_capability, preset.name) is None


def device_info(manifest: Manifest) -> DeviceInfo | None:
    """What an artifact that is loaded here runs on; None where that is the CPU."""
    arch = manifest.target.cuda_arch
    if arch is None:
        return None
    if cuda.emulated():
        return DeviceInfo("emulator", f"an emulated {arch} GPU", emulated=True)
    found = gpu.find_gpu()
    name = "an unknown GPU" if found is None else found.name
    return DeviceInfo(platform.node(), name, emulated=False)


def capability_of(arch: str) -> Capability:
    """``(8, 0)`` of ``sm_80``."""
    digits = arch.removeprefix("sm_")
    return int(digits[:-1]), int(digits[-1])


def _range(needed: Capability, *, ptx: bool) -> str:
    if ptx:
        return f"{_dotted(needed)} or later"
    return _dotted(needed) if needed in _INTEGRATED else f"{_dotted(needed)} to {needed[0]}.9"


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
