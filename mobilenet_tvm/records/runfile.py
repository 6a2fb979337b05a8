"""The run file beside every log: what measured it, how long, and what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from mobilenet_tvm.errors import DeviceError, UsageError

FORMAT_VERSION = 1

Timing = Literal["measured", "emulated", "estimated"]


class RunInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``<model>.<searcher>.run.json``.

    ``timing`` says whether the records' times are latencies: only ``measured`` ones ever are.
    ``spent_s`` is the search time of all runs on this log together; ``failures`` counts failed
    trials by kind (``build_error``, ``build_timeout``, ``run_error``, ``run_timeout``,
    ``wrong_output``). ``notes`` are for people: how a GPU did meanwhile.
    """

    format_version: int
    preset: str
    target: str
    cpu: str
    tvm: str
    llvm: str
    model: str
    model_digest: str
    searcher: str
    seed: int
    threads: int
    spent_s: float
    trials: int
    failures: dict[str, int]
    timing: Timing = "measured"
    notes: tuple[str, ...] = ()


def run_path(log: Path) -> Path:
    """``dir/name.autotvm.jsonl`` -> ``dir/name.autotvm.run.json``."""
    return log.with_name(log.name.removesuffix(".jsonl") + ".run.json")


def read_run(log: Path) -> RunInfo | None:
    """The run file of a log, or None when it has none.

    Raises:
        UsageError: it is damaged, cannot be read, or is of another version.
    """
    path = run_path(log)
    try:
        run = msgspec.json.decode(path.read_bytes(), type=RunInfo)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # msgspec's own errors, and bytes that are no UTF-8
        raise UsageError(f"{path} is damaged ({error}): delete it, or use --fresh") from None
    if run.format_version != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format {run.format_version}, this version reads {FORMAT_VERSION}: "
            "use --fresh"
        )
    return run


def run_bytes(run: RunInfo) -> bytes:
    """What the run file holds."""
    return msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n"


def write_run(log: Path, run: RunInfo) -> None:
    """Write the run file of a log, whole or not at all.

    Raises:
        DeviceError: the disk is full or failed.
    """
    path = run_path(log)
    temporary = path.with_suffix(".json.tmp")
    try:
        temporary.write_bytes(run_bytes(run))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DeviceError(
            f"cannot write {path}: {error.strerror}; all trials in the log are kept: make room "
            "and run the same command again"
        ) from None
