"""The native plug-in: built from the installed wheel's own sources, once, and loaded."""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from mobilenet_tvm import toolchain
from mobilenet_tvm.cuda.errors import CudaError

_NATIVE = Path(__file__).parent / "native"
# NVIDIA's wheels whose headers and libraries are used, and the folder of each.
_WHEELS = {"nvidia-cuda-runtime-cu12": "cuda_runtime", "nvidia-cuda-nvcc-cu12": "cuda_nvcc"}
# Of the wheel's src/runtime.
_RUNTIME_SOURCES = (
    "cuda/cuda_device_api.cc",
    "cuda/cuda_module.cc",
    "cuda/l2_cache_flush.cc",
    "graph_executor/cuda_graph/graph_runtime_cuda_graph.cc",
)
_LINK = ("-Wl,--exclude-libs,ALL", "-lpthread", "-ldl", "-lrt")


def load(*, emulated: bool = False) -> None:
    """Load the plug-in into this process, building it first where it is not in the cache.

    A process has one of the two kinds (see ``library``) and keeps it.

    Raises:
        CudaError: it cannot be built, or is not the loaded TVM's.
    """
    path = library(emulated=emulated)
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise CudaError(f"the CUDA plug-in {path} does not load: {error}") from None


@functools.cache
def library(*, emulated: bool = False) -> Path:
    """Path of the plug-in, built where it is not in the cache (10 s).

    Args:
        emulated: the one whose device is the emulator (``native/emulated`` in place of the driver
            and NVIDIA's runtime library).
    """
    tvm = _package("tvm")
    nvidia = _package("nvidia")
    own = sorted(_NATIVE.glob("*.cc"))
    if emulated:
        own = [source for source in own if source.stem != "driver"]
        own += sorted((_NATIVE / "emulated").glob("*.cc"))
    key = hashlib.sha256()
    for name in (toolchain.TVM_PACKAGE, *_WHEELS):
        key.update(f"{name}=={importlib.metadata.version(name)}\n".encode())
    for source in (*own, *sorted(_NATIVE.rglob("*.h"))):
        key.update(source.read_bytes())
    kind = "emulated" if emulated else "plugin"
    path = toolchain.cache_dir() / "cuda" / f"{kind}-{platform.machine()}-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise CudaError("no C++ compiler to build the CUDA plug-in with: install g++, or set CXX")
    path.parent.mkdir(parents=True, exist_ok=True)
    include = [
        _NATIVE / "include",
        tvm / "include",
        tvm / "src",
        tvm / "src/runtime",
        *(tvm / "3rdparty" / part for part in ("dlpack/include", "dmlc-core/include", "picojson")),
        tvm / "3rdparty/compiler-rt",
        *(nvidia / folder / "include" for folder in _WHEELS.values()),
    ]
    flags = [
        "-std=c++17",
        "-O2",
        "-fPIC",
        "-DTVM_INDEX_DEFAULT_I64=1",
        "-DDMLC_USE_LOGGING_LIBRARY=<tvm/runtime/logging.h>",
        # libtvm exports a stub of this name, which the loader would take for ours.
        "-DCUDAModuleCreate=MobilenetTvmCudaModuleCreate",
        *(f"-I{folder}" for folder in include),
    ]
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        sources = [*own, *(tvm / "src/runtime" / source for source in _RUNTIME_SOURCES)]

        def compile_one(source: Path) -> str:
            result = folder / f"{source.stem}.o"
            _run([compiler, *flags, "-c", str(source), "-o", str(result)])
            return str(result)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        built = folder / path.name
        if not emulated:
            objects.append(str(nvidia / "cuda_runtime/lib/libcudart_static.a"))
        _run([compiler, "-shared", "-o", str(built), *objects, *_LINK])
        built.replace(path)
    return path


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise CudaError(f"{name} is not installed: pip install 'mobilenet-tvm[cuda]'")
    return Path(next(iter(found.submodule_search_locations)))


def _run(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or [str(error)]
        raise CudaError(f"building the CUDA plug-in failed: {lines[0]}") from None
