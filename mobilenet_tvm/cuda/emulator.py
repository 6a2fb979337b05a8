"""The emulated CUDA device's side in Python: which GPU it is, and kernels compiled for the host.

The device itself is C++ (``native/emulated``), in the plug-in that ``MOBILENET_TVM_CUDA=emulated``
selects. It runs CUDA C: whenever TVM loads an image it asks here for that image's source, compiled
as C++. docs/emulated-cuda.md says what this checks and what it cannot.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from mobilenet_tvm import toolchain
from mobilenet_tvm.cuda import compilers, sources
from mobilenet_tvm.cuda.compilers import Compiler
from mobilenet_tvm.cuda.emulator_source import translate
from mobilenet_tvm.cuda.errors import CudaError
from mobilenet_tvm.targets.gpus import GPUS, Gpu

ARCH_VARIABLE = "MOBILENET_TVM_CUDA_ARCH"
ORDER_VARIABLE = "MOBILENET_TVM_CUDA_ORDER"  # read by native/emulated/launch.cc
DEFAULT_ARCH = "sm_80"

_HEADERS = Path(__file__).parent / "native" / "emulated"
# No contraction to FMAs: what is computed here is what the source says.
_FLAGS = (
    "-std=gnu++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-w",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-fno-math-errno",
    "-fno-asynchronous-unwind-tables",
)


def register() -> None:
    """Make the plug-in's device the GPU that the environment names. Idempotent.

    TVM and the emulated plug-in are loaded; TVM's runtime alone will do.

    Raises:
        CudaError: no such GPU is known.
    """
    import tvm

    gpu = emulated_gpu()
    tvm.register_func("mobilenet_tvm.cuda.emulated.image", _image, override=True)
    tvm.get_global_func("mobilenet_tvm.cuda.emulated.device")(gpu.arch, json.dumps(_limits(gpu)))


def emulated_gpu() -> Gpu:
    """The GPU whose limits hold: ``$MOBILENET_TVM_CUDA_ARCH``, else sm_80.

    Raises:
        CudaError: no such GPU is known.
    """
    arch = os.environ.get(ARCH_VARIABLE, DEFAULT_ARCH)
    if arch not in GPUS:
        raise CudaError(f"{ARCH_VARIABLE}={arch} is none of {', '.join(GPUS)}")
    return GPUS[arch]


def set_order(*, reverse: bool) -> None:
    """From now on run blocks, and the threads of a block, last to first, or first to last.

    A right kernel computes the same bits in both orders.
    """
    import tvm

    name = "reverse" if reverse else "forward"
    tvm.get_global_func("mobilenet_tvm.cuda.emulated.order")(name)


def _limits(gpu: Gpu) -> dict[str, int]:
    major, minor = gpu.compute_capability
    return {
        "major": major,
        "minor": minor,
        "threads_per_block": gpu.threads_per_block,
        "threads_per_multiprocessor": gpu.threads_per_multiprocessor,
        "registers_per_block": gpu.registers_per_multiprocessor,
        "shared_per_block": gpu.shared_per_block,
        "shared_per_block_optin": gpu.shared_per_multiprocessor - gpu.shared_reserved,
        "shared_per_multiprocessor": gpu.shared_per_multiprocessor,
        "multiprocessors": gpu.multiprocessors,
        "l2_bytes": gpu.l2_bytes,
        "clock_khz": round(gpu.clock_ghz * 1e6),
    }


def _image(image: bytearray) -> str:
    """What the plug-in asks: the path of the shared library that stands for an image."""
    digest = sources.digest(bytes(image))
    source = sources.find(digest)
    if source is None:
        raise CudaError(
            "the emulator runs CUDA C, and the source of this artifact's kernels is not here: "
            f"<name>.cu belongs beside the .so (image {digest[:12]})"
        )
    return str(compile_image(source))


def compile_image(source: str) -> Path:
    """Kernels compiled for the host: a shared library in the cache, built where it is not there.

    Raises:
        CudaError: the emulator cannot run this source, or the compiler refuses it.
    """
    compiler, libraries = _compiler(os.environ.get("CXX"))
    translated = translate(source)
    key = hashlib.sha256(translated.encode())
    for header in sorted(_HEADERS.glob("*.h")):
        key.update(header.read_bytes())
    parts = (compiler.command, compiler.version, libraries, _FLAGS, platform.machine())
    key.update(repr(parts).encode())
    # Its name says all of its content, so the loader never takes one for another.
    path = toolchain.cache_dir() / "cuda" / "images" / f"{key.hexdigest()[:32]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder, "kernels.cc")
        written.write_text(translated)
        built = Path(folder, path.name)
        done = compiler.run([*_FLAGS, f"-I{_HEADERS}", "-o", str(built), str(written), *libraries])
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error:" in line]
            first = (lines or done.stderr.splitlines() or [f"it ends with {done.returncode}"])[0]
            raise CudaError(f"{compiler.version} refuses the kernels for the emulator: {first}")
        built.replace(path)
    return path


@functools.cache
def _compiler(chosen: str | None) -> tuple[Compiler, tuple[str, ...]]:
    """What builds images, and what it is told of libraries; ``chosen`` is ``$CXX``, for the cache.

    An image needs C's library only, so zig will do where it cannot build the plug-in.
    """
    found = compilers.find()
    if found is not None and "ziglang" not in found.command:
        return found, ("-nodefaultlibs", "-lm", "-lc")
    command = (sys.executable, "-m", "ziglang", "c++")
    # Zig checks for undefined behaviour unless told otherwise, and brings a C++ library.
    return Compiler(command, f"zig {_zig_version()}"), ("-nostdlib++", "-fno-sanitize=undefined")


def _zig_version() -> str:
    try:
        return importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        raise CudaError(
            "no C++ compiler for the emulator's kernels: install g++ or ziglang, or set CXX"
        ) from None
