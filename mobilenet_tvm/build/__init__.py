"""Records + Relay -> artifact: one self-contained ``.so`` and its ``.manifest.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenet_tvm.build.compile import Coverage, compile_model, coverage

__all__ = ["Coverage", "compile_model", "coverage"]


def __getattr__(name: str) -> Any:
    """``build.manifest`` is read by every room; compiling must not be imported with it."""
    if name in __all__:
        from mobilenet_tvm.build import compile as compiling

        return getattr(compiling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
