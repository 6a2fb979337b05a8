"""Which CUDA device this process and its children have: a GPU unless the emulator is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from mobilenet_tvm import cuda
from mobilenet_tvm.cuda.errors import CudaError

ARCH_VARIABLE: Final = "MOBILENET_TVM_CUDA_ARCH"
ORDER_VARIABLE: Final = "MOBILENET_TVM_CUDA_ORDER"
FORWARD: Final = "forward"
REVERSE: Final = "reverse"


def emulate(arch: str) -> None:
    """Make the emulator the CUDA device of this process, and of its children, for good.

    Args:
        arch: ``sm_80``, whose limits it has.

    Raises:
        CudaError: this process has used the other plug-in already, and cannot have both.
    """
    if not cuda.emulated() and cuda.activate.cache_info().currsize:
        raise CudaError(
            "this process is set up for a GPU, and cannot have the emulator as well: start another "
            f"one, with {cuda.DEVICE_VARIABLE}={cuda.EMULATED} or --device emulated"
        )
    os.environ[cuda.DEVICE_VARIABLE] = cuda.EMULATED
    os.environ[ARCH_VARIABLE] = arch


@contextlib.contextmanager
def other_order() -> Iterator[None]:
    """The emulator runs the threads of a block in the other order than it does by default."""
    before = os.environ.get(ORDER_VARIABLE)
    os.environ[ORDER_VARIABLE] = FORWARD if before == REVERSE else REVERSE
    try:
        yield
    finally:
        if before is None:
            del os.environ[ORDER_VARIABLE]
        else:
            os.environ[ORDER_VARIABLE] = before
