"""CUDA C to machine code, by NVIDIA's run-time compiler: no GPU, no driver, no nvcc."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mobilenet_tvm.cuda.errors import CudaError

_INSTALL = "pip install 'mobilenet-tvm[cuda]'"
# What NVRTC 13 makes no driver before 580 runs, and it knows no GPU older than 7.5.
_MAJOR = 12
# -v: ptxas says in the log what each kernel spills, which the cubin does not.
_OPTIONS = ("-default-device", "--ptxas-options=-v")
_HEADERS = {"nvidia-cuda-runtime-cu12": "cuda_runtime", "nvidia-cuda-nvcc-cu12": "cuda_nvcc"}


@dataclass(frozen=True)
class Image:
    """What NVRTC made of one source.

    Attributes:
        cubin: machine code of one architecture, an ELF file.
        ptx: of the same, for the driver of a newer GPU to compile.
        fatbin: both, from which a driver takes what suits its GPU.
        log: what the compiler said: warnings, and of each kernel what ``ptxas -v`` says.
    """

    cubin: bytes
    ptx: bytes
    fatbin: bytes
    log: str


def compile_source(source: str, arch: str) -> Image:
    """Compile for one architecture (``sm_80``).

    Raises:
        CudaError: the compiler is not installed, is not CUDA 12's, or refuses the source.
    """
    nvrtc = _bindings("nvrtc")
    version()

    def call(function: Any, *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CudaError(f"NVRTC's {function.__name__} fails: {status.name}")
        return results[0] if results else None

    def text(size: Any, get: Any) -> bytes:
        data = bytes(call(size, program))
        call(get, program, data)
        return data

    with _installed("nvidia-cuda-nvrtc-cu12"):
        program = call(nvrtc.nvrtcCreateProgram, source.encode(), b"kernels.cu", 0, [], [])
    try:
        options = [option.encode() for option in (f"-arch={arch}", *_OPTIONS, *_includes())]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode().strip("\0\n ")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CudaError(f"NVRTC refuses the kernels for {arch}: {_first(log) or status.name}")
        cubin = text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        ptx = text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Image(cubin, ptx, pack(cubin, ptx, arch), log)


def pack(cubin: bytes, ptx: bytes, arch: str) -> bytes:
    """A fatbin of machine code and PTX of one architecture.

    Raises:
        CudaError: NVIDIA's packer is not installed, or refuses them.
    """
    nvfatbin = _bindings("nvfatbin")
    number = arch.removeprefix("sm_")
    try:
        with _installed("nvidia-nvfatbin-cu12"):
            handle = nvfatbin.create(["-64", "-host=linux"], 2)
        try:
            nvfatbin.add_cubin(handle, cubin, len(cubin), number, "kernels")
            nvfatbin.add_ptx(handle, ptx, len(ptx), number, "kernels", "")
            packed = bytearray(nvfatbin.size(handle))
            nvfatbin.get(handle, packed)
        finally:
            nvfatbin.destroy(handle)
    except nvfatbin.nvFatbinError as error:
        raise CudaError(f"nvFatbin refuses the kernels for {arch}: {error}") from None
    return bytes(packed)


def version() -> str:
    """NVRTC's version, ``12.9``.

    Raises:
        CudaError: it is not installed, or not CUDA 12's.
    """
    nvrtc = _bindings("nvrtc")
    with _installed("nvidia-cuda-nvrtc-cu12"):
        _, major, minor = nvrtc.nvrtcVersion()
    if major != _MAJOR:
        raise CudaError(
            f"NVRTC is {major}.{minor}, and this package's is CUDA {_MAJOR}'s: pip install "
            "'cuda-bindings==12.9.*' 'nvidia-cuda-nvrtc-cu12==12.9.*'"
        )
    return f"{major}.{minor}"


@functools.cache
def _includes() -> tuple[str, ...]:
    """Options that name the folders of NVIDIA's headers: kernels in float16 include one."""
    folders = []
    for package, folder in _HEADERS.items():
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        folders.append(f"-I{distribution.locate_file(f'nvidia/{folder}/include')}")
    return tuple(folders)


def _bindings(name: str) -> Any:
    """A module of NVIDIA's Python bindings."""
    try:
        found = importlib.import_module("cuda.bindings").__version__
        module = importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise CudaError(f"cuda-bindings is not installed ({error}): {_INSTALL}") from None
    # Other packages (PyTorch among them) replace them by those of the newest CUDA.
    if found.partition(".")[0] != str(_MAJOR):
        raise CudaError(
            f"cuda-bindings is {found}, and this package's is CUDA {_MAJOR}'s: pip install "
            "'cuda-bindings==12.9.*'"
        )
    return module


@contextlib.contextmanager
def _installed(package: str) -> Iterator[None]:
    """The bindings look for the library at the first call, and raise several kinds of errors."""
    try:
        yield
    except CudaError:
        raise
    except (RuntimeError, OSError) as error:
        first = _first(str(error)) or type(error).__name__
        raise CudaError(
            f"{package} is not installed, or not whole ({first[:200]}): {_INSTALL}"
        ) from None


def _first(log: str) -> str:
    """The line that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "")
