"""The tuning log: TVM's own record lines, appended one by one and never damaged.

A line is what ``autotvm.record.encode`` writes, so stock TVM and tvmc read the file as it is.
A line is written with one ``write``: a killed run leaves at most its last line cut short,
which the next run drops with a warning; a full disk takes the cut line back at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType

import filelock
import msgspec

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.records.tasks import Task, workload_key

# How many times as fast as the default a configuration must be to replace it.
CLEARLY = 1.02


@dataclass(frozen=True)
class Record:
    """One finished trial.

    Attributes:
        key: the task's key (see ``records.tasks``).
        config: index of the configuration in the task's space.
        cost_s: median seconds of one call; None when the trial failed.
        error: TVM's ``MeasureErrorNo``, 0 when it succeeded.
        line: the record line as it stands in the log.
        target: TVM's target string that it was measured for.
    """

    key: str
    config: int
    cost_s: float | None
    error: int
    line: str
    target: str = ""


def parse_line(line: str) -> Record:
    """Read one AutoTVM record line.

    Raises:
        ValueError: the line is no AutoTVM record.
    """
    toolchain.activate()
    from tvm.autotvm.record import decode

    try:
        msgspec.json.decode(line)
        decoded = decode(line, "json")
        if decoded is None:
            raise ValueError("a record of an older TVM")
        given, result = decoded
        cost_s = None if result.error_no else median(float(cost) for cost in result.costs)
        record = Record(
            key=workload_key(given.task.workload),
            config=int(given.config.index),
            cost_s=cost_s,
            error=int(result.error_no),
            line=line,
            target=str(given.target),
        )
    # Whatever TVM raises where a field is missing or has another type.
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    if cost_s is not None and not cost_s > 0:
        raise ValueError(f"it took {cost_s} seconds")
    return record


def read_log(path: Path, warn: Callable[[str], None]) -> list[Record]:
    """All records of a log, oldest first. Lines that are no records are named and left out.

    Raises:
        UsageError: the file is not there or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UsageError(f"no log at {path}: make one with python -m mobilenet_tvm.tune") from None
    except OSError as error:
        raise UsageError(f"cannot read the log {path}: {error.strerror}") from None
    records, bad = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(parse_line(line))
        except ValueError:
            bad.append(number)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
        warn(f"{path}: line {shown}: no tuning record, left out")
    return records


def best_records(records: Iterable[Record]) -> dict[str, Record]:
    """The fastest successful record of each task, by the median of its repeats."""
    best: dict[str, Record] = {}
    for record in records:
        if record.cost_s is None:
            continue
        known = best.get(record.key)
        if known is None or known.cost_s is None or record.cost_s < known.cost_s:
            best[record.key] = record
    return best


def choose_records(tasks: Iterable[Task], records: Sequence[Record]) -> dict[str, Record]:
    """The record that each task is built with, by key.

    It is the fastest one measured for the task's target; but the untuned default, where that
    was measured too and nothing is clearly faster: a smaller difference than ``CLEARLY`` is
    not repeatable in the model, where caches and neighbours decide.
    """
    chosen: dict[str, Record] = {}
    for task in tasks:
        target = str(task.handle.target)
        known = [r for r in records if r.key == task.key and r.target == target]
        best = best_records(known).get(task.key)
        default = best_records(r for r in known if r.config == task.default).get(task.key)
        if best is not None and best.cost_s is not None:
            limit_s = best.cost_s * CLEARLY
            if default is not None and default.cost_s is not None and default.cost_s <= limit_s:
                best = default
            chosen[task.key] = best
    return chosen


class RecordLog:
    """A log open for appending, by one tuning run at a time.

    Use it as a context manager. ``records`` holds what was there and what was appended.

    Raises:
        UsageError: another run holds the log, or it cannot be written.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path = path
        self.records: list[Record] = []
        self._warn = warn
        self._lock = filelock.FileLock(f"{path}.lock")

    def __enter__(self) -> RecordLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UsageError(
                f"another tuning run is writing {self.path}: wait for it, or give this one "
                "another -o"
            ) from None
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror}") from None
        try:
            self._drop_cut_line()
            if self.path.exists():
                self.records = read_log(self.path, self._warn)
        except OSError as error:
            self._lock.release()
            raise UsageError(f"cannot write {self.path}: {error.strerror}") from None
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def _drop_cut_line(self) -> None:
        """Cut off a last line that a killed run left without its end."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        if not data or data.endswith(b"\n"):
            return
        keep = data.rfind(b"\n") + 1
        try:
            parse_line(data[keep:].decode())
        except (ValueError, UnicodeDecodeError):
            with self.path.open("r+b") as stream:
                stream.truncate(keep)
            self._warn(f"{self.path}: the last line was cut short by a killed run; dropped it")
        else:  # whole, only its newline is missing
            with self.path.open("ab") as stream:
                stream.write(b"\n")

    def append(self, line: str) -> Record:
        """Add one record line, whole or not at all.

        Raises:
            DeviceError: the disk is full or failed; what was there before is kept.
        """
        record = parse_line(line)
        data = line.rstrip("\n").encode() + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _write_whole(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DeviceError(
                f"cannot add to {self.path}: {error.strerror}; all earlier trials are kept: "
                "make room and run the same command again"
            ) from None
        self.records.append(record)
        return record


def _write_whole(descriptor: int, data: bytes) -> None:
    """Append ``data``, or leave the file as it was and raise ``OSError``."""
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        # What cannot be taken back is a cut line, which the next run drops.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def log_digest_text(records: Sequence[Record]) -> bytes:
    """The bytes that an artifact's ``log_digest`` is taken of: the lines used, in order."""
    return "".join(record.line.rstrip("\n") + "\n" for record in records).encode()
