"""CUDA C to machine code, by NVIDIA's run-time compiler: no GPU, no driver, no nvcc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mobilenet_tvm.cuda.errors import CudaError


@dataclass(frozen=True)
class Image:
    """What NVRTC made of one source.

    Attributes:
        cubin: machine code of one architecture, an ELF file.
        ptx: of the same, for the driver of a newer GPU to compile.
        log: what the compiler said.
    """

    cubin: bytes
    ptx: bytes
    log: str


def compile_source(source: str, arch: str) -> Image:
    """Compile for one architecture (``sm_80``).

    Raises:
        CudaError: the compiler is not installed, or refuses the source.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise CudaError(
            f"NVRTC is not installed ({error}): pip install 'mobilenet-tvm[cuda]'"
        ) from None

    def call(function: Any, *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CudaError(f"{function.__name__}: {status.name}")
        return results[0] if results else None

    def text(size: Any, get: Any) -> bytes:
        data = bytes(call(size, program))
        call(get, program, data)
        return data

    program = call(nvrtc.nvrtcCreateProgram, source.encode(), b"kernels.cu", 0, [], [])
    options = [f"-arch={arch}".encode(), b"-default-device"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode().strip("\0\n ")
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CudaError(f"NVRTC refuses the kernels: {log.splitlines()[0] if log else status.name}")
    cubin = text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    ptx = text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    nvrtc.nvrtcDestroyProgram(program)
    return Image(cubin, ptx, log)
