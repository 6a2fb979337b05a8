"""x86: one channel-blocked layout throughout, and templates that keep their sums in registers.

TVM's stock templates tune the channel block with the schedule, so neighbours disagree and a
``layout_transform`` stands between them; and they copy the input into a padded buffer first.
Here the block follows from the channel count alone (``layout.channel_block``), and padding is
part of the load.
"""

from types import MappingProxyType

from tvm.relay.op.strategy import x86 as stock

from mobilenet_tvm.schedules.pool import GLOBAL_POOLS, WINDOW_POOLS
from mobilenet_tvm.schedules.strategy import Backend, Template
from mobilenet_tvm.schedules.x86 import depthwise, pointwise, pool, stem
from mobilenet_tvm.schedules.x86.layout import channel_block, is_x86
from mobilenet_tvm.schedules.x86.prefetch import prefetch_weights

BACKEND = Backend(
    key="cpu",
    stock=(
        stock.conv2d_strategy_cpu,
        stock.conv2d_NCHWc_strategy_cpu,
        stock.depthwise_conv2d_NCHWc_strategy_cpu,
    ),
    matches=is_x86,
    channel_block=channel_block,
    templates=MappingProxyType(
        {
            "depthwise": Template(
                depthwise.depthwise_conv2d, depthwise.schedule_depthwise_conv2d, depthwise.TASK
            ),
            "pointwise": Template(
                pointwise.pointwise_conv2d, pointwise.schedule_pointwise_conv2d, pointwise.TASK
            ),
            "stem": Template(stem.stem_conv2d, stem.schedule_stem_conv2d, stem.TASK),
        }
    ),
    schedules=(
        (WINDOW_POOLS, stock.schedule_pool_cpu, pool.window_pool),
        (GLOBAL_POOLS, stock.schedule_adaptive_pool_cpu, pool.global_pool),
    ),
)

__all__ = ["BACKEND", "prefetch_weights"]
