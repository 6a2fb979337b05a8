"""``python -m mobilenet_tvm.tune``: the main job, killed and resumed; and its bad usage."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import filelock
import msgspec
import psutil
import pytest

from mobilenet_tvm import compile as compile_verb
from mobilenet_tvm import tune
from mobilenet_tvm.build import make_plans, rivals
from mobilenet_tvm.build.manifest import read_manifest, sha256_file
from mobilenet_tvm.cli import artifact
from mobilenet_tvm.cli import search as search_module
from mobilenet_tvm.cli import transfer as transfer_module
from mobilenet_tvm.cli.frame import VerbFailedError
from mobilenet_tvm.records import (
    Config,
    Task,
    choose_records,
    extract_tasks,
    parse_line,
    read_log,
    read_run,
    run_path,
    workloads_path,
    write_run,
    write_workloads,
)
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks
from mobilenet_tvm.records.lines import trial_seconds
from mobilenet_tvm.records.workloads import read_workloads
from mobilenet_tvm.search import AnsorSearcher, AutoTvmSearcher, CostModel, Summary, Trial
from mobilenet_tvm.targets import cpu_name, resolve
from mobilenet_tvm.toolchain import TVM_VERSION

SMALL = ("--alpha", "0.25", "--resolution", "128")
TINY = ("--alpha", "0.25", "--resolution", "32")


def log_of(folder: Path, resolution: int, searcher: str = "autotvm") -> Path:
    preset = resolve("x86").name
    return folder / "tuning_logs" / preset / f"mobilenet_v1_0.25_{resolution}.{searcher}.jsonl"


# For a child's whole life; pytest's own time-out is longer.
PATIENCE_S = 500


def is_whole(line: str) -> bool:
    """Whether it is a record, and not what a kill left of one."""
    try:
        parse_line(line)
    except ValueError:
        return False
    return True


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines()


def tried(log: Path) -> Counter[tuple[str, Config]]:
    """How often each configuration of each workload stands in the log."""
    return Counter((record.key, record.config) for record in map(parse_line, lines_of(log)))


def tune_process(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mobilenet_tvm.tune", *options, "-o", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def compiles_nothing(monkeypatch):
    """What a verb does before it compiles."""

    def compile_and_check(job, best, args, out):
        return None, None, {"artifact": str(job.artifact), "records": len(best)}

    monkeypatch.setattr(artifact, "compile_and_check", compile_and_check)
    monkeypatch.setattr(tune, "play_finals", lambda job, records, args, out: records)


@pytest.fixture
def searches_nothing(monkeypatch, compiles_nothing, tmp_path):
    """A tuning run that neither searches nor compiles, and that knows no shipped logs."""
    monkeypatch.setattr(transfer_module.tuning_logs, "__path__", [str(tmp_path / "none")])
    monkeypatch.setattr(search_module, "tune_tasks", lambda tasks, **_options: Summary())
    monkeypatch.setattr(search_module.bench, "machine_noise", lambda threads: 1.0)
    monkeypatch.setattr(search_module, "measure_peak_gflops", lambda target: 100.0)
    return monkeypatch


@pytest.fixture(scope="module")
def tiny_job():
    """The tiny model, imported once."""
    parser = argparse.ArgumentParser()
    artifact.add_artifact_options(parser)
    return artifact.prepare(parser.parse_args(TINY))


@pytest.fixture
def fast(searches_nothing, tiny_job):
    """And the tiny model is at hand."""

    def prepared(args: argparse.Namespace) -> artifact.Job:
        return dataclasses.replace(
            tiny_job, folder=args.output, threads=args.threads, schedules=args.schedules
        )

    searches_nothing.setattr(artifact, "prepare", prepared)
    return searches_nothing


@dataclass(frozen=True)
class Tuned:
    """The main job, done once."""

    folder: Path
    log: Path
    payload: dict
    said: str


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    options = ("--tuner", "autotvm", "--trials", "1", "--rounds", "2", "--json", "--require-tuned")
    process = tune_process(folder, *SMALL, *options)
    output, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert output.count("\n") == 1
    return Tuned(folder, log_of(folder, 128), json.loads(output), said)


@pytest.mark.slow
class TestMainJob:
    def test_artifact_and_manifest(self, tuned):
        path = Path(tuned.payload["artifact"])
        assert path.parent == tuned.folder
        manifest = read_manifest(path)
        assert manifest.so_sha256 == sha256_file(path)
        assert manifest.target.preset == resolve("x86").name
        assert manifest.tuning.tuned == manifest.tuning.tasks > 10
        assert manifest.tuning.log_digest.startswith("sha256:")
        assert manifest.parity.passed
        assert manifest.parity.max_error <= manifest.parity.tolerance
        assert {latency.threads for latency in manifest.latency} >= {1}
        assert all(0 < x.p5_ms <= x.median_ms <= x.p95_ms for x in manifest.latency)
        assert not list(tuned.folder.rglob("*tmp*"))

    def test_log_and_run_file(self, tuned):
        counts = tried(tuned.log)
        assert set(counts.values()) == {1}
        workloads = Counter(workload for workload, _ in counts)
        assert len(workloads) == tuned.payload["tasks"]
        assert max(workloads.values()) == 1
        run = read_run(tuned.log)
        assert (run.cpu, run.tvm, run.timing) == (cpu_name(), TVM_VERSION, "measured")
        assert run.trials == len(lines_of(tuned.log))
        assert run.spent_s > 0

    def test_payload(self, tuned):
        payload = tuned.payload
        assert payload["tuned"] == payload["tasks"]
        assert payload["parity"]["passed"] is True
        assert payload["logs"] == [str(tuned.log)]
        assert payload["search"]["trials"] == len(lines_of(tuned.log))
        assert payload["search"]["resumed"] == 0
        labels = {timing["label"] for timing in payload["bench"]["timings"]}
        assert labels == {
            "tuned",
            "untuned (TVM's schedules)",
            "untuned (our schedules)",
            "ONNX Runtime",
        }

    def test_a_person_reads_one_line_a_step(self, tuned):
        tasks = tuned.payload["tasks"]
        lines = tuned.said.splitlines()
        assert sum(line.startswith("[") and " after 1 trial" in line for line in lines) == tasks
        for start in ("searched  ", "artifact  ", "parity    with onnxruntime"):
            assert sum(line.startswith(start) for line in lines) == 1, start
        assert f"{tasks} of {tasks} tasks tuned" in tuned.said
        assert "Cannot find config" not in tuned.said

    def test_the_same_command_again_repeats_nothing(self, tuned, compiles_nothing, capfd):
        before = tuned.log.read_bytes()
        options = ["--tuner", "autotvm", "--trials", "1", "--no-bench", "--json"]
        argv = [*SMALL, *options, "-o", str(tuned.folder)]
        assert tune.main(argv) == 0
        captured = capfd.readouterr()
        assert tuned.log.read_bytes() == before
        known = len(lines_of(tuned.log))
        assert f"{known} finished trials are not repeated" in captured.err
        search = json.loads(captured.out)["search"]
        assert (search["trials"], search["resumed"]) == (0, known)

    def test_compile_takes_the_log(self, tuned, capfd):
        argv = [*SMALL, "--require-tuned", "-o", str(tuned.folder), "--json"]
        assert compile_verb.main(argv) == 0
        captured = capfd.readouterr()
        payload = json.loads(captured.out)
        tasks = tuned.payload["tasks"]
        assert (payload["tuned"], payload["tasks"]) == (tasks, tasks)
        assert f"{tasks} of {tasks} tasks tuned" in captured.err
        manifest = read_manifest(Path(payload["artifact"]))
        assert manifest.parity.passed
        assert manifest.latency == ()  # nothing was measured this time


def wait_for_trials(process: subprocess.Popen[str], log: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not log.exists() or len(lines_of(log)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_interrupted_then_killed_then_finished(tmp_path):
    # Else the untuned build may be the fastest, and is kept.
    options = (*TINY, "--tuner", "autotvm", "--trials", "2", "--no-bench", "--require-tuned")
    log = log_of(tmp_path, 32)

    process = tune_process(tmp_path, *options, "--json")
    wait_for_trials(process, log, 5)
    before = lines_of(log)
    process.send_signal(signal.SIGINT)
    output, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert json.loads(output) == {"error": "interrupted", "exit_code": 130}
    kept = lines_of(log)
    assert kept[: len(before)] == before
    assert "Traceback" not in said
    assert f"{len(kept)} finished trials are kept" in said
    assert read_run(log).trials == len(kept)

    process = tune_process(tmp_path, *options)
    wait_for_trials(process, log, len(kept) + 10)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    # As if it had been killed while it wrote.
    with log.open("a") as stream:
        stream.write(lines_of(log)[0][:100])
    killed = len(lines_of(log)) - 1

    process = tune_process(tmp_path, *options, "--json")
    output, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert "the last line was cut short by a killed run" in said
    assert f"{killed} finished trials are not repeated" in said
    payload = json.loads(output)
    counts = tried(log)
    assert set(counts.values()) == {1}
    assert sum(counts.values()) == killed + payload["search"]["trials"]
    workloads = Counter(workload for workload, _ in counts)
    assert len(workloads) == payload["tasks"] == payload["tuned"]
    assert payload["parity"]["passed"] is True


LINE = (
    '{"input": ["llvm -keys=cpu", "dense_nopack.x86", [["TENSOR", [1, 256], "float32"], '
    '["TENSOR", [1000, 256], "float32"], null, "float32"], {}], "config": {"index": 3, '
    '"code_hash": null, "entity": [["tile_y", "sp", [-1, 1, 1]], ["tile_x", "sp", [-1, 1, 1]], '
    '["tile_k", "sp", [-1, 1]]]}, "result": [[1e-05], 0, 0.5, 1700000000.0], "version": 0.2, '
    '"tvm_version": "0.19.0"}\n'
)


def tiny(folder: Path, *options: str) -> int:
    return tune.main([*TINY, "--tuner", "autotvm", "--no-bench", "-o", str(folder), *options])


@pytest.fixture
def logged(fast, tmp_path):
    """A folder with a log of this machine, its run file, and what they hold."""
    assert tiny(tmp_path) == 0
    log = log_of(tmp_path, 32)
    log.write_text(LINE)
    return log


def test_a_log_of_another_machine_is_refused(logged, tmp_path, capsys):
    write_run(logged, msgspec.structs.replace(read_run(logged), cpu="Cray-1"))
    capsys.readouterr()
    assert tiny(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {logged} was measured on Cray-1, this machine is {cpu_name()}")
    assert "--fresh or another -o" in said
    assert said.count("\n") == 1
    assert logged.read_text() == LINE


def test_a_log_that_does_not_say_where_it_was_measured_is_refused(logged, tmp_path, capsys):
    run_path(logged).unlink()
    capsys.readouterr()
    assert tiny(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {logged} has no run file beside it")
    assert "--from to begin with what it found" in said
    assert said.count("\n") == 1
    assert logged.read_text() == LINE
    assert not run_path(logged).exists()


def test_fresh_sets_the_old_log_aside_even_a_foreign_one(logged, tmp_path, capsys):
    write_run(logged, msgspec.structs.replace(read_run(logged), cpu="Cray-1", spent_s=7.0))
    capsys.readouterr()
    assert tiny(tmp_path, "--fresh", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["records"] == 0
    assert "resuming" not in captured.err
    assert logged.with_name(logged.name + ".old").read_text() == LINE
    run = read_run(logged)
    assert (run.cpu, run.trials) == (cpu_name(), 0)
    assert run.spent_s < 7


def test_fresh_again_keeps_both_old_logs(logged, tmp_path):
    run_path(logged).with_name(run_path(logged).name + ".old").write_text("of another log")
    assert tiny(tmp_path, "--fresh") == 0
    logged.write_text(LINE * 2)
    assert tiny(tmp_path, "--fresh") == 0
    for number, text in (("2", LINE), ("3", LINE * 2)):  # with the run file's number
        assert logged.with_name(f"{logged.name}.old{number}").read_text() == text
        assert run_path(logged).with_name(f"{run_path(logged).name}.old{number}").exists()


def test_a_killed_run_s_seconds_are_counted_by_the_next(logged, tmp_path):
    """The line is there, and the run file that was written before it says nothing of it."""
    assert (read_run(logged).trials, read_run(logged).spent_s) == (0, 0)
    assert tiny(tmp_path) == 0
    run = read_run(logged)
    assert (run.trials, run.spent_s) == (1, trial_seconds(parse_line(LINE)))
    assert tiny(tmp_path) == 0
    assert read_run(logged).spent_s == run.spent_s


def test_fresh_leaves_a_log_alone_that_another_run_writes(logged, tmp_path, capsys):
    capsys.readouterr()
    with filelock.FileLock(f"{logged}.lock"):
        assert tiny(tmp_path, "--fresh") == 2
    assert "another tuning run is writing" in capsys.readouterr().err
    assert logged.read_text() == LINE


def test_the_run_file_is_there_while_the_search_goes_on(fast, tmp_path):
    seen = []

    def search(tasks, *, logs, **_options):
        seen.append(read_run(logs["autotvm"].path))
        return Summary()

    fast.setattr(search_module, "tune_tasks", search)
    assert tiny(tmp_path) == 0
    assert seen[0].cpu == cpu_name()


def test_what_was_searched_is_told_when_parity_fails(fast, tmp_path, capsys):
    def search(tasks, *, summary, **_options):
        summary.trials, summary.failures["build_error"] = 5, 2
        return summary

    def fail(*_arguments):
        raise VerbFailedError("parity failed", {"parity": {"passed": False}})

    fast.setattr(search_module, "tune_tasks", search)
    fast.setattr(artifact, "compile_and_check", fail)
    assert tiny(tmp_path, "--json") == 1
    payload = json.loads(capsys.readouterr().out)
    assert payload["parity"] == {"passed": False}
    assert payload["logs"] == [str(log_of(tmp_path, 32))]
    assert payload["search"]["failures"] == {"build_error": 2}
    assert payload["error"] == "parity failed"


def test_a_log_of_other_threads_is_refused(logged, tmp_path, capsys):
    write_run(logged, msgspec.structs.replace(read_run(logged), threads=2))
    capsys.readouterr()
    assert tiny(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {logged} was measured with --threads 2, this run has 1: ")
    assert said.count("\n") == 1
    assert logged.read_text() == LINE


def test_logs_of_different_threads_live_side_by_side(logged, tiny_job, tmp_path, capsys):
    """The other one's records are where this one begins."""
    write_log(logged, [autotvm_line(tiny_job.tasks[1], -1)])
    before = read_run(logged)
    assert tiny(tmp_path, "--threads", "2", "--json") == 0
    captured = capsys.readouterr()
    (log,) = map(Path, json.loads(captured.out)["logs"])
    assert log == logged.with_name("mobilenet_v1_0.25_32.2-threads.autotvm.jsonl")
    assert (read_run(log).threads, read_run(logged)) == (2, before)
    assert "tasks begin with known records" in captured.err
    assert "adopted" not in captured.err  # times with one thread are not its own


def test_a_log_of_two_threads_under_its_old_name_is_adopted(logged, tiny_job, tmp_path, capsys):
    write_log(logged, [autotvm_line(tiny_job.tasks[1])])
    write_run(logged, msgspec.structs.replace(read_run(logged), threads=2))
    capsys.readouterr()
    assert tiny(tmp_path, "--threads", "2") == 0
    assert "adopted   1 trials of equal tasks" in capsys.readouterr().out


def test_records_of_an_older_template_are_not_built_with(logged, tiny_job, tmp_path, capsys):
    line = json.loads(autotvm_line(tiny_job.tasks[1]))
    line["config"]["entity"][0][0] = "older"
    write_log(logged, [json.dumps(line), autotvm_line(tiny_job.tasks[2])])
    capsys.readouterr()
    assert tiny(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["records"] == 1


def test_records_of_an_older_template_are_neither_resumed_nor_adopted(
    fast, tiny_job, tmp_path, capsys
):
    """Not even where the knobs have their names still, and stand at another index by now."""
    assert tiny(tmp_path) == 0
    log, beside = log_of(tmp_path, 32), log_of(tmp_path, 64)
    first, second = tiny_job.tasks[1:3]

    def older(task):
        line = json.loads(autotvm_line(task))
        line["config"]["index"] = task.candidates[-1]
        return json.dumps(line)

    old = older(first)
    write_log(log, [old])
    today = autotvm_line(first, -1)  # what stands at that index now
    write_log(beside, [today, older(second)], like=log)
    capsys.readouterr()
    assert tiny(tmp_path) == 0
    said = capsys.readouterr().out
    assert "resuming" not in said
    assert "1 are of another version of the schedules and left out" in said
    assert "adopted   1 trials" in said
    assert lines_of(log) == [old, today]


class TestSchedules:
    """``--schedules``: whose templates are searched, and by whom."""

    @pytest.mark.parametrize("schedules", ["ours", "stock"])
    def test_a_kind_of_template_is_autotvms(self, fast, searchers, tmp_path, capsys, schedules):
        argv = [*TINY, "--no-bench", "-o", str(tmp_path), "--schedules", schedules, "--json"]
        assert tune.main(argv) == 0
        (log,) = json.loads(capsys.readouterr().out)["logs"]
        infix = ".stock" if schedules == "stock" else ""
        assert Path(log).name == f"mobilenet_v1_0.25_32{infix}.autotvm.jsonl"
        assert tune.main([*argv, "--tuner", "ansor"]) == 2
        assert f"--schedules {schedules} is of templates" in capsys.readouterr().err

    def test_stock_searches_tvms_templates(self):
        parser = argparse.ArgumentParser()
        artifact.add_artifact_options(parser)
        job = artifact.prepare(parser.parse_args([*TINY, "--schedules", "stock"]))
        names = {task.handle.name for task in job.tasks}
        assert names == {"conv2d_NCHWc.x86", "depthwise_conv2d_NCHWc.x86"}
        assert job.templates == "stock"

    def test_best_takes_what_an_earlier_run_found_for_stock(
        self, logged, tiny_job, tmp_path, capsys
    ):
        stock = extract_tasks(tiny_job.relay.module, tiny_job.preset, schedules="stock")
        logged.write_text("")
        log = logged.with_name("mobilenet_v1_0.25_32.stock.autotvm.jsonl")
        write_log(log, [autotvm_line(stock[0])], like=logged)
        for schedules, count in (("best", 1), ("ours", 0)):
            capsys.readouterr()
            assert tiny(tmp_path, "--schedules", schedules, "--json") == 0
            assert json.loads(capsys.readouterr().out)["records"] == count


def test_a_log_of_times_that_are_none_is_refused(logged, tmp_path, capsys):
    write_run(logged, msgspec.structs.replace(read_run(logged), timing="emulated"))
    assert tiny(tmp_path) == 2
    assert f"{logged} holds emulated times" in capsys.readouterr().err
    assert read_run(logged).timing == "emulated"


def test_a_machine_that_is_not_quiet_is_told_with_a_figure(fast, tmp_path, capsys):
    fast.setattr(search_module.bench, "machine_noise", lambda threads: 1.874)
    assert tiny(tmp_path) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "not quiet" in warning
    assert "1.87 times" in warning


def autotvm_line(task: Task, number: int = 0, cost_s: float = 1e-5) -> str:
    trial = Trial(task.candidates[number], (cost_s,))
    return AutoTvmSearcher(task, trials=1, seed=0).record_line(trial)


def write_log(log: Path, lines: list[str], like: Path | None = None, **changes: object) -> None:
    """A log and, like another one's, its run file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(line + "\n" for line in lines))
    if like is not None:
        write_run(log, msgspec.structs.replace(read_run(like), model="other", **changes))


@pytest.fixture
def searchers(fast):
    """What each task's searcher is at the beginning, by task."""
    found = {}

    def begin(tasks, *, make_searcher, logs, **_options):
        found.clear()
        for task in tasks:
            found[task.key] = make_searcher(task, {})
        return Summary(by_searcher=dict.fromkeys(logs, 0))

    fast.setattr(search_module, "tune_tasks", begin)
    return found


def test_trials_of_equal_tasks_of_another_model_are_adopted(fast, tiny_job, tmp_path, capsys):
    assert tiny(tmp_path) == 0
    log, beside = log_of(tmp_path, 32), log_of(tmp_path, 64)
    lines = [autotvm_line(task) for task in tiny_job.tasks[:3]]
    write_log(beside, [*lines, LINE.strip()], like=log)
    capsys.readouterr()

    assert tiny(tmp_path, "--json") == 0
    captured = capsys.readouterr()
    assert lines_of(log) == lines  # the dense layer is none of this model's
    assert json.loads(captured.out)["records"] == 3
    assert f"adopted   3 trials of equal tasks from the logs beside {log.name}" in captured.err
    assert (read_run(log).trials, read_run(log).spent_s) == (3, 0)

    assert tiny(tmp_path) == 0
    said = capsys.readouterr().out
    assert "adopted" not in said
    assert "3 finished trials are not repeated" in said
    assert lines_of(log) == lines

    assert tiny(tmp_path, "--fresh") == 0
    assert not log.exists()


@pytest.mark.parametrize(
    "changes", [{"cpu": "Cray-1"}, {"threads": 2}, {"timing": "emulated"}, None], ids=str
)
def test_trials_of_elsewhere_are_proposals_only(
    fast, tiny_job, searchers, tmp_path, capsys, changes
):
    assert tiny(tmp_path) == 0
    log, beside = log_of(tmp_path, 32), log_of(tmp_path, 64)
    task = tiny_job.tasks[1]
    like = {} if changes is None else {"like": log, **changes}
    write_log(beside, [autotvm_line(task, -1)], **like)
    capsys.readouterr()
    assert tiny(tmp_path) == 0
    said = capsys.readouterr().out
    assert "adopted" not in said
    assert "tasks begin with known records" in said
    assert not log.exists()
    # The default is tried first, what is known next.
    assert begins(searchers[task.key], 2) == [task.default, task.candidates[-1]]


def begins(searcher, count: int) -> list[Config]:
    """The first configurations of a searcher."""
    return [searcher.next() for _ in range(count)]


def test_from_tells_where_to_begin(fast, tiny_job, searchers, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    first, second = tiny_job.tasks[1:3]
    write_log(elsewhere / "deep" / "a.autotvm.jsonl", [autotvm_line(first, -1)])
    write_log(elsewhere / "b.jsonl", ["no record", autotvm_line(second, -2)])
    assert tiny(tmp_path, "--from", str(elsewhere), "--from", str(elsewhere / "b.jsonl")) == 0
    captured = capsys.readouterr()
    assert captured.err.count("line 1: no tuning record, left out") == 1
    assert begins(searchers[first.key], 2) == [first.default, first.candidates[-1]]
    assert begins(searchers[second.key], 2) == [second.default, second.candidates[-2]]


def test_fresh_from_one_s_own_log_begins_with_it(fast, tiny_job, searchers, tmp_path):
    assert tiny(tmp_path) == 0
    log, task = log_of(tmp_path, 32), tiny_job.tasks[1]
    write_log(log, [autotvm_line(task, -1)])
    assert tiny(tmp_path, "--fresh", "--from", str(tmp_path)) == 0
    assert not log.exists()
    assert begins(searchers[task.key], 2) == [task.default, task.candidates[-1]]


def test_another_cpu_s_times_of_our_tasks_teach_nothing(logged, tiny_job):
    records = (parse_line(autotvm_line(tiny_job.tasks[0])), parse_line(LINE))
    run = read_run(logged)
    keys = {task.key for task in tiny_job.tasks}

    def lessons(target=tiny_job.tasks[0].target, threads=1, **changes):
        changed = msgspec.structs.replace(run, **changes)
        known = transfer_module.Known(logged, records, changed, frozenset())
        return known.lessons(keys, target, transfer_module.Where(cpu_name(), threads))

    assert lessons() == list(records)
    # Equal keys, and times that nobody can reach here.
    assert lessons(cpu="Cray-1") == [records[1]]
    assert lessons(threads=2) == [records[1]]
    assert lessons(target="llvm -keys=cpu") == [records[1]]
    assert lessons(timing="emulated") == []


def test_shipped_logs_tell_where_to_begin(fast, tiny_job, searchers, tmp_path, capsys):
    shipped = tmp_path / "shipped"
    task = tiny_job.tasks[1]
    for preset, number in (("a-preset", -1), ("x86-mine", -2)):
        write_log(shipped / preset / "model.autotvm.jsonl", [autotvm_line(task, number)])
    fast.setattr(transfer_module.tuning_logs, "__path__", [str(shipped)])
    mine, other = search_module.shipped_logs("x86-mine")
    assert (mine.parent.name, other.parent.name) == ("x86-mine", "a-preset")
    assert tiny(tmp_path) == 0
    assert begins(searchers[task.key], 2)[1] in (task.candidates[-1], task.candidates[-2])


@pytest.mark.parametrize(("name", "words"), [("none.jsonl", "no such log"), ("", "no *.jsonl in")])
def test_from_nothing_is_2_and_nothing_is_set_aside(logged, tmp_path, capsys, name, words):
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    assert tiny(tmp_path, "--fresh", "--from", str(tmp_path / "empty" / name)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --from ")
    assert words in said
    assert said.count("\n") == 1
    assert logged.read_text() == LINE


@pytest.fixture(scope="module")
def tasks(tiny_job):
    return extract_ansor_tasks(tiny_job.relay.module, tiny_job.preset)


@pytest.fixture(scope="module")
def lines(tasks):
    """Two trials of the first task, the second one faster."""
    searcher = AnsorSearcher(tasks[0], trials=2, seed=0, model=CostModel(seed=0, cores=1))
    costs_s = (2e-5, 1e-5)
    return [searcher.record_line(Trial(searcher.next(), (cost_s,))) for cost_s in costs_s]


class TestAnsor:
    """Ansor's part of the run, up to the search."""

    @pytest.fixture(autouse=True)
    def _found(self, fast, tasks):
        fast.setattr(tune, "extract_ansor_tasks", lambda module, preset, threads: tasks)

    def test_default_is_both_each_with_its_own_trials(self, searchers, tasks, tiny_job, tmp_path):
        assert tune.main([*TINY, "--no-bench", "-o", str(tmp_path)]) == 0
        assert set(searchers) == {task.key for task in (*tasks, *tiny_job.tasks)}
        assert {searchers[task.key].limit for task in tasks} == {512}
        for task in tiny_job.tasks:
            assert searchers[task.key].limit == min(96, len(task.candidates))
        assert tiny(tmp_path, "--tuner", "all", "--trials", "2") == 0
        assert {searcher.limit for searcher in searchers.values()} == {2}
        assert tiny(tmp_path, "--tuner", "ansor") == 0
        assert set(searchers) == {task.key for task in tasks}

    def test_logs_run_files_and_sidecar(self, tasks, tmp_path, capsys):
        assert tiny(tmp_path, "--tuner", "all", "--seed", "3", "--json") == 0
        logs = [log_of(tmp_path, 32, name) for name in ("autotvm", "ansor")]
        assert json.loads(capsys.readouterr().out)["logs"] == [str(log) for log in logs]
        runs = [read_run(log) for log in logs]
        assert [(run.searcher, run.seed, run.threads) for run in runs] == [
            ("autotvm", 3, 1),
            ("ansor", 3, 1),
        ]
        assert set(read_workloads(logs[1])) == {task.key for task in tasks}
        assert not workloads_path(logs[0]).exists()

    def test_fresh_sets_all_aside(self, tasks, lines, tiny_job, tmp_path, capsys):
        assert tiny(tmp_path, "--tuner", "all") == 0
        ours, ansor = (log_of(tmp_path, 32, name) for name in ("autotvm", "ansor"))
        write_log(ours, [autotvm_line(tiny_job.tasks[0])])
        write_log(ansor, lines)
        before = {path.name for path in ansor.parent.iterdir() if path.suffix != ".lock"}
        assert len(before) == 5
        capsys.readouterr()
        assert tiny(tmp_path, "--tuner", "all", "--fresh", "--json") == 0
        captured = capsys.readouterr()
        assert "resuming" not in captured.err
        assert json.loads(captured.out)["records"] == 0
        after = {path.name for path in ansor.parent.iterdir() if path.suffix != ".lock"}
        assert {name + ".old" for name in before} <= after
        assert ansor.with_name(ansor.name + ".old").read_text().splitlines() == lines
        assert set(read_workloads(ansor)) == {task.key for task in tasks}

    def test_one_tuner_leaves_the_other_s_log_alone(self, lines, tiny_job, tmp_path):
        assert tiny(tmp_path, "--tuner", "all") == 0
        ours, ansor = (log_of(tmp_path, 32, name) for name in ("autotvm", "ansor"))
        write_log(ours, [autotvm_line(tiny_job.tasks[0])])
        write_log(ansor, lines)
        assert tiny(tmp_path, "--tuner", "autotvm", "--fresh") == 0
        assert not ours.exists()
        assert lines_of(ansor) == lines

    def test_the_other_tuner_s_trials_count_for_the_model(
        self, tasks, lines, tiny_job, tmp_path, capsys
    ):
        assert tiny(tmp_path, "--tuner", "all") == 0
        ours, ansor = (log_of(tmp_path, 32, name) for name in ("autotvm", "ansor"))
        write_log(ours, [autotvm_line(tiny_job.tasks[0])])
        write_log(ansor, lines)
        count = len({parse_line(line).key for line in lines})
        for tuner in ("autotvm", "ansor"):
            capsys.readouterr()
            assert tiny(tmp_path, "--tuner", tuner, "--json") == 0
            assert json.loads(capsys.readouterr().out)["records"] == 1 + count
        write_run(ansor, msgspec.structs.replace(read_run(ansor), cpu="Cray-1"))
        capsys.readouterr()
        assert tiny(tmp_path, "--json") == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["records"] == 1
        assert f"{ansor} is of another machine" in captured.err

    def test_equal_tasks_of_another_model_are_adopted(
        self, fast, searchers, tasks, lines, tmp_path, capsys
    ):
        learnt = []
        fast.setattr(
            CostModel, "learn_records", lambda model, records, known: learnt.extend(records)
        )
        assert tiny(tmp_path, "--tuner", "ansor") == 0
        log, beside = (log_of(tmp_path, resolution, "ansor") for resolution in (32, 64))
        write_log(beside, lines, like=log)
        write_workloads(beside, [tasks[0].handle])
        learnt.clear()
        capsys.readouterr()
        assert tiny(tmp_path, "--tuner", "ansor") == 0
        assert "adopted   2 trials of equal tasks" in capsys.readouterr().out
        assert lines_of(log) == lines
        assert [record.line for record in learnt] == lines  # once each

    def test_from_tells_where_to_begin(self, searchers, tasks, lines, tmp_path, capsys):
        elsewhere = tmp_path / "elsewhere.ansor.jsonl"
        write_log(elsewhere, lines)
        assert tiny(tmp_path, "--tuner", "ansor", "--from", str(elsewhere)) == 0
        said = capsys.readouterr().out
        assert f"transfer  1 of {len(tasks)} tasks begin with known records" in said
        assert searchers[tasks[0].key].next() == parse_line(lines[1]).config
        assert not log_of(tmp_path, 32, "ansor").exists()

    def test_a_damaged_sidecar_of_from_is_named(self, lines, tmp_path, capsys):
        elsewhere = tmp_path / "elsewhere.ansor.jsonl"
        write_log(elsewhere, lines)
        workloads_path(elsewhere).write_bytes(b"no gzip")
        assert tiny(tmp_path, "--tuner", "ansor", "--from", str(elsewhere)) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {workloads_path(elsewhere)} is damaged")


@pytest.mark.slow
def test_ansor_then_both(tmp_path, compiles_nothing, monkeypatch, tiny_job, tasks, capfd):
    """Some layers by Ansor; the rest by both, killed and resumed; and the decision."""
    ours, ansor = (log_of(tmp_path, 32, name) for name in ("autotvm", "ansor"))
    job = dataclasses.replace(tiny_job, folder=tmp_path)
    monkeypatch.setattr(artifact, "prepare", lambda args: job)
    monkeypatch.setattr(tune, "extract_ansor_tasks", lambda module, preset, threads: tasks[:4])
    assert tiny(tmp_path, "--tuner", "ansor", "--trials", "1", "--json") == 0
    payload = json.loads(capfd.readouterr().out)
    assert payload["logs"] == [str(ansor)]
    assert payload["search"]["by_searcher"] == {"ansor": 4}
    assert read_run(ansor).searcher == "ansor"
    assert {record.key for record in read_log(ansor, pytest.fail)} == set(read_workloads(ansor))
    known = lines_of(ansor)
    assert len(known) == 4

    options = ("--tuner", "all", "--trials", "1", "--no-bench", "--json")
    process = tune_process(tmp_path, *TINY, *options)
    wait_for_trials(process, ansor, 6)
    process.kill()
    _, said = process.communicate(timeout=60)
    assert f"resuming  {ansor}: 4 finished trials are not repeated" in said
    kept = {log: [line for line in lines_of(log) if is_whole(line)] for log in (ours, ansor)}
    assert kept[ansor][:4] == known

    process = tune_process(tmp_path, *TINY, *options)
    output, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    payload = json.loads(output)
    assert payload["logs"] == [str(ours), str(ansor)]
    for log, before in kept.items():
        assert f"resuming  {log}: {len(before)} finished trials are not repeated" in said
        assert lines_of(log)[: len(before)] == before
        assert set(tried(log).values()) == {1}
    assert payload["search"]["resumed"] == sum(map(len, kept.values()))
    found = {log: len(lines_of(log)) - len(before) for log, before in kept.items()}
    assert payload["search"]["by_searcher"] == {"autotvm": found[ours], "ansor": found[ansor]}
    assert read_run(ours).searcher == "autotvm"
    assert len(read_workloads(ansor)) == len(tasks)

    # A random trial may fail, and then the layer is no candidate's: the logs tell.
    records = [record for log in (ours, ansor) for record in read_log(log, pytest.fail)]
    both = (*tiny_job.tasks, *tasks)
    best = choose_records(both, records)
    plans = make_plans(tiny_job.relay.module, both, best) + rivals(tiny_job.tasks, best)
    names = [candidate["name"] for candidate in payload["decision"]]
    assert names == [plan.name for plan in plans]
    (chosen,) = [candidate for candidate in payload["decision"] if candidate["chosen"]]
    assert all(candidate["why"] for candidate in payload["decision"])
    manifest = read_manifest(Path(payload["artifact"]))
    assert [candidate.name for candidate in manifest.decision] == names
    kept = [candidate.name for candidate in manifest.decision if candidate.chosen]
    assert kept == [chosen["name"]]
    assert manifest.parity.passed
    assert payload["parity"]["passed"] is True
    assert not list(tmp_path.rglob(".candidates*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "x86-avx51"], "did you mean x86-avx512?"),
        (["--alpha", "0"], "alpha 0 is outside (0, 1]"),
        (["--resolution", "100"], "give 96 or 128"),
        (["--model", "mobilnet_v1"], "did you mean mobilenet_v1?"),
        (["--onnx", "{text}"], "is no ONNX model"),
        (["--onnx", "{text}.none"], "there is no file"),
        (["--shape", "1,3,32,32"], "--shape goes with --onnx"),
        ([*TINY, "--images", "{text}.none"], "no folder of photos"),
        ([*TINY, "--labels", "{text}"], "--labels has 1 lines and the model's output"),
        ([*TINY, "--tuner", "autotvm", "-o", "{text}"], "cannot write"),
    ],
)
def test_bad_usage_is_one_line_and_nothing_is_searched(
    searches_nothing, tmp_path, capsys, options, words
):
    searches_nothing.setattr(
        search_module, "tune_tasks", lambda *a, **k: pytest.fail("it searched")
    )
    text = tmp_path / "text.onnx"
    text.write_text("hello, I am no model\n")
    argv = ["-o", str(tmp_path / "out"), *(o.format(text=text) for o in options)]
    assert tune.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize(
    "options",
    [
        ["--trials", "0"],
        ["--rounds", "x"],
        ["--time-budget", "soon"],
        ["--tuner", "guess"],
        ["--std", "0"],
        ["--std", "1,1"],
        ["--mean", "nan"],
        ["--onnx", "a", "--model", "b"],
    ],
)
def test_a_bad_option_is_2(capsys, options):
    with pytest.raises(SystemExit) as caught:
        tune.main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_preset_that_does_not_run_here_is_for_compile(fast, tmp_path, capsys):
    name = resolve("x86").name
    fast.setattr(tune.targets.Preset, "runs_here", lambda preset: False)
    assert tune.main([*TINY, "--target", name, "-o", str(tmp_path)]) == 2
    assert "cannot be tuned on this machine" in capsys.readouterr().err
