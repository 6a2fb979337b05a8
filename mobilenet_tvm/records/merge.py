"""Several logs made one: all their records, or the best of each task.

Times compare only where the same kind of machine measured them. The run files say which one
it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records.choose import WRONG_OUTPUT, best_records
from mobilenet_tvm.records.files import write_together
from mobilenet_tvm.records.lines import Record, autotvm_knobs, with_in_model
from mobilenet_tvm.records.log import log_digest_text, read_log
from mobilenet_tvm.records.nearest import is_default
from mobilenet_tvm.records.runfile import RunInfo, read_run, run_bytes, run_path
from mobilenet_tvm.records.tasks import SearcherName
from mobilenet_tvm.records.workloads import read_workloads, workloads_bytes, workloads_path


@dataclass(frozen=True)
class Log:
    """A log with what stands beside it; ``run`` is None where it has no run file."""

    path: Path
    records: tuple[Record, ...]
    run: RunInfo | None


def load(path: Path, warn: Callable[[str], None]) -> Log:
    """Read a log and its run file.

    Raises:
        UsageError: it is not there, or one of the two cannot be read.
    """
    return Log(path, tuple(read_log(path, warn)), read_run(path))


def require_one_machine(logs: Sequence[Log], *, assume_same_machine: bool) -> None:
    """Refuse logs whose times do not compare: another CPU, preset, thread count or clock.

    Raises:
        UsageError: two run files differ, or a log has none and nobody vouches for it.
    """
    with_run = [(log, log.run) for log in logs if log.run is not None]
    for log, run in with_run[1:]:
        first, first_run = with_run[0]
        if _machine(run) != _machine(first_run):
            raise UsageError(
                f"{first.path} was {_machine(first_run)}, and {log.path} was {_machine(run)}: "
                "their times do not compare, keep them in two logs"
            )
    for log in logs:
        if log.run is None and log.records and not assume_same_machine:
            raise UsageError(
                f"{log.path} has no {run_path(log.path).name} beside it, so nothing says which "
                "machine measured it: pass --assume-same-machine if it was the same one"
            )


def _machine(run: RunInfo) -> str:
    threads = f"{run.threads} thread{'' if run.threads == 1 else 's'}"
    return f"{run.timing} on {run.cpu} for {run.preset} with {threads}"


def one_searcher(logs: Iterable[Log], output: Path) -> SearcherName:
    """The searcher of all records.

    Raises:
        UsageError: there is none, there are both, or ``output`` is named after the other one.
    """
    logs = list(logs)
    found = sorted({record.searcher for log in logs for record in log.records})
    if not found:
        raise UsageError(f"no record in {', '.join(str(log.path) for log in logs)}")
    if len(found) > 1:
        raise UsageError(
            "AutoTVM's and Ansor's records cannot go into one file, which TVM would not read: "
            "call once with the *.autotvm.jsonl and once with the *.ansor.jsonl"
        )
    other = {"autotvm": "ansor", "ansor": "autotvm"}[found[0]]
    if output.name.endswith(f".{other}.jsonl"):
        raise UsageError(
            f"these are {found[0]} records and {output.name} is named after {other}: "
            f"use -o {output.name.removesuffix(f'.{other}.jsonl')}.{found[0]}.jsonl"
        )
    return found[0]


def merge_records(records: Iterable[Record]) -> list[Record]:
    """One record of each configuration, in the order they first came.

    Of several the fastest stays, with what another one took in the model where it was not timed
    there itself; a failure only where there is no success, and a wrong output always, so that the
    configuration stays barred.
    """
    kept: dict[tuple[object, ...], Record] = {}
    for record in records:
        identity = (record.searcher, record.key, record.target, record.config, _knobs(record))
        known = kept.get(identity)
        if known is None:
            kept[identity] = record
        else:
            first, second = sorted((known, record), key=_rank)
            kept[identity] = _with_time_of(first, second)
    return list(kept.values())


def _knobs(record: Record) -> str:
    """What tells records of two versions of a template apart, where one index means two things."""
    return json.dumps(autotvm_knobs(record)) if record.searcher == "autotvm" else ""


def _with_time_of(record: Record, other: Record) -> Record:
    if None in (record.cost_s, other.in_model_s) or record.in_model_s is not None:
        return record
    return with_in_model(record, other.in_model_s, other.in_model_of)


def _rank(record: Record) -> tuple[int, float]:
    """What stays is the smallest."""
    if record.error == WRONG_OUTPUT:
        return (0, 0.0)
    return (2, 0.0) if record.cost_s is None else (1, record.cost_s)


def distil_records(records: Iterable[Record]) -> list[Record]:
    """The fastest successful record of each task, in the order the tasks first came."""
    return list(_best_by_target(list(records)).values())


def with_defaults(distilled: Iterable[Record], records: Iterable[Record]) -> list[Record]:
    """The distilled records, and after each that of its task's untuned default, where that was
    tried and is another one: without it nobody can tell what the fastest one gains."""
    of_interest = [one for one in records if one.error == WRONG_OUTPUT or is_default(one)]
    defaults = _best_by_target(of_interest)
    pairs = ((best, defaults.get((best.target, best.key))) for best in distilled)
    return [one for pair in pairs for one in dict.fromkeys(pair) if one is not None]


def _best_by_target(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    """The fastest successful record of each task, by target and key."""
    by_target: dict[str, list[Record]] = {}
    for record in records:
        by_target.setdefault(record.target, []).append(record)
    # What was wrong for one target is barred for all (see ``best_records``).
    wrong = [record for record in records if record.error == WRONG_OUTPUT]
    return {
        (target, key): record
        for target, of_target in by_target.items()
        for key, record in best_records([*of_target, *wrong]).items()
    }


def combine_runs(
    logs: Sequence[Log], *, trials: int, failures: dict[str, int], searcher: str
) -> RunInfo | None:
    """The run file of logs made one: the first one's, with the others' models and time."""
    runs = [log.run for log in logs if log.run is not None]
    if not runs:
        return None
    return msgspec.structs.replace(
        runs[0],
        searcher=searcher,
        model=_list(run.model for run in runs),
        model_digest=_list(run.model_digest for run in runs),
        spent_s=sum(run.spent_s for run in runs),
        trials=trials,
        failures=failures,
    )


def _list(names: Iterable[str]) -> str:
    """``a, b`` of names that may be such lists already."""
    return ", ".join(dict.fromkeys(part for name in names for part in name.split(", ")))


def write_log(
    path: Path, records: Sequence[Record], run: RunInfo | None, sources: Iterable[Path]
) -> None:
    """Write a log with its run file and its workloads, whole or not at all.

    The workloads are those that ``sources`` have of the records. The caller holds ``path``
    (``records.log.hold``).

    Raises:
        UsageError: a workloads file of a source is damaged.
        DeviceError: the disk is full or failed; what was there is kept.
    """
    keys = {record.key for record in records}
    workloads = {
        key: text
        for source in sources
        for key, text in read_workloads(source).items()
        if key in keys
    }
    files = {}
    if workloads:
        files[workloads_path(path)] = workloads_bytes(workloads)
    if run is not None:
        files[run_path(path)] = run_bytes(run)
    files[path] = log_digest_text(records)  # last: a log says at once which machine it is of
    write_together(files)
