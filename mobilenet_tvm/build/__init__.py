"""Records + Relay -> artifact: one self-contained ``.so`` and its ``.manifest.json``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenet_tvm.build.compile import Coverage, compile_model, coverage
    from mobilenet_tvm.build.dispatch import UnusablePlanError
    from mobilenet_tvm.build.plans import Plan, make_plans, plan_tasks

_ROOMS = {
    "Coverage": "compile",
    "Plan": "plans",
    "UnusablePlanError": "dispatch",
    "compile_model": "compile",
    "coverage": "compile",
    "make_plans": "plans",
    "plan_tasks": "plans",
    "rivals": "plans",
}

__all__ = [
    "Coverage",
    "Plan",
    "UnusablePlanError",
    "compile_model",
    "coverage",
    "make_plans",
    "plan_tasks",
    "rivals",
]


def __getattr__(name: str) -> Any:
    """``build.manifest`` is read by every room; compiling must not be imported with it."""
    if name in _ROOMS:
        return getattr(importlib.import_module(f"mobilenet_tvm.build.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
