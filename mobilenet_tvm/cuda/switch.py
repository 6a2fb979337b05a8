"""Which CUDA device this process and its children have: a GPU unless the emulator is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from mobilenet_tvm import cuda
from mobilenet_tvm.cuda.errors import CudaError


def emulate(arch: str) -> None:
    """Make the emulator the CUDA device of this process, and of its children, for good.

    Args:
        arch: ``sm_80``, whose limits it has from now on.

    Raises:
        CudaError: this process has used the other plug-in already, and cannot have both; or no
            such GPU is known.
    """
    from mobilenet_tvm.cuda import emulator

    activated = bool(cuda.activate.cache_info().currsize)
    if activated and not cuda.emulated():
        raise CudaError(
            "this process is set up for a GPU, and cannot have the emulator as well: start another "
            f"one, with {cuda.DEVICE_VARIABLE}={cuda.EMULATED} or --device emulated"
        )
    os.environ[cuda.DEVICE_VARIABLE] = cuda.EMULATED
    os.environ[emulator.ARCH_VARIABLE] = arch
    if activated:
        emulator.register()


@contextlib.contextmanager
def other_order() -> Iterator[None]:
    """The emulator runs the threads of a block in the other order than it does by default."""
    from mobilenet_tvm.cuda import emulator

    reverse = os.environ.get(emulator.ORDER_VARIABLE) == "reverse"
    emulator.set_order(reverse=not reverse)
    try:
        yield
    finally:
        emulator.set_order(reverse=reverse)
