"""Ansor's records are replayed in a process that never saw their model."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records import register_workloads, workloads_path, write_workloads
from mobilenet_tvm.records.workloads import read_workloads, workloads_bytes


def search_task(columns: int) -> Any:
    """A small matrix product."""
    toolchain.activate()
    import tvm
    from tvm import auto_scheduler, te

    a, b = te.placeholder((32, 64), name="a"), te.placeholder((64, columns), name="b")
    k = te.reduce_axis((0, 64), name="k")
    c = te.compute((32, columns), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    dag = auto_scheduler.ComputeDAG([a, b, c])
    key = auto_scheduler.workload_registry.register_workload_tensors(
        dag.workload_key(), dag.tensors
    )
    return auto_scheduler.SearchTask(
        workload_key=key,
        target=tvm.target.Target("llvm -mcpu=x86-64-v3"),
        hardware_params=auto_scheduler.HardwareParams(1, 32, 64, 0, 0, 0, 0, 0),
    )


def record_line(task: Any) -> str:
    from tvm import auto_scheduler
    from tvm.auto_scheduler.measure_record import dump_record_to_string

    state = task.compute_dag.get_init_state()
    product = state.stage_ops[2]
    state.split(product, state[product].iters[1], [8])
    state.vectorize(product, state[product].iters[2])
    result = auto_scheduler.MeasureResult([1e-6], 0, "", 0.1, 1.0)
    return str(dump_record_to_string(auto_scheduler.MeasureInput(task, state), result))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "tiny.ansor.jsonl"


REPLAY = """
import json, sys
from pathlib import Path
from mobilenet_tvm.records import register_workloads
keys = register_workloads(Path(sys.argv[1]))
from tvm import auto_scheduler
from tvm.auto_scheduler.measure import recover_measure_input
flops = []
for given, result in auto_scheduler.load_records(sys.argv[1]):
    whole = recover_measure_input(given, rebuild_state=True)
    schedule, arguments = whole.task.compute_dag.apply_steps_from_state(whole.state)
    flops.append([len(arguments), whole.task.compute_dag.flop_ct])
print(json.dumps([sorted(keys), flops]))
"""


def test_records_are_replayed_in_a_fresh_process(log: Path) -> None:
    tasks = [search_task(16), search_task(24)]
    log.write_text("".join(map(record_line, tasks)))
    write_workloads(log, tasks)
    ran = subprocess.run(
        [sys.executable, "-c", REPLAY, str(log)], check=True, capture_output=True, text=True
    )
    keys, flops = json.loads(ran.stdout)
    assert keys == sorted(task.workload_key for task in tasks)
    assert flops == [[3, 2 * 32 * 64 * 16], [3, 2 * 32 * 64 * 24]]


def test_without_it_the_same_process_cannot(log: Path) -> None:
    log.write_text(record_line(search_task(16)))
    ran = subprocess.run([sys.executable, "-c", REPLAY, str(log)], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "KeyError" in ran.stderr


def test_stands_beside_its_log_and_grows(log: Path) -> None:
    assert workloads_path(log) == log.with_name("tiny.ansor.workloads.json.gz")
    assert register_workloads(log) == set()
    first, second = search_task(16), search_task(24)
    write_workloads(log, [first])
    assert register_workloads(log) == {first.workload_key}
    write_workloads(log, [second])
    assert register_workloads(log) == {first.workload_key, second.workload_key}
    before = workloads_path(log).read_bytes()
    write_workloads(log, [second, first])
    assert workloads_path(log).read_bytes() == before
    assert [path.name for path in log.parent.iterdir()] == [workloads_path(log).name]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        gzip.compress(b"{}", mtime=0),
        gzip.compress(b"[" * 100_000, mtime=0),
        gzip.compress(b'{"format_version": 1, "workloads": {"k": 1}}', mtime=0),
        workloads_bytes({"k": "no JSON of TVM"}),
        workloads_bytes({"k": "{}"}),
        workloads_bytes({"k": "x"})[:-9],
        workloads_bytes({"k": "x" * 99})[:20] + b"\xff\xff" + workloads_bytes({"k": "x" * 99})[22:],
    ],
)
def test_damaged_one_is_refused_in_one_line(log: Path, data: bytes) -> None:
    workloads_path(log).write_bytes(data)
    with pytest.raises(UsageError, match=r"workloads\.json\.gz is damaged .*delete it") as caught:
        register_workloads(log)
    assert "\n" not in str(caught.value)


def test_damaged_one_is_written_anew(log: Path) -> None:
    workloads_path(log).write_bytes(b"hello")
    task = search_task(16)
    write_workloads(log, [task])
    assert set(read_workloads(log)) == {task.workload_key}


def test_later_format_and_unreadable_one_are_refused(log: Path) -> None:
    workloads_path(log).write_bytes(
        gzip.compress(b'{"format_version": 2, "workloads": {}}', mtime=0)
    )
    with pytest.raises(UsageError, match="has format 2, this version reads 1"):
        register_workloads(log)
    workloads_path(log).unlink()
    workloads_path(log).mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        register_workloads(log)
