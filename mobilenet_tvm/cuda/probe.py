"""Can this machine compile for a GPU? Tried on a tiny kernel, for ``doctor`` and for people."""

from __future__ import annotations

from dataclasses import dataclass

from mobilenet_tvm import cuda

# The oldest preset's: every GPU that is supported runs it.
_ARCH = "sm_75"


@dataclass(frozen=True)
class Probe:
    """What compiles for a GPU here.

    Attributes:
        path: of the plug-in.
        compiler: that builds it; None where there is none any more and it was built before.
        nvrtc: version, ``12.9``.
    """

    path: str
    compiler: str | None
    nvrtc: str


def probe(*, emulated: bool = False) -> Probe:
    """Build the plug-in, or find it built, and compile an empty kernel.

    Raises:
        CudaError: something is missing, and how to get it.
    """
    from mobilenet_tvm.cuda import compilers, nvrtc, plugin

    path = plugin.library(emulated=emulated)
    nvrtc.compile_source('extern "C" __global__ void nothing() {}', _ARCH)
    compiler = compilers.find()
    return Probe(str(path), compiler.version if compiler else None, nvrtc.version())


def loaded() -> Probe:
    """``probe``, and load the plug-in into this process.

    Raises:
        CudaError: something is missing, and how to get it.
    """
    found = probe(emulated=cuda.emulated())
    cuda.activate()
    return found
