"""NVIDIA GPUs: channels in blocks of four throughout, one float4 a block.

TVM's stock templates stay in NCHW and, untuned, run one thread a block. They copy the input into
a padded buffer first, or have threads along the width, seven of 32 busy at the end of a MobileNet.
In blocks of four every load and store is 16 bytes wide, whatever the width.
"""

from types import MappingProxyType

from tvm.relay.op.strategy import cuda as stock
from tvm.relay.op.strategy import generic

from mobilenet_tvm.schedules.cuda import depthwise, others, pointwise, stem
from mobilenet_tvm.schedules.cuda.target import channel_block, is_cuda
from mobilenet_tvm.schedules.pool import GLOBAL_POOLS, WINDOW_POOLS
from mobilenet_tvm.schedules.strategy import Backend, Template

BACKEND = Backend(
    key="cuda",
    stock=(
        stock.conv2d_strategy_cuda,
        # TVM has none of its own for blocked layouts on CUDA.
        generic.conv2d_NCHWc_strategy.fdefault,
        generic.depthwise_conv2d_NCHWc_strategy.fdefault,
    ),
    matches=is_cuda,
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
                pointwise.whole,
            ),
            "stem": Template(
                stem.stem_conv2d, stem.schedule_stem_conv2d, stem.TASK, pointwise.whole
            ),
        }
    ),
    schedules=(
        (others.ELEMENTWISE, stock.schedule_injective_cuda, others.elementwise),
        (WINDOW_POOLS, stock.schedule_pool_cuda, others.window_pool),
        (GLOBAL_POOLS, stock.schedule_adaptive_pool_cuda, others.global_pool),
    ),
)

__all__ = ["BACKEND"]
