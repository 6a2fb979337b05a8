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
import re
import sys
import tempfile
from pathlib import Path

from mobilenet_tvm import toolchain
from mobilenet_tvm.cuda import compilers
from mobilenet_tvm.cuda.compilers import Compiler
from mobilenet_tvm.cuda.errors import CudaError

INSTALL = "pip install 'mobilenet-tvm[cuda]'"
# What native/codegen.cc calls of libtvm by name.
SYMBOLS = (
    "_ZN3tvm7codegen11CodeGenCUDAC1Ev",
    "_ZN3tvm7codegen11CodeGenCUDAD1Ev",
    "_ZN3tvm7codegen11CodeGenCUDA4InitEb",
    "_ZN3tvm7codegen11CodeGenCUDA6FinishB5cxx11Ev",
    "_ZN3tvm7codegen8CodeGenC15DeclareFunctionERKNS_9GlobalVarERKNS_3tir8PrimFuncE",
    "_ZN3tvm7codegen8CodeGenC11AddFunctionERKNS_9GlobalVarERKNS_3tir8PrimFuncE",
)

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
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-DTVM_INDEX_DEFAULT_I64=1",
    "-DDMLC_USE_LOGGING_LIBRARY=<tvm/runtime/logging.h>",
    # libtvm exports a stub of this name, which the loader would take for ours.
    "-DCUDAModuleCreate=MobilenetTvmCudaModuleCreate",
)
_LINK = ("-lpthread", "-ldl", "-lrt")
# Another process may be building: ten times as long as that takes on a slow machine.
_LOCK_TIMEOUT_S = 600.0

_loaded: dict[bool, Path] = {}


def load(*, emulated: bool = False) -> None:
    """Load the plug-in into this process, building it first where it is not in the cache.

    A process has one of the two kinds (see ``library``) and keeps it. TVM, or its runtime alone
    (``TVM_USE_RUNTIME_LIB=1``), is loaded already. No driver is needed.

    Raises:
        CudaError: it cannot be built, or is not the loaded TVM's.
    """
    if emulated in _loaded:
        return
    if _loaded:
        raise CudaError(
            "this process has its CUDA device already, and it is "
            f"{'a GPU' if emulated else 'the emulator'}: start another process"
        )
    path = library(emulated=emulated)
    # With the code generator or without it, the loader takes what is there: it says what is not.
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise CudaError(
            f"the CUDA plug-in does not load ({error}): is {toolchain.TVM_PACKAGE} whole? "
            f"{_reinstall()}"
        ) from None
    _loaded[emulated] = path


@functools.cache
def check_symbols() -> None:
    """Whether the loaded libtvm has the code generator that the plug-in calls.

    Raises:
        CudaError: it has not, and what is missing.
    """
    process = ctypes.CDLL(None)
    missing = [symbol for symbol in SYMBOLS if not hasattr(process, symbol)]
    if missing:
        raise CudaError(
            f"the loaded TVM lacks {missing[0]} and cannot generate CUDA: it is not the build that "
            f"the plug-in is for, or its runtime alone; {_reinstall()}"
        )


@functools.cache
def library(*, emulated: bool = False) -> Path:
    """Path of the plug-in, built where it is not in the cache (10 s).

    Args:
        emulated: the one whose device is the emulator (``native/emulated`` in place of the driver
            and NVIDIA's runtime library).

    Raises:
        CudaError: not on this system, or something is missing, and how to get it.
    """
    if sys.platform != "linux":
        raise CudaError(
            f"CUDA is for Linux, and this is {platform.system()}: do this on a Linux machine"
        )
    _check_packages()
    tvm = _package("tvm")
    key = _key(tvm, _own_sources(emulated))
    name = f"{'emulated' if emulated else 'plugin'}-{platform.machine()}-{key}"
    folder = toolchain.cache_dir() / "cuda"
    compiler = compilers.find()
    if compiler is None:
        # Built before the compiler went away, as an image for containers is made.
        for path in sorted(folder.glob(f"{name}-*.so")):
            return path
        raise CudaError(
            "no C++ compiler to build the CUDA plug-in with: install g++ (or clang++ with "
            "libstdc++), or set CXX"
        )
    described = hashlib.sha256(repr(compiler).encode()).hexdigest()
    path = folder / f"{name}-{described[:8]}.so"
    if path.exists():
        return path
    try:
        return _build_once(path, compiler, tvm, emulated=emulated)
    except OSError as error:
        raise CudaError(
            f"the CUDA plug-in cannot be kept in {folder} ({error.strerror or error}): make it "
            f"writable, or set {toolchain.CACHE_VARIABLE} to a folder that is"
        ) from None


def _build_once(path: Path, compiler: Compiler, tvm: Path, *, emulated: bool) -> Path:
    """Build it, unless another process does so meanwhile."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    try:
        with filelock.FileLock(lock, timeout=_LOCK_TIMEOUT_S):
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                    built = _build(Path(folder), compiler, tvm, emulated=emulated)
                    built.replace(path)
    except filelock.Timeout:
        raise CudaError(
            f"another process has been building the CUDA plug-in for {_LOCK_TIMEOUT_S:.0f} s: end "
            f"the one that holds {lock}"
        ) from None
    return path


def _build(folder: Path, compiler: Compiler, tvm: Path, *, emulated: bool) -> Path:
    include = [
        _NATIVE / "include",
        tvm / "include",
        tvm / "src",
        tvm / "src/runtime",
        *(tvm / "3rdparty" / part for part in ("dlpack/include", "dmlc-core/include", "picojson")),
        tvm / "3rdparty/compiler-rt",
        *(_wheel(name) / "include" for name in _WHEELS),
    ]
    flags = [*_FLAGS, *compiler.compile_flags, *(f"-I{path}" for path in include)]
    sources = [
        *_own_sources(emulated),
        *(tvm / "src/runtime" / source for source in _RUNTIME_SOURCES),
    ]

    def compile_one(source: Path) -> str:
        result = folder / f"{source.stem}.o"
        _run(compiler, [*flags, "-c", str(source), "-o", str(result)])
        return str(result)

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, sources))
    if not emulated:
        objects.append(str(_wheel("nvidia-cuda-runtime-cu12") / "lib/libcudart_static.a"))
    built = folder / "plugin.so"
    _run(compiler, ["-shared", "-o", str(built), *objects, *compiler.link_flags, *_LINK])
    return built


def _own_sources(emulated: bool) -> list[Path]:
    own = sorted(_NATIVE.glob("*.cc"))
    if emulated:
        own = [source for source in own if source.stem != "driver"]
        own += sorted((_NATIVE / "emulated").glob("*.cc"))
    return own


def _key(tvm: Path, sources: list[Path]) -> str:
    """Of all that the plug-in follows from, but for the compiler."""
    key = hashlib.sha256()
    for name in (toolchain.TVM_PACKAGE, *_WHEELS):
        key.update(f"{name}=={importlib.metadata.version(name)}\n".encode())
    for library in ("libtvm.so", "libtvm_runtime.so"):
        key.update(build_id(tvm / library).encode())
    key.update(repr((_FLAGS, _LINK, _RUNTIME_SOURCES, platform.libc_ver())).encode())
    headers = {*(_NATIVE / "include").rglob("*.h")}
    for folder in {source.parent for source in sources}:
        headers |= {*folder.glob("*.h")}
    for source in (*sources, *sorted(headers)):
        key.update(f"{source.relative_to(_NATIVE)}\n".encode())
        key.update(source.read_bytes())
    return key.hexdigest()[:16]


def build_id(path: Path) -> str:
    """What a linker called a shared library by its content; empty where it did not.

    Raises:
        CudaError: there is no such library, or it is none.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            segments = ELFFile(file).iter_segments("PT_NOTE")
            notes = [note for segment in segments for note in segment.iter_notes()]
    except (OSError, ELFError) as error:
        raise CudaError(f"{path} cannot be read ({error}): {_reinstall()}") from None
    found = (note["n_desc"] for note in notes if note["n_type"] == "NT_GNU_BUILD_ID")
    return str(next(found, ""))


def _check_packages() -> None:
    """The wheels that the plug-in is built from."""
    found = _version(toolchain.TVM_PACKAGE)
    if found != toolchain.pinned():
        raise CudaError(
            f"{toolchain.TVM_PACKAGE} is {found or 'not installed'}, and the CUDA plug-in is for "
            f"{toolchain.pinned()} alone: {_reinstall()}"
        )
    missing = [name for name in _WHEELS if _version(name) is None]
    if missing:
        raise CudaError(f"{' and '.join(missing)} not installed: {INSTALL}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _reinstall() -> str:
    return f"pip install --force-reinstall --no-deps {toolchain.TVM_PACKAGE}=={toolchain.pinned()}"


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise CudaError(f"{name} is not installed: {INSTALL}")
    return Path(next(iter(found.submodule_search_locations)))


def _wheel(name: str) -> Path:
    return Path(str(importlib.metadata.distribution(name).locate_file(f"nvidia/{_WHEELS[name]}")))


def _run(compiler: Compiler, arguments: list[str]) -> None:
    done = compiler.run(arguments)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    first = next((line for line in lines if re.search(r"\berror\b", line)), "")
    said = first or (lines[-1] if lines else f"it ends with {done.returncode}")
    raise CudaError(f"{compiler.version} cannot build the CUDA plug-in: {said}")
