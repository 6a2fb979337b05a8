"""What other logs tell a tuning run: those beside its own, the shipped ones, and ``--from``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilenet_tvm import tuning_logs
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records import Record, RunInfo, read_log, read_run, register_workloads
from mobilenet_tvm.records.nearest import kind_of
from mobilenet_tvm.records.runfile import Timing


@dataclass(frozen=True)
class Where:
    """What times are of: only equal ones compare."""

    cpu: str
    threads: int
    timing: Timing = "measured"


@dataclass(frozen=True)
class Known:
    """What one other log holds.

    Attributes:
        path: the log.
        records: all of them.
        run: its run file, if there is one.
        workloads: keys of Ansor's computations that this process now knows.
    """

    path: Path
    records: tuple[Record, ...]
    run: RunInfo | None
    workloads: frozenset[str]

    @property
    def measured(self) -> bool:
        """Whether its times are latencies, as far as anybody says."""
        return self.run is None or self.run.timing == "measured"

    def of(self, where: Where) -> bool:
        """Whether its times are of this CPU, with so many threads, by the same clock."""
        run = self.run
        return run is not None and Where(run.cpu, run.threads, run.timing) == where

    def lessons(self, keys: set[str], target: str, where: Where) -> list[Record]:
        """What Ansor's cost model may learn: measured times, and those of another CPU, target
        or number of threads only of tasks that this run (``keys``) does not time itself. A CPU's
        say nothing of a GPU."""
        if self.run is None or not self.measured:
            return []
        here = self.of(where)
        return [
            record
            for record in self.records
            if kind_of(record.target) == kind_of(target)
            and (record.key not in keys or (here and record.target == target))
        ]


def logs_in(path: Path) -> list[Path]:
    """The logs that ``--from`` names.

    Raises:
        UsageError: there is none.
    """
    if not path.exists():
        raise UsageError(f"--from {path}: there is no such log")
    found = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    if not found:
        raise UsageError(f"--from {path}: no *.jsonl in it, name a tuning log")
    return found


def siblings(log: Path) -> list[Path]:
    """Logs of other models, or threads, by the same searcher for the same preset."""
    suffix = "." + log.name.split(".")[-2] + ".jsonl"
    return [path for path in sorted(log.parent.glob(f"*{suffix}")) if path != log]


def shipped_logs(preset: str) -> list[Path]:
    """The logs that come with the package, those of the preset first."""
    folder = Path(tuning_logs.__path__[0])
    return sorted(folder.rglob("*.jsonl"), key=lambda path: (path.parent.name != preset, path))


def proposals(known: Iterable[Known]) -> list[Record]:
    """All records to begin with; where something was measured, emulated or estimated times of
    the same task say nothing beside it."""
    known = list(known)
    measured = [record for one in known if one.measured for record in one.records]
    timed = {(r.key, r.target) for r in measured if r.cost_s is not None}
    return measured + [
        record
        for one in known
        if not one.measured
        for record in one.records
        if (record.key, record.target) not in timed
    ]


def read_known(
    paths: Iterable[Path], warn: Callable[[str], None], *, asked_for: Sequence[Path] = ()
) -> list[Known]:
    """Read other logs, each once, with their run files and workloads.

    Raises:
        UsageError: one of ``asked_for`` cannot be used. Any other is named and left out.
    """
    found = []
    for path in dict.fromkeys((*asked_for, *paths)):
        try:
            records = tuple(read_log(path, warn))
            found.append(Known(path, records, read_run(path), frozenset(register_workloads(path))))
        except UsageError as error:
            if path in asked_for:
                raise
            warn(f"{error} (left out)")
    return found
