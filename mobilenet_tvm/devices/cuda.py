"""A board's GPU: found when the server starts, made usable in each session's own process.

A CUDA context does not survive a fork, and NVIDIA's libraries start threads. So the supervisor asks
a process of its own, which ends, and only a session's child, forked by then, loads the plug-in.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from mobilenet_tvm import cuda
from mobilenet_tvm.errors import DeviceError

# Called before each launch that is timed; see ``_as_in_the_model``.
AS_IN_THE_MODEL: Final = "mobilenet_tvm.cuda.as_in_the_model"
# The same with the input flushed, too: what any TVM with CUDA has.
FLUSH: Final = "l2_cache_flush_cuda"
# Tells a session the CUDA C that an image was made from: source, then the image's SHA-256. Only
# an emulator needs it.
ADD_SOURCE: Final = "mobilenet_tvm.cuda.add_source"

# Where NVIDIA's drivers have them: for cards, for the GPU of a Jetson (two names), in WSL.
_DEVICE_FILES: Final = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu", "/dev/dxg")
# The plug-in is built first where it is not in the cache.
_LOOK_S: Final = 300.0


class ServedGpu(msgspec.Struct, frozen=True):
    """The GPU of a board: its name, compute capability, driver, and whether it is emulated."""

    name: str
    capability: tuple[int, int]
    driver: str | None = None
    emulated: bool = False


class _Found(msgspec.Struct, frozen=True):
    """What the process says that looks for it: the GPU, or why there is none."""

    gpu: ServedGpu | None = None
    why: str | None = None


def find_gpu(say: Callable[[str], None]) -> ServedGpu | None:
    """The GPU, or the emulator where the environment says so, ready for sessions to load.

    One that cannot be used is told to ``say``. Nothing of CUDA is left in this process.

    Raises:
        DeviceError: the emulator was asked for, and cannot be used.
    """
    if not cuda.emulated() and not any(Path(name).exists() for name in _DEVICE_FILES):
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mobilenet_tvm.devices.cuda"],
            capture_output=True,
            text=True,
            timeout=_LOOK_S,
        )
        found = msgspec.json.decode(done.stdout, type=_Found)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        found = _Found(why=f"looking for it failed ({type(error).__name__})")
    if found.gpu is None and found.why is not None:
        if cuda.emulated():
            raise DeviceError(f"the emulated GPU is not served: {found.why}")
        say(f"this machine's GPU is not served: {found.why}")
    return found.gpu


def _look() -> _Found:
    """In the process that looks."""
    from mobilenet_tvm.cuda import emulator, gpu, plugin

    try:
        if cuda.emulated():
            emulated = emulator.emulated_gpu()
            name = f"CUDA emulator ({emulated.arch})"
            found = ServedGpu(name, emulated.compute_capability, emulated=True)
        else:
            info = gpu.find_gpu()
            if info is None:
                return _Found(why=gpu.why_none())
            found = ServedGpu(info.name, info.compute_capability, info.driver_version)
        plugin.library(emulated=cuda.emulated())
    except cuda.CudaError as error:
        return _Found(why=str(error))
    return _Found(found)


def load() -> None:
    """In a session's child, TVM or its runtime imported: make the GPU usable."""
    import tvm

    from mobilenet_tvm.cuda import plugin, sources

    plugin.load(emulated=cuda.emulated())
    if cuda.emulated():
        from mobilenet_tvm.cuda import emulator

        emulator.register()
    tvm.register_func(ADD_SOURCE, sources.add, override=True)
    register()


def register() -> None:
    """Make ``AS_IN_THE_MODEL`` known to TVM, or to its runtime alone. Idempotent."""
    import tvm

    if tvm.get_global_func(AS_IN_THE_MODEL, allow_missing=True) is None:
        tvm.register_func(AS_IN_THE_MODEL, _as_in_the_model)


def _as_in_the_model(activation: Any, *_others: Any) -> None:
    """Flush L2, then write the kernel's input, its first argument: the layer before has just
    written it, and since the weights were used all other layers' went by."""
    import tvm

    kept = activation.copyto(activation.device)
    tvm.get_global_func(FLUSH)()
    kept.copyto(activation)


if __name__ == "__main__":
    print(msgspec.json.encode(_look()).decode())
