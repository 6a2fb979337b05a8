"""What pooling in blocks of channels is, for any target."""

from __future__ import annotations

from typing import Any, Final

from mobilenet_tvm.schedules.layout import shape_of

WINDOW_POOLS: Final = ("nn.avg_pool2d", "nn.max_pool2d")
GLOBAL_POOLS: Final = (
    "nn.global_avg_pool2d",
    "nn.global_max_pool2d",
    "nn.adaptive_avg_pool2d",
    "nn.adaptive_max_pool2d",
)


def block_of(outs: Any) -> int | None:
    """Channels in one block of an operator's output: one float32 tensor of static shape in a layout
    NCHW[x]c. None for anything else."""
    if len(outs) != 1 or outs[0].dtype != "float32" or len(outs[0].shape) != 5:
        return None
    try:
        return shape_of(outs[0])[-1]
    except ValueError:
        return None
