"""Depthwise and pointwise schedules for MobileNet's shapes, one folder for each target.

``import mobilenet_tvm.schedules`` registers them with Relay's op strategies and layout
alteration, in plain TVM too. Where a convolution is one of ours, ours replaces TVM's; all
else stays TVM's. ``use("stock")`` switches them off, ``use("ours")`` on again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobilenet_tvm import toolchain

toolchain.activate()

from mobilenet_tvm.schedules import arm, cuda, x86  # noqa: E402
from mobilenet_tvm.schedules.strategy import register, use  # noqa: E402

register(x86.BACKEND)
register(arm.BACKEND)
register(cuda.BACKEND)


def pass_config(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``config`` of a ``tvm.transform.PassContext``, with the pass that our templates want.

    Without it the kernels are right, and those of large weights a few percent slower.
    """
    given = dict(config or {})
    passes = given.get("tir.add_lower_pass", ())
    return given | {"tir.add_lower_pass": [*passes, (1, x86.prefetch_weights)]}


__all__ = ["pass_config", "use"]
