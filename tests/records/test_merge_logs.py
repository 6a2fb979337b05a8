"""Several logs made one: nothing faster is lost, nothing of another machine comes in."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.records import Record, RunInfo, best_records, read_run
from mobilenet_tvm.records import merge as merging
from mobilenet_tvm.records.merge import Log
from mobilenet_tvm.records.workloads import read_workloads, workloads_bytes, workloads_path

RUN = RunInfo(
    format_version=1,
    preset="x86-avx512",
    target="llvm",
    cpu="one CPU",
    tvm="0.19.0",
    llvm="22.1.8",
    model="a",
    model_digest="sha256:a",
    searcher="autotvm",
    seed=0,
    threads=1,
    spent_s=10.0,
    trials=3,
    failures={},
)


def autotvm_line(config: object, knob: int, cost_s: float | None, error: int, template: str) -> str:
    fields = {
        "input": ["llvm", template, [], {}],
        "config": {"index": config, "code_hash": None, "entity": [["knob", "ot", knob]]},
        "result": [[cost_s] if cost_s else [1e9], error, 0, 0],
    }
    return json.dumps(fields)


def record(
    config: int | str = 0,
    cost_s: float | None = 1.0,
    *,
    key: str = "k",
    error: int | None = None,
    target: str = "llvm",
    knob: int = 0,
) -> Record:
    error = error if error is not None else 0 if cost_s else 4
    searcher = "ansor" if isinstance(config, str) else "autotvm"
    line = f"{key} {config} {cost_s} {error} {target}"
    if searcher == "autotvm":
        line = autotvm_line(config, knob, cost_s, error, f"{key} of {target}")
    return Record(key, config, cost_s, error, line, target, searcher)  # type: ignore[arg-type]


def log(name: str, *records: Record, **changes: object) -> Log:
    run = None if changes.get("cpu") == "unknown" else msgspec.structs.replace(RUN, **changes)
    return Log(Path(name), records, run)


some_records = st.lists(
    st.builds(
        record,
        st.integers(0, 3),
        st.none() | st.floats(1e-7, 1e-3),
        key=st.sampled_from("kl"),
        target=st.sampled_from(["llvm", "llvm -mcpu=x"]),
    )
    | st.builds(record, st.integers(0, 3), st.none(), error=st.just(5)),
    max_size=30,
)


@given(some_records, some_records)
def test_merging_loses_nothing_that_counts(first: list[Record], second: list[Record]) -> None:
    merged = merging.merge_records([*first, *second])
    every = [*first, *second]
    assert set(merged) <= set(every)
    assert merging.merge_records([*merged, *second, *first]) == merged
    for target in ("llvm", "llvm -mcpu=x"):
        of = [r for r in every if r.target == target or r.error == 5]
        kept = [r for r in merged if r.target == target or r.error == 5]
        costs = {key: best.cost_s for key, best in best_records(of).items()}
        assert {key: best.cost_s for key, best in best_records(kept).items()} == costs
    configurations = {(r.key, r.config, r.target) for r in every}
    assert {(r.key, r.config, r.target) for r in merged} == configurations
    assert len(merged) == len(configurations)


@given(some_records)
def test_distilled_are_the_best_of_each_task_and_target(records: list[Record]) -> None:
    distilled = merging.distil_records(records)
    tasks = [(r.key, r.target) for r in distilled]
    assert len(tasks) == len(set(tasks))
    wrong = {(r.key, r.config) for r in records if r.error == 5}
    right = [r for r in records if r.cost_s is not None and (r.key, r.config) not in wrong]
    assert set(tasks) == {(r.key, r.target) for r in right}
    for best in distilled:
        same = [r.cost_s for r in right if (r.key, r.target) == (best.key, best.target)]
        assert best.cost_s == min(same)  # type: ignore[type-var]


def test_one_index_of_two_versions_of_a_template_is_two_configurations() -> None:
    old, new = record(0, 1.0, knob=1), record(0, 2.0, knob=2)
    assert merging.merge_records([old, new, record(0, 3.0, knob=2)]) == [old, new]


def test_what_once_computed_something_else_is_never_best() -> None:
    wrong = [record(1, 1e-9), record(1, None, error=5), record(2, 1.0), record(1, 1e-9)]
    for records in (wrong, wrong[::-1]):
        assert best_records(records)["k"].config == 2
    assert best_records(wrong[:2]) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpu": "another CPU"}, "one CPU.*another CPU"),
        ({"preset": "x86-avx2"}, "x86-avx512.*x86-avx2"),
        ({"threads": 2}, "1 thread.*2 threads"),
        ({"timing": "emulated"}, "measured.*emulated"),
    ],
)
def test_logs_of_other_machines_are_refused_by_name(changes: dict[str, object], words: str) -> None:
    logs = [log("first.jsonl", record()), log("second.jsonl", record(), **changes)]
    for assume in (False, True):  # nobody can vouch against a run file
        with pytest.raises(UsageError, match=f"first.jsonl .*{words}.*do not compare") as caught:
            merging.require_one_machine(logs, assume_same_machine=assume)
        assert "second.jsonl" in str(caught.value)


def test_log_without_a_run_file_needs_someone_to_vouch() -> None:
    logs = [log("first.jsonl", record()), log("bare.jsonl", record(), cpu="unknown")]
    with pytest.raises(UsageError, match=r"bare\.jsonl has no bare\.run\.json.*--assume-same"):
        merging.require_one_machine(logs, assume_same_machine=False)
    merging.require_one_machine(logs, assume_same_machine=True)
    empty = [logs[0], log("empty.jsonl", cpu="unknown")]
    merging.require_one_machine(empty, assume_same_machine=False)


@pytest.mark.parametrize(
    ("logs", "output", "words"),
    [
        ([log("a")], "out.jsonl", "no record in a"),
        ([log("a", record(), record("[]"))], "out.jsonl", "cannot go into one file"),
        ([log("a", record())], "out.ansor.jsonl", r"use -o out\.autotvm\.jsonl"),
        ([log("a", record("[]"))], "out.autotvm.jsonl", r"use -o out\.ansor\.jsonl"),
    ],
)
def test_one_file_holds_one_searcher(logs: list[Log], output: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        merging.one_searcher(logs, Path(output))


def test_run_files_are_added_up() -> None:
    logs = [
        log("a"),
        log("b", model="b", spent_s=5.5),
        log("c", model="b, a"),
        log("d", cpu="unknown"),
    ]
    run = merging.combine_runs(logs, trials=7, failures={"run_error": 1}, searcher="autotvm")
    assert run == msgspec.structs.replace(
        RUN, model="a, b", spent_s=25.5, trials=7, failures={"run_error": 1}
    )
    assert merging.combine_runs(logs[-1:], trials=1, failures={}, searcher="ansor") is None


def test_log_is_written_with_what_belongs_to_it(tmp_path: Path) -> None:
    source, output = tmp_path / "in.ansor.jsonl", tmp_path / "new" / "out.ansor.jsonl"
    workloads_path(source).write_bytes(workloads_bytes({"k": "dag", "unused": "other"}))
    merging.write_log(output, [record("[]")], RUN, [source, tmp_path / "bare.jsonl"])
    assert output.read_text() == record("[]").line + "\n"
    assert read_run(output) == RUN
    assert read_workloads(output) == {"k": "dag"}
    assert len(list(output.parent.iterdir())) == 3


@pytest.mark.parametrize("room", [50, 700])  # for neither file, for the run file alone
def test_full_disk_leaves_all_files_as_they_were(tmp_path: Path, room: int) -> None:
    output = tmp_path / "out.autotvm.jsonl"
    merging.write_log(output, [record()], RUN, [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    changed = msgspec.structs.replace(RUN, trials=99)
    try:
        with pytest.raises(DeviceError, match=r"cannot write .*what was there is kept"):
            merging.write_log(output, [record(i) for i in range(99)], changed, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
