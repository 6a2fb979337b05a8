"""Tuning logs that are named on the command line: files, and folders of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records.merge import Log, load

_KINDS = ("*.autotvm.jsonl", "*.ansor.jsonl")


def logs_of_folder(folder: Path) -> list[Path]:
    """The logs in a folder and those in it, in order."""
    return sorted(file for kind in _KINDS for file in folder.rglob(kind))


def read_logs(paths: Sequence[Path], warn: Callable[[str], None]) -> list[Log]:
    """The logs at ``paths``, and those in the folders among them.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    found: list[Log] = []
    for path in paths:
        files = logs_of_folder(path) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"no {' or '.join(_KINDS)} in {path}: name a tuning log")
        found += [load(file, warn) for file in files]
    return found
