"""Load an artifact and run it with numpy arrays."""

from mobilenet_tvm.runtime.module import Module, load

__all__ = ["Module", "load"]
