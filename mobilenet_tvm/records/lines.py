"""One line of a log, AutoTVM's or Ansor's, read as plain JSON.

TVM's own readers are no help here: ``autotvm.record.decode`` takes a millisecond a line, a
hundred times as long, and Ansor's gives the whole file up at the first damaged line. The
formats are those of ``tvm/autotvm/record.py`` (``encode``) and
``tvm/src/auto_scheduler/measure_record.cc``.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any, Literal

import msgspec

from mobilenet_tvm import toolchain
from mobilenet_tvm.records.tasks import Config, SearcherName, workload_key


@dataclass(frozen=True)
class Record:
    """One finished trial.

    Attributes:
        key: the task's key (see ``records.tasks``).
        config: index of the configuration in the task's space; of Ansor the JSON text of the
            transform steps.
        cost_s: median seconds of one call; None when the trial failed.
        error: TVM's ``MeasureErrorNo`` (the same numbers in both searchers), 0 when it succeeded.
        line: the record line as it stands in the log, without its newline.
        target: TVM's target string that it was measured for.
        searcher: whose line it is.
        in_model_s: seconds of one call where the layer stands in a model, its epilogue with it;
            None where it was not timed there. AutoTVM's lines alone have it, in a field of ours
            that TVM passes over.
        in_model_of: that model's digest. Times of different models do not compare.
    """

    key: str
    config: Config
    cost_s: float | None
    error: int
    line: str
    target: str = ""
    searcher: SearcherName = "autotvm"
    in_model_s: float | None = None
    in_model_of: str = ""


_Error = Annotated[int, msgspec.Meta(ge=0, le=8)]
# Costs in seconds, MeasureErrorNo, seconds of the whole trial, time of day.
_Result = tuple[list[float], _Error, float, float]
_Text = Annotated[str, msgspec.Meta(min_length=1)]
# The name of a knob, its kind, its value.
Knob = tuple[str, Literal["sp", "re", "an", "ot"], Any]


class _Config(msgspec.Struct, frozen=True):
    index: Annotated[int, msgspec.Meta(ge=0)]
    code_hash: str | None
    entity: list[Knob]


class _InModel(msgspec.Struct, frozen=True):
    seconds: Annotated[float, msgspec.Meta(gt=0)]
    of: _Text


class _AutoTvmLine(msgspec.Struct, frozen=True):
    # Target, template, its arguments, keyword arguments that TVM never uses.
    input: tuple[_Text, _Text, list[Any], dict[str, Any]]
    config: _Config
    result: _Result
    in_model: _InModel | None = None


_HardwareParams = tuple[int, int, int, int, int, int, int, int]
# Workload key, target, hardware, host target, layout rewrite option, names of special inputs.
_AnsorTask = tuple[_Text, _Text, _HardwareParams, str, int, list[str]]
# A step is its name and its numbers; stages are never written.
_Step = list[str | int | list[int]]
_AnsorState = tuple[Annotated[list[Any], msgspec.Meta(max_length=0)], list[_Step]]


class _AnsorLine(msgspec.Struct, frozen=True):
    i: tuple[_AnsorTask, _AnsorState]
    r: _Result
    v: str


# The record names of the steps (tvm/include/tvm/auto_scheduler/transform_step.h).
_STEPS = frozenset(
    "AN CA CHR CHW CI CR FFSP FSP FU PR RE RF SA SP".split()  # noqa: SIM905  (a table)
)

_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw])
_autotvm_of = msgspec.json.Decoder(_AutoTvmLine)
_ansor_of = msgspec.json.Decoder(_AnsorLine)


def parse_line(line: str) -> Record:
    """Read one record line of either searcher.

    Raises:
        ValueError: the line is no record: cut short, damaged, foreign, or with a time that
            is none (zero, infinite).
    """
    line = line.rstrip("\r\n")
    if "\n" in line:
        raise ValueError("a record is one line")
    try:
        if "i" in _fields_of.decode(line):
            return _read_ansor(line)
        return _read_autotvm(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read_autotvm(line: str) -> Record:
    fields = _autotvm_of.decode(line)
    target, template, arguments, _ = fields.input
    in_model = fields.in_model
    return Record(
        key=workload_key((template, *_hashable(arguments))),
        config=fields.config.index,
        cost_s=_cost_s(fields.result),
        error=fields.result[1],
        line=line,
        target=target_text(target),
        in_model_s=None if in_model is None else in_model.seconds,
        in_model_of="" if in_model is None else in_model.of,
    )


def with_in_model(record: Record, seconds: float | None, of: str = "") -> Record:
    """An AutoTVM record with the seconds that its kernel took in the model whose digest ``of`` is,
    or without any."""
    if (record.in_model_s, record.in_model_of) == (seconds, of):
        return record
    fields = json.loads(record.line)
    fields.pop("in_model", None)
    if seconds is not None:
        fields["in_model"] = {"seconds": seconds, "of": of}
    return parse_line(json.dumps(fields))


def _read_ansor(line: str) -> Record:
    fields = _ansor_of.decode(line)
    (key, target, *_), (_, steps) = fields.i
    if not all(step and step[0] in _STEPS for step in steps):
        raise ValueError("it has an unknown transform step")
    return Record(
        key=key,
        config=steps_text(steps),
        cost_s=_cost_s(fields.r),
        error=fields.r[1],
        line=line,
        # TVM wrote it the way it prints targets; reading it again would cost a second of import.
        target=target if " -keys=" in target else target_text(target),
        searcher="ansor",
    )


def steps_text(steps: Sequence[Sequence[Any]]) -> str:
    """Ansor's transform steps as the text that a ``Record.config`` is."""
    return json.dumps(steps, separators=(",", ":"))


def trial_seconds(record: Record) -> float:
    """Seconds that the whole trial took, searching included (``all_cost``)."""
    if record.searcher == "ansor":
        return _ansor_of.decode(record.line).r[2]
    return _autotvm_of.decode(record.line).result[2]


def ended_at_s(record: Record) -> float:
    """Time of day at which the trial ended, in seconds since 1970."""
    if record.searcher == "ansor":
        return _ansor_of.decode(record.line).r[3]
    return _autotvm_of.decode(record.line).result[3]


def autotvm_task(record: Record) -> tuple[str, tuple[Any, ...]]:
    """Template and arguments of an AutoTVM record, as ``autotvm.task.create`` takes them."""
    _, template, arguments, _ = _autotvm_of.decode(record.line).input
    return template, _hashable(arguments)


def autotvm_knobs(record: Record) -> list[Knob]:
    """The knobs of an AutoTVM record's configuration."""
    return _autotvm_of.decode(record.line).config.entity


def _cost_s(result: _Result) -> float | None:
    costs, error, _, _ = result
    if error:
        return None
    if not costs or not all(0 < cost < math.inf for cost in costs):
        raise ValueError(f"it took {costs} seconds")
    return median(costs)


def _hashable(values: Sequence[Any]) -> tuple[Any, ...]:
    """Lists made tuples, as TVM's workloads have them."""
    if any(isinstance(value, dict) for value in values):
        raise ValueError("no argument of a template is an object")
    return tuple(_hashable(value) if isinstance(value, list) else value for value in values)


@functools.lru_cache(maxsize=64)
def target_text(text: str) -> str:
    """A target string the way TVM prints it, and ``Record.target`` has it.

    Raises:
        ValueError: it is no target.
    """
    toolchain.activate()
    import tvm

    try:
        return str(tvm.target.Target(text))
    except Exception:  # TVM and the readers of its parts raise whatever they like
        raise ValueError(f"{text!r} is no target") from None
