"""The convolutions that Ansor schedules: computed plainly in NHWC, as it takes them on x86.

TVM's strategy for ARM knows nothing of Ansor there: it takes templates of its own, which pack and
schedule what Ansor is to schedule (tvm/relay/op/strategy/arm_cpu.py).
"""

from __future__ import annotations

from typing import Any

from tvm.auto_scheduler import is_auto_scheduler_enabled
from tvm.relay.op.strategy import arm_cpu, x86

from mobilenet_tvm.schedules.arm.target import is_arm


def conv2d_strategy(attrs: Any, inputs: Any, out_type: Any, target: Any) -> Any:
    """TVM's strategy of ``nn.conv2d`` for ``arm_cpu``; for Ansor's convolutions that of ``cpu``,
    whose computation is of any CPU."""
    if is_auto_scheduler_enabled() and attrs.data_layout == "NHWC" and is_arm(target):
        return x86.conv2d_strategy_cpu(attrs, inputs, out_type, target)
    return arm_cpu.conv2d_strategy_arm_cpu(attrs, inputs, out_type, target)
