"""TVM's own record lines: the tasks of a model, the log, the best record of each task."""

from mobilenet_tvm.records.log import Record, RecordLog, best_records, choose_records, read_log
from mobilenet_tvm.records.runfile import RunInfo, read_run, run_path, write_run
from mobilenet_tvm.records.tasks import Task, extract_tasks

__all__ = [
    "Record",
    "RecordLog",
    "RunInfo",
    "Task",
    "best_records",
    "choose_records",
    "extract_tasks",
    "read_log",
    "read_run",
    "run_path",
    "write_run",
]
