"""Records for one build: exact, silent, and telling which of them TVM asked for."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Record


class UnusablePlanError(DeviceError):
    """A plan cannot be built as it was meant: a record does not fit the layer it is for."""


def autotvm_records(records: Iterable[Record], used: set[str]) -> Any:
    """AutoTVM's ``ApplyHistoryBest`` for one build, that puts keys of records into ``used``.

    A record that TVM never asks for (another layout in its workload, say) changes nothing in
    the build and leaves no trace there: the layer runs untuned.

    Args:
        records: of AutoTVM, at most one for each workload.
        used: is told the key of each record when TVM asks for it.
    """
    toolchain.activate()
    from tvm import autotvm
    from tvm.autotvm.record import decode

    from mobilenet_tvm.records.tasks import workload_key

    keys = {record.key: decode(record.line, "json") for record in records}

    class Asked(autotvm.task.ApplyHistoryBest):  # type: ignore[misc]
        def _query_inside(self, target: Any, workload: Any) -> Any:
            config = super()._query_inside(target, workload)
            key = workload_key(workload)
            if config is not None and key in keys:
                used.add(key)
            return config

    return Asked(list(keys.values()))


class AnsorRecords:
    """Stands in for ``auto_scheduler.ApplyHistoryBest`` while a module is built.

    TVM's own prints a page for each workload without a record and schedules it naively: a
    convolution then takes a hundred times as long. Here that is an error. All else without a
    record (AutoTVM's layers, pooling) gets its usual schedule.

    Args:
        records: at most one for each workload.
        missed: is told what had no record, in words: one, for it ends the build.

    Attributes:
        used: keys of the records that were asked for.
    """

    def __init__(self, records: Iterable[Record], missed: list[str]) -> None:
        toolchain.activate()
        from tvm.auto_scheduler.measure_record import load_record_from_string

        self.used: set[str] = set()
        self._missed = missed
        self._states = {
            record.key: load_record_from_string(record.line)[0].state for record in records
        }
        self._outer: Any = None

    def __enter__(self) -> AnsorRecords:
        from tvm.auto_scheduler import DispatchContext

        self._outer, DispatchContext.current = DispatchContext.current, self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from tvm.auto_scheduler import DispatchContext

        DispatchContext.current = self._outer

    def query(
        self, target: Any, workload_key: str, has_complex_op: bool, dag: Any, func_name: str
    ) -> Any:
        """TVM's question for the schedule of a fused function; None leaves it to TVM.

        Raises:
            UnusablePlanError: it is a layer that only Ansor schedules well.
        """
        state = self._states.get(workload_key)
        if state is not None:
            self.used.add(workload_key)
        elif any(_needs_ansor(op) for op in dag.ops):
            self._missed.append(f"no Ansor record fits {func_name}, {workload_key}")
            raise UnusablePlanError(self._missed[-1])
        return state

    def update(self, target: Any, workload_key: str, state: Any) -> None:
        """TVM's word that a workload is another one after its weights' layout was rewritten."""
        self._states[workload_key] = state


def _needs_ansor(op: Any) -> bool:
    tag = getattr(op, "tag", "")
    return "nhwc" in tag or "dense" in tag or "matmul" in tag
