"""The tuning log: TVM's own record lines, appended one by one and never damaged.

A line is what AutoTVM or Ansor writes (see ``records.lines``), so stock TVM and tvmc read the
file as it is. One file holds lines of one searcher: neither of TVM's readers takes the other's.
A line is written with one ``write``: a killed run leaves at most its last line cut short,
which the next run drops with a warning; a full disk takes the cut line back at once. Only what
the end of a run adds to some lines (``RecordLog.annotate``) has the file written anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import filelock

from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.records.files import write_together
from mobilenet_tvm.records.lines import Record, parse_line, with_in_model


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
        if not line.strip() or line.startswith("#"):  # TVM's readers pass over comments too
            continue
        try:
            records.append(parse_line(line))
        except ValueError:
            bad.append(number)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
        warn(f"{path}: line {shown}: no tuning record, left out")
    return records


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep every other writer of a log away meanwhile. Folders are made.

    Raises:
        UsageError: another one holds it, or the place cannot be written.
    """
    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(
            f"another tuning run is writing {path}: wait for it, or give this one another -o"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


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
        self._held = contextlib.ExitStack()

    def __enter__(self) -> RecordLog:
        with contextlib.ExitStack() as stack:  # lets go of the log when it cannot be read
            stack.enter_context(hold(self.path))
            try:
                self._drop_cut_line()
                if self.path.exists():
                    self.records = read_log(self.path, self._warn)
            except OSError as error:
                raise UsageError(f"cannot write {self.path}: {error.strerror}") from None
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

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
        data = record.line.encode() + b"\n"
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

    def annotate(self, in_model_s: Mapping[str, float], of: str) -> Mapping[str, Record]:
        """Add to lines of AutoTVM what their kernels took in a model. Other lines of the same
        tasks lose what an earlier final said, for those times were of another hour. The log is
        written anew, whole or not at all; what is no record in it stays as it is.

        Args:
            in_model_s: seconds by line, as ``records`` has them.
            of: the model's digest.

        Returns:
            The records that have changed, by the lines that they had before.

        Raises:
            DeviceError: the disk is full or failed; the log is as it was.
        """
        played = {(one.key, one.target) for one in self.records if one.line in in_model_s}
        changed: dict[str, Record] = {}
        for one in self.records:
            seconds = in_model_s.get(one.line)
            if (one.key, one.target) in played:
                new = with_in_model(one, seconds, of if seconds is not None else "")
                if new is not one:
                    changed[one.line] = new
        if not changed:
            return changed
        new_lines = {old.encode(): new.line.encode() for old, new in changed.items()}
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise DeviceError(f"cannot read {self.path}: {error.strerror}") from None
        lines = [new_lines.get(line.rstrip(b"\r"), line) for line in lines]
        write_together({self.path.resolve(): b"\n".join(lines)})
        self.records = [changed.get(one.line, one) for one in self.records]
        return changed


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
    return "".join(record.line + "\n" for record in records).encode()
