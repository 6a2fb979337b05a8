"""TVM's own record lines: the tasks of a model, the log, the best record of each task."""

from mobilenet_tvm.records.choose import (
    CLEARLY,
    CLEARLY_ESTIMATED,
    LAUNCH_BOUND,
    best_records,
    choose_records,
)
from mobilenet_tvm.records.lines import Record, parse_line
from mobilenet_tvm.records.log import RecordLog, read_log
from mobilenet_tvm.records.runfile import RunInfo, read_run, run_path, write_run
from mobilenet_tvm.records.tasks import Config, SearcherName, Task, extract_tasks
from mobilenet_tvm.records.workloads import register_workloads, workloads_path, write_workloads

__all__ = [
    "CLEARLY",
    "CLEARLY_ESTIMATED",
    "LAUNCH_BOUND",
    "Config",
    "Record",
    "RecordLog",
    "RunInfo",
    "SearcherName",
    "Task",
    "best_records",
    "choose_records",
    "extract_tasks",
    "parse_line",
    "read_log",
    "read_run",
    "register_workloads",
    "run_path",
    "workloads_path",
    "write_run",
    "write_workloads",
]
