"""What a record of one shape says about another: how far apart two layers are, and which
configuration of one template's space is nearest to a configuration of another's.

Sizes are compared by the logarithm of their ratio, so that half as many channels are as far away
as twice as many. Of a register tile not only its sides count but its area as well: that is what
keeps the sums in registers and the FMA units busy.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.records.lines import Record, autotvm_knobs, autotvm_task
from mobilenet_tvm.records.tasks import Task, default_config, knob_values

# The knobs of our templates whose product is the register tile, in vectors.
_TILE = ("chunks", "rows", "columns")


def kind_of(target: str) -> str:
    """``llvm`` or ``cuda``, of a TVM target string."""
    return target.partition(" ")[0]


def nearest_records(task: Task, records: Iterable[Record]) -> list[tuple[float, Record]]:
    """The records of the task's template for other shapes with how far away they are, the
    nearest first. AutoTVM's only; the task's own records are none of them."""
    name, arguments = task.handle.name, task.handle.args
    near = []
    for record in records:
        if record.searcher != "autotvm" or record.key == task.key:
            continue
        template, others = autotvm_task(record)
        if template == name:
            distance = shape_distance(arguments, others)
            if distance < math.inf:
                near.append((distance, record.key, record))
    near.sort(key=lambda entry: entry[:2])
    return [(distance, record) for distance, _, record in near]


def nearest_config(task: Task, record: Record) -> tuple[float, int] | None:
    """How far away the candidate whose knobs are nearest to the record's is, and its index;
    None where the record is of another version of the template, or its knobs of other forms."""
    space = task.handle.config_space
    wanted = record_knobs(record)
    if not task.candidates or wanted.keys() != space.space_map.keys():
        return None
    ours = _candidate_knobs(space, task.candidates)
    best = min(
        (knob_distance(knobs, wanted), index)
        for index, knobs in zip(task.candidates, ours, strict=True)
    )
    return best if best[0] < math.inf else None


@functools.lru_cache(maxsize=1)  # callers ask for one task after the other, of many records each
def _candidate_knobs(space: Any, candidates: tuple[int, ...]) -> list[dict[str, Any]]:
    return [knob_values(space.get(index), space) for index in candidates]


def record_knobs(record: Record) -> dict[str, Any]:
    """The knobs of an AutoTVM record as ``records.tasks.knob_values`` has them."""
    return {
        name: tuple(value[1:]) if kind == "sp" and isinstance(value, list) else value
        for name, kind, value in autotvm_knobs(record)
    }


def fits(task: Task, record: Record) -> bool:
    """Whether a record of the task's workload is of the template as it is today.

    An older one had other knobs, or other values of them: its index stands for another
    configuration by now. A record for another target, whose space may differ, is of today where
    its knobs have the same names. Ansor's lines always fit their task.
    """
    if record.searcher != "autotvm":
        return True
    space = task.handle.config_space
    if record.target != task.target:
        return bool(record_knobs(record).keys() == space.space_map.keys())
    return not why_misfit(space, record)


def why_misfit(space: Any, record: Record) -> str:
    """Why an AutoTVM record's index does not stand for its knobs in a template's space; empty
    where it does."""
    if record.config not in range(space.range_length):
        return f"the space has {space.range_length} configurations, and no index {record.config}"
    if not space.is_index_valid(record.config):
        return f"the space leaves index {record.config} out"
    # As JSON, for a knob's value may be a tuple here and is a list there.
    known = json.dumps(space.get(record.config).to_json_dict()["entity"])
    if known != json.dumps(autotvm_knobs(record)):
        return f"index {record.config} stands for other knobs by now: {known}"
    return ""


def is_default(record: Record) -> bool:
    """Whether a record is of AutoTVM, and its configuration is what its layer runs untuned."""
    if record.searcher != "autotvm":
        return False
    return _default_knobs(*autotvm_task(record), record.target) == record_knobs(record)


@functools.lru_cache(maxsize=1024)
def _default_knobs(template: str, arguments: tuple[Any, ...], target: str) -> dict[str, Any] | None:
    """None where the template is not known any more, or has no default of its own."""
    toolchain.activate()
    import tvm
    from tvm import autotvm

    import mobilenet_tvm.schedules  # noqa: F401  (registers the templates)

    try:
        handle = autotvm.task.create(template, arguments, tvm.target.Target(target))
        index = default_config(handle)
    except Exception:  # a template of an older version fails as it likes
        return None
    space = handle.config_space
    return None if index is None else knob_values(space.get(index), space)


def knob_distance(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """How far apart two configurations with the same knobs are."""
    sides = sum(shape_distance(ours[name], theirs[name]) for name in theirs)
    return sides + abs(math.log(_tile(ours) / _tile(theirs)))


def _tile(knobs: Mapping[str, Any]) -> int:
    """Vectors in a register tile; 1 where the template has none of those knobs."""
    sides = [knobs[name] for name in _TILE if isinstance(knobs.get(name), int)]
    return max(int(math.prod(sides)), 1)


def shape_distance(ours: Any, theirs: Any) -> float:
    """How far apart two workloads are: the ratios of their sizes; infinite where one cannot
    stand for the other."""
    if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
        if len(ours) != len(theirs):
            return math.inf
        return sum(shape_distance(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, (tuple, list)) or isinstance(theirs, (tuple, list)):
        return math.inf
    return _distance(ours, theirs)


def _distance(ours: Any, theirs: Any) -> float:
    """|log ratio| of two positive numbers; else 0 if equal, 1 if not."""
    if ours == theirs:
        return 0.0
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (ours, theirs))
    if numbers and min(ours, theirs) > 0:
        return abs(math.log(ours / theirs))
    return 1.0
