"""ARM with NEON: channels in blocks of four throughout, sums and inputs in registers.

TVM's stock templates stay in NCHW: their vectors lie along the width (7 at the end of a
MobileNet, so most lanes idle), they pack the input anew in each convolution, and copy it into a
padded buffer first.

Why blocks of four: a vector of NEON is four floats, so one vector is one block, and any register
tile is some number of blocks by some number of pixels. Eight or sixteen would only forbid tiles
(three blocks by seven pixels need the fewest loads). And four channels of a pixel are one
load whose four lanes ``fmla`` takes one by one: no broadcast is ever an instruction. NHWC
gives that too, but a depthwise row would then stride over all channels, a cache line for each
vector, where in blocks it is contiguous.
"""

from types import MappingProxyType

from tvm.relay.op.strategy import arm_cpu as stock
from tvm.topi import x86 as topi_x86

from mobilenet_tvm.schedules.arm import ansor, depthwise, pointwise, stem
from mobilenet_tvm.schedules.arm.target import channel_block, is_arm
from mobilenet_tvm.schedules.strategy import Backend, Template

BACKEND = Backend(
    key="arm_cpu",
    stock=(
        ansor.conv2d_strategy,
        stock.conv2d_NCHWc_strategy_arm_cpu,
        stock.depthwise_conv2d_NCHWc_strategy_arm_cpu,
    ),
    matches=is_arm,
    channel_block=channel_block,
    templates=MappingProxyType(
        {
            "depthwise": Template(
                depthwise.depthwise_conv2d, depthwise.schedule_depthwise_conv2d, depthwise.TASK
            ),
            "pointwise": Template(
                pointwise.pointwise_conv2d,
                pointwise.schedule_pointwise_conv2d,
                pointwise.TASK,
                pointwise.kernel_chunks,
            ),
            "stem": Template(
                stem.stem_conv2d, stem.schedule_stem_conv2d, stem.TASK, stem.kernel_chunks
            ),
        }
    ),
    # Of TVM's three (the others: spatial_pack, Winograd) the one that computes in blocks, has a
    # default that is not one scalar at a time, and leaves a layer one task.
    ordinary=Template(topi_x86.conv2d_nchw, topi_x86.schedule_conv2d_nchw, "conv2d_nchw.x86"),
)

__all__ = ["BACKEND"]
