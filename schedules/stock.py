"""Which configurations of TVM's own templates are worth trying."""

from __future__ import annotations

from typing import Any

from mobilenet_tvm.schedules.arm import target as arm
from mobilenet_tvm.schedules.x86 import layout as x86

_GROUPED = ("group_conv2d_nchw.x86", "group_conv2d_nchw.arm_cpu")


def keeps_layout(task: Any, config: Any) -> bool:
    """Whether a stock convolution's ``config`` uses the blocks that our layers use.

    A convolution that stays TVM's (several taps over many channels) may have any block; one of
    its own would cost a layout transform. Asked with the task's target current. The template is
    called x86's, and is ARM's as well.
    """
    if task.name != "conv2d_NCHWc.x86":
        return True
    channel_block = (arm if arm.is_arm(task.target) else x86).channel_block
    channels, filters = task.args[0][1][1], task.args[1][1][0]
    return (config["tile_ic"].size[-1], config["tile_oc"].size[-1]) == (
        channel_block(channels),
        channel_block(filters),
    )


def is_sound(task: Any, index: int) -> bool:
    """Whether a stock template's configuration computes the convolution at all.

    Those of grouped convolutions (topi/x86/group_conv2d.py, topi/arm_cpu/group_conv2d.py) split
    all channels where they mean a group's: with a block that does not divide those they read
    beyond their buffers, or divide by zero. An unscheduled kernel of the same configuration does
    so too, and agrees.
    """
    if task.name not in _GROUPED:
        return True
    config, groups = task.config_space.get(index), task.args[5]
    depth, filters = task.args[1][1][1], task.args[1][1][0] // groups
    blocks = config["tile_ic"].size[-1], config["tile_oc"].size[-1]
    return bool(depth % blocks[0] == 0 and filters % blocks[1] == 0)
