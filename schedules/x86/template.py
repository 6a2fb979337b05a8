"""The row tile of the depthwise and first convolutions' templates."""

from __future__ import annotations

from typing import Any

from tvm.autotvm.task.space import ConfigSpace, OtherOptionEntity

from mobilenet_tvm.schedules.layout import divisors
from mobilenet_tvm.schedules.x86.layout import max_accumulators


def define_row_tile(cfg: Any, height: int, width: int, other_knob: str) -> None:
    """Knobs ``rows`` x ``columns``, an output tile that fits the registers, and a switch.

    The untuned default is the widest single row that leaves half the registers to weights and
    inputs, with the switch on. All knobs are numbers, because AutoTVM's cost model learns from
    their values.
    """
    limit = max_accumulators()
    cfg.define_knob("rows", [rows for rows in (1, 2) if height % rows == 0])
    cfg.define_knob("columns", divisors(width, limit))
    cfg.define_knob(other_knob, [1, 0])
    if isinstance(cfg, ConfigSpace):
        cfg.multi_filter(lambda entity: entity["rows"].val * entity["columns"].val <= limit)
    if cfg.is_fallback:
        cfg["rows"] = OtherOptionEntity(1)
        cfg["columns"] = OtherOptionEntity(divisors(width, max(limit // 2, 4))[-1])
        cfg[other_knob] = OtherOptionEntity(1)
