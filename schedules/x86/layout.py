"""The channel-blocked layout NCHW[x]c, and what the target's registers allow."""

from __future__ import annotations

from typing import Any

from tvm.target import Target
from tvm.target.x86 import get_simd_32bit_lanes

from mobilenet_tvm.schedules.layout import largest_block

# Accumulators a register tile may hold: 32 zmm (AVX-512) or 16 ymm/xmm registers, less what
# the weights and the broadcast or shifted inputs need.
_ACCUMULATORS = {16: 28, 8: 12, 4: 12}


def lanes() -> int:
    """float32 lanes of the current target's vectors: 16 (AVX-512), 8 (AVX) or 4 (SSE)."""
    return int(get_simd_32bit_lanes())


def max_accumulators() -> int:
    """Largest register tile, in vectors, that does not spill on the current target."""
    return _ACCUMULATORS[lanes()]


def channel_block(channels: int) -> int:
    """Channels in one block: the largest divisor of ``channels`` that fits a vector.

    It depends on nothing else, so the output of one layer is the input of the next as it is.
    """
    return largest_block(channels, lanes())


def is_x86(target: Target) -> bool:
    """Whether ``target`` is an x86 CPU (the host, when it names no triple)."""
    import platform

    if target.kind.name != "llvm" or "arm_cpu" in target.keys:
        return False
    triple = str(target.attrs.get("mtriple", ""))
    return (triple or platform.machine()).lower().startswith(("x86_64", "amd64", "i686"))


def keeps_layout(task: Any, config: Any) -> bool:
    """Whether a stock convolution's ``config`` uses the blocks that our layers use.

    A convolution that stays TVM's (several taps over many channels) may have any block; one of
    its own would cost a layout transform.
    """
    if task.name != "conv2d_NCHWc.x86":
        return True
    channels, filters = task.args[0][1][1], task.args[1][1][0]
    return (config["tile_ic"].size[-1], config["tile_oc"].size[-1]) == (
        channel_block(channels),
        channel_block(filters),
    )


def is_sound(task: Any, index: int) -> bool:
    """Whether a stock template's configuration computes the convolution at all.

    That of grouped convolutions (topi/x86/group_conv2d.py) splits all channels where it means a
    group's: with a block that does not divide those it reads beyond its buffers, or divides by
    zero. An unscheduled kernel of the same configuration does so too, and agrees.
    """
    if task.name != "group_conv2d_nchw.x86":
        return True
    config, groups = task.config_space.get(index), task.args[5]
    depth, filters = task.args[1][1][1], task.args[1][1][0] // groups
    blocks = config["tile_ic"].size[-1], config["tile_oc"].size[-1]
    return bool(depth % blocks[0] == 0 and filters % blocks[1] == 0)
