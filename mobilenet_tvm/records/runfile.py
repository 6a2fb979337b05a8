"""The run file beside every log: what measured it, how long, and what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from mobilenet_tvm.errors import UsageError

FORMAT_VERSION = 1


class RunInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``<model>.<searcher>.run.json``.

    ``timing`` says whether the records' times are latencies: only ``measured`` ones ever are.
    ``spent_s`` is the search time of all runs on this log together; ``failures`` counts failed
    trials by kind (``build_error``, ``build_timeout``, ``run_error``, ``run_timeout``).
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
    timing: Literal["measured", "emulated", "estimated"] = "measured"


def run_path(log: Path) -> Path:
    """``dir/name.autotvm.jsonl`` -> ``dir/name.autotvm.run.json``."""
    return log.with_name(log.name.removesuffix(".jsonl") + ".run.json")


def read_run(log: Path) -> RunInfo | None:
    """The run file of a log, or None when it has none.

    Raises:
        UsageError: it is damaged.
    """
    path = run_path(log)
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunInfo)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is damaged ({error}): delete it, or use --fresh") from None


def write_run(log: Path, run: RunInfo) -> None:
    """Write the run file of a log, whole or not at all."""
    path = run_path(log)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")
    temporary.replace(path)
