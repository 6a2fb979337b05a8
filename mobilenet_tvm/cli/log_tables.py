"""What ``logs`` shows: a table of a log's tasks, failures by kind, a model's coverage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.records import Record, Task
from mobilenet_tvm.records.merge import Log
from mobilenet_tvm.records.stats import TaskStats
from mobilenet_tvm.search.trial import count_failures

# Title, and whether its column is one of numbers.
_COLUMNS = (
    ("task", False),
    ("searcher", False),
    ("trials", True),
    ("best us", True),
    ("GFLOP/s", True),
    ("% of peak", True),
    ("failed", False),
)


def failures(records: Iterable[Record]) -> dict[str, int]:
    """Failed trials by kind."""
    return count_failures(record.error for record in records)


def failures_text(kinds: Mapping[str, int]) -> str:
    """``failed: 3 build_error, 1 run_timeout``."""
    if not kinds:
        return "none failed"
    return "failed: " + _counts(kinds)


def _counts(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def task_payload(task: TaskStats, peak_gflops: float | None, measured: bool) -> dict[str, Any]:
    """One task for ``--json``; no speed where the log's times are no latencies."""
    best_s = task.best_s if measured else None
    gflops = task.gflops if measured else None
    share = None if gflops is None or peak_gflops is None else 100 * gflops / peak_gflops
    return {
        "label": task.label,
        "searcher": task.searcher,
        "key": task.key,
        "target": task.target,
        "trials": task.trials,
        "best_us": None if best_s is None else best_s * 1e6,
        "gflops": gflops,
        "percent_of_peak": share,
        "failures": count_failures(Counter(task.failures).elements()),
    }


def show_log(log: Log, tasks: Sequence[dict[str, Any]], peak: float | None, out: Output) -> None:
    """A table of the log's tasks (``task_payload``) and a line that sums it up."""
    rows = [
        (
            task["label"],
            task["searcher"],
            str(task["trials"]),
            _number(task["best_us"], 1),
            _number(task["gflops"], 1),
            _number(task["percent_of_peak"], 0),
            _counts(task["failures"]),
        )
        for task in tasks
    ]
    _table(str(log.path), rows, out)
    about = f"{len(log.records)} trials, {len(tasks)} tasks, {failures_text(failures(log.records))}"
    if log.run is not None:
        about += f", {log.run.spent_s:.0f} s of search on {log.run.cpu}"
    if peak is not None:
        about += f", peak {peak:.0f} GFLOP/s"
    out.line(about)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(title: str, rows: Sequence[Sequence[str]], out: Output) -> None:
    """A table on a terminal; elsewhere aligned lines, of any width."""
    if out.console.is_terminal:
        table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
        for head, number in _COLUMNS:
            table.add_column(head, justify="right" if number else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        out.console.print(table)
        return
    out.line(title)
    lines = [[head for head, _ in _COLUMNS], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, _COLUMNS, strict=True)
        out.line(
            "  ".join(
                text.rjust(width) if number else text.ljust(width)
                for text, width, (_, number) in cells
            ).rstrip()
        )


def show_coverage(
    tasks: Sequence[Task], found: set[str], what: str, out: Output
) -> list[dict[str, Any]]:
    """One line a searcher with the tasks that are not ``found`` (keys); all of them as rows."""
    for searcher in sorted({task.searcher for task in tasks}):
        own = [task for task in tasks if task.searcher == searcher]
        missing = [task.label for task in own if task.key not in found]
        out.line(
            f"coverage  {searcher}: {len(own) - len(missing)} of {len(own)} tasks of the model "
            f"{what}" + (f"; not: {'; '.join(missing)}" if missing else "")
        )
    return [
        {
            "label": task.label,
            "searcher": task.searcher,
            "key": task.key,
            "covered": task.key in found,
        }
        for task in tasks
    ]
