"""Depthwise and pointwise schedules for MobileNet's shapes, one folder for each target.

``import mobilenet_tvm.schedules`` registers them with Relay's op strategies and layout
alteration, in plain TVM too. Where a convolution is one of ours, ours replaces TVM's; all
else stays TVM's. ``use("stock")`` switches them off, ``use("ours")`` on again.
"""

from __future__ import annotations

from mobilenet_tvm import toolchain

toolchain.activate()

from mobilenet_tvm.schedules.x86 import register, use  # noqa: E402

register()

__all__ = ["use"]
