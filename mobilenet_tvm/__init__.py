"""MobileNet, compiled: ONNX in, a tuned and checked ``.so`` out.

Importing this package (or any part of it) prepares the environment for the pinned TVM: see
``mobilenet_tvm.toolchain``. It does not import TVM itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mobilenet_tvm import toolchain

if TYPE_CHECKING:
    from mobilenet_tvm.runtime import Module, load

__version__ = "0.1.0"
__all__ = ["Module", "__version__", "load"]

toolchain.prepare()


def __getattr__(name: str) -> Any:
    """Load the runtime only when it is asked for: it imports TVM, which takes a second."""
    if name in ("Module", "load"):
        from mobilenet_tvm import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
