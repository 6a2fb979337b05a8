"""Would the installed TVM still use a record? Tried in a child process, for TVM may abort.

The functions at the end run in that child; the templates and workloads that it has made known
to TVM stay from one call to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import last_line
from mobilenet_tvm.records.lines import Record, autotvm_task
from mobilenet_tvm.records.nearest import why_misfit
from mobilenet_tvm.records.workloads import register_workloads

# A replay takes milliseconds; the first one imports TVM and reads the workloads.
_TIMEOUT_S = 60.0
_LONGEST = 300  # characters of a reason


@dataclass(frozen=True)
class Replayed:
    """A successful record, and why TVM would not use it; ``why`` is empty where it would."""

    record: Record
    why: str

    def __bool__(self) -> bool:
        return not self.why


def replay_records(
    records: Iterable[Record], *, logs: Iterable[Path], target: str | None = None
) -> Generator[Replayed, None, None]:
    """Replay the successful records, in order.

    An AutoTVM record is hit when its template is known and the space made anew has the very
    same knobs at its index; an Ansor record when its computation is known, has the same key
    still, and takes the transform steps.

    Args:
        records: of either searcher; failed ones are passed over, for they are never used.
        logs: whose workloads files say what Ansor's keys stand for.
        target: TVM's target string that the records are wanted for; None takes each one's own.
    """
    sidecars = tuple(map(str, logs))
    worker = toolchain.Worker()
    try:
        for record in records:
            if record.cost_s is None:
                continue
            if target is not None and record.target != target:
                yield Replayed(record, f"it was measured for {record.target!r}, not {target!r}")
            else:
                yield Replayed(record, _ask(worker, record, sidecars))
    finally:
        worker.close()


def _ask(worker: toolchain.Worker, record: Record, sidecars: tuple[str, ...]) -> str:
    try:
        return str(worker.call(_replay, record, sidecars, timeout_s=_TIMEOUT_S))
    except TimeoutError:
        return f"replaying it took more than {_TIMEOUT_S:.0f} s"
    except ChildProcessError:
        return "replaying it crashes TVM"
    except Exception as error:  # whatever TVM raised in the child
        return last_line(error)[:_LONGEST]


def count_flops(records: Iterable[Record], *, logs: Iterable[Path]) -> dict[str, float]:
    """Floating-point operations of one call of each record's task, by key.

    Tasks that the installed TVM does not know are left out.
    """
    sidecars = tuple(map(str, logs))
    found: dict[str, float] = {}
    asked: set[str] = set()
    worker = toolchain.Worker()
    try:
        for record in records:
            if record.key in asked:
                continue
            asked.add(record.key)
            try:
                flops = worker.call(_flops, record, sidecars, timeout_s=_TIMEOUT_S)
            except Exception:  # a time-out, a crash, whatever TVM raised: there is no figure
                continue
            if flops > 0:  # Ansor says -1 where it cannot count
                found[record.key] = flops
    finally:
        worker.close()
    return found


def _replay(record: Record, sidecars: tuple[str, ...]) -> str:
    """Child side: why the record would not be hit, or nothing."""
    if record.searcher == "ansor":
        return _replay_ansor(record, sidecars)
    return _replay_autotvm(record)


def _flops(record: Record, sidecars: tuple[str, ...]) -> float:
    """Child side: floating-point operations of one call."""
    if record.searcher == "ansor":
        return float(_ansor_dag(record.key, sidecars).flop_ct)
    return float(_autotvm_handle(*autotvm_task(record), record.target).flop)


def _replay_autotvm(record: Record) -> str:
    template, arguments = autotvm_task(record)
    if template not in _templates():
        return f"no template {template} is registered"
    try:
        space = _autotvm_handle(template, arguments, record.target).config_space
    except Exception as error:
        return f"{template} does not take its arguments: {last_line(error)[:_LONGEST]}"
    return why_misfit(space, record)


def _replay_ansor(record: Record, sidecars: tuple[str, ...]) -> str:
    from tvm.auto_scheduler.measure import recover_measure_input
    from tvm.auto_scheduler.measure_record import load_record_from_string

    try:
        dag = _ansor_dag(record.key, sidecars)
    except KeyError:
        return (
            "its computation is unknown: keep the .workloads.json.gz beside the log, or name "
            "the model that it is of"
        )
    if dag.workload_key() != record.key:
        return f"its computation has another key by now: {dag.workload_key()}"
    given, _ = load_record_from_string(record.line)
    state = recover_measure_input(given, rebuild_state=True).state
    dag.apply_steps_from_state(state)
    return ""


@functools.cache
def _templates() -> Any:
    import tvm.topi  # noqa: F401  (registers TVM's templates)
    from tvm.autotvm.task.task import TASK_TABLE

    import mobilenet_tvm.schedules  # noqa: F401  (registers ours)

    return TASK_TABLE


@functools.lru_cache(maxsize=None, typed=True)
def _autotvm_handle(template: str, arguments: tuple[Any, ...], target: str) -> Any:
    import tvm
    from tvm import autotvm

    _templates()
    return autotvm.task.create(template, arguments, tvm.target.Target(target))


@functools.cache
def _ansor_dag(key: str, sidecars: tuple[str, ...]) -> Any:
    """The computation of a key.

    Raises:
        KeyError: no sidecar has it.
    """
    from tvm.auto_scheduler import ComputeDAG
    from tvm.auto_scheduler.workload_registry import WORKLOAD_FUNC_REGISTRY

    _register(sidecars)
    if key not in WORKLOAD_FUNC_REGISTRY:
        raise KeyError(key)
    return ComputeDAG(key)


@functools.cache
def _register(sidecars: tuple[str, ...]) -> None:
    for log in sidecars:
        register_workloads(Path(log))
