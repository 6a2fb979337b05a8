"""What a profile calls a kernel, its schedule and its record."""

from __future__ import annotations

import json
import re
from typing import Any

from mobilenet_tvm.bench.roofline import axis_sizes
from mobilenet_tvm.build.manifest import LayerInfo
from mobilenet_tvm.records.lines import autotvm_knobs, parse_line
from mobilenet_tvm.runtime.walk import WalkedKernel


def label_of(kernel: WalkedKernel, info: LayerInfo) -> str:
    """``pointwise 1x1 512->512 @ 14x14``; of what is no layer ``global_avg_pool2d 96 @ 14x14``: its
    operators, and the channels and size of the largest activation that it reads."""
    # What TVM appends where a name comes twice, in the module or in the graph.
    operators = re.sub(r"(_\d+)+$", "", kernel.name.removeprefix("tvmgen_default_fused_"))
    if info.task is not None:
        return f"{info.task} + add" if operators.endswith("_add_add") else info.task
    read = max((one for one in kernel.operands if not one.weight), key=lambda one: one.size_bytes)
    sizes = axis_sizes(info.layout, read.shape)
    what = "x".join(map(str, read.shape))
    if set("CHW") <= sizes.keys():
        what = f"{sizes['C']} @ {sizes['H']}x{sizes['W']}"
    return f"{operators.removeprefix('nn_')} {what}"


def schedule_of(info: LayerInfo) -> str:
    """Whose schedule a kernel has, and whether by a record, its own or a lent one; empty of what
    none is made for."""
    if info.task is None:
        return ""
    # Manifests did not always say it.
    served = info.served or ("record" if info.records else "default")
    if info.searcher == "ansor":
        return {"record": "Ansor", "transfer": "Ansor, lent", "default": "Ansor, no record"}[served]
    how = {"record": "record", "transfer": "lent", "default": "untuned"}[served]
    if info.template is None:
        return how
    return f"{'ours' if '.mobilenet_' in info.template else 'stock'}, {how}"


def short_config(line: str) -> str:
    """The configuration of a record line, in short: AutoTVM's knobs, Ansor's number of steps."""
    record = parse_line(line)
    if record.searcher == "ansor":
        return f"{len(json.loads(str(record.config)))} steps"
    return " ".join(f"{name}={_short(kind, value)}" for name, kind, value in autotvm_knobs(record))


def _short(kind: str, value: Any) -> str:
    if kind == "sp":  # the outermost factor follows from the others
        return "x".join(map(str, value[1:]))
    return str(value).replace(" ", "")
