"""CUDA for the pinned TVM, whose wheel holds the code generator and has it switched off.

``activate()`` makes this process able to compile for a GPU, and to use one: it loads a small
library of ours, built once from the wheel's own sources (``plugin``), and registers TVM's
``target.build.cuda`` (``codegen``), which compiles by NVRTC (``nvrtc``). No GPU and no driver are
needed to compile.

Which device the process then has is said by the environment, which children inherit: a GPU, or,
with ``MOBILENET_TVM_CUDA=emulated``, the emulator (``emulator``).
"""

from __future__ import annotations

import functools
import os

from mobilenet_tvm import toolchain
from mobilenet_tvm.cuda.errors import CudaError

DEVICE_VARIABLE = "MOBILENET_TVM_CUDA"
EMULATED = "emulated"

__all__ = ["DEVICE_VARIABLE", "EMULATED", "CudaError", "activate", "emulated"]


def emulated() -> bool:
    """Whether this process's CUDA device is the emulator."""
    return os.environ.get(DEVICE_VARIABLE) == EMULATED


@functools.cache
def activate() -> None:
    """Make this process able to compile for CUDA and to run what was compiled.

    Raises:
        CudaError: something is missing, and how to get it.
    """
    toolchain.activate()
    from mobilenet_tvm.cuda import codegen, nvml, plugin

    nvml.number_alike()
    plugin.load(emulated=emulated())
    if emulated():
        from mobilenet_tvm.cuda import emulator

        emulator.register()
    codegen.register()
