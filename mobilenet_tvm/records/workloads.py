"""The sidecar of an Ansor log: the computations that its keys stand for.

Ansor's lines hold only a hash of each task's compute DAG. Stock TVM finds the DAG again by
importing the same model; with ``<name>.ansor.workloads.json.gz`` beside the log its records
can be replayed, and seed a search, without that model.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import UsageError, last_line
from mobilenet_tvm.records.files import write_together

FORMAT_VERSION = 1


class _Workloads(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``workloads``: a workload key and its tensors as TVM's ``SaveJSON`` writes them."""

    format_version: int
    workloads: dict[str, str]


def workloads_path(log: Path) -> Path:
    """``dir/name.ansor.jsonl`` -> ``dir/name.ansor.workloads.json.gz``."""
    return log.with_name(log.name.removesuffix(".jsonl") + ".workloads.json.gz")


def read_workloads(log: Path) -> dict[str, str]:
    """The sidecar of a log: serialized DAGs by workload key; empty where there is none.

    Raises:
        UsageError: it is damaged, cannot be read, or is of another version.
    """
    path = workloads_path(log)
    mend = "delete it; tuning the model again writes a new one"
    try:
        found = msgspec.json.decode(gzip.decompress(path.read_bytes()), type=_Workloads)
    except FileNotFoundError:
        return {}
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}): {mend}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if found.format_version != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format {found.format_version}, this version reads {FORMAT_VERSION}: {mend}"
        )
    return found.workloads


def workloads_bytes(workloads: Mapping[str, str]) -> bytes:
    """What a sidecar with these workloads holds; equal for equal ones."""
    table = _Workloads(FORMAT_VERSION, dict(sorted(workloads.items())))
    return gzip.compress(msgspec.json.encode(table), mtime=0)


def write_workloads(log: Path, tasks: Iterable[Any]) -> None:
    """Add the computations of Ansor's tasks to the sidecar of a log, whole or not at all.

    Call it while the log is held (``RecordLog``), for two that write at once would lose one's
    additions. A damaged sidecar is written anew.

    Args:
        log: ``<name>.ansor.jsonl``, which need not exist yet.
        tasks: ``auto_scheduler.SearchTask``s of this process.

    Raises:
        DeviceError: the disk is full or failed.
    """
    toolchain.activate()
    from tvm.auto_scheduler.workload_registry import serialize_workload_registry_entry

    try:
        known = read_workloads(log)
    except UsageError:
        known = {}
    added = {}
    for task in tasks:
        name, value = serialize_workload_registry_entry(task.workload_key)
        if isinstance(value, str):  # else a Python function, which no file can hold
            added[name] = value
    if not added.keys() <= known.keys():
        write_together({workloads_path(log): workloads_bytes(known | added)})


def register_workloads(log: Path) -> set[str]:
    """Make the workloads beside a log known to TVM in this process; their keys.

    After that ``recover_measure_input`` and ``SearchTask(workload_key=...)`` work for them.

    Raises:
        UsageError: the sidecar is damaged or of another version. Nothing was registered then.
    """
    workloads = read_workloads(log)
    if not workloads:
        return set()
    toolchain.activate()
    import tvm
    from tvm.auto_scheduler.workload_registry import register_workload_tensors

    try:
        loaded = {key: tvm.ir.load_json(text) for key, text in workloads.items()}
    except Exception as error:  # TVM raises whatever its readers of parts do
        raise UsageError(
            f"{workloads_path(log)} is damaged ({last_line(error)}): delete it; tuning the "
            "model again writes a new one"
        ) from None
    for key, tensors in loaded.items():
        register_workload_tensors(key, tensors)
    return set(loaded)
