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
from mobilenet_tvm.build.manifest import read_manifest, sha256_file
from mobilenet_tvm.cli import artifact
from mobilenet_tvm.cli.frame import VerbFailedError
from mobilenet_tvm.records import read_run, write_run
from mobilenet_tvm.search import Summary
from mobilenet_tvm.targets import cpu_name, resolve
from mobilenet_tvm.toolchain import TVM_VERSION

SMALL = ("--alpha", "0.25", "--resolution", "128")
TINY = ("--alpha", "0.25", "--resolution", "32")


def log_of(folder: Path, resolution: int) -> Path:
    preset = resolve("x86").name
    return folder / "tuning_logs" / preset / f"mobilenet_v1_0.25_{resolution}.autotvm.jsonl"


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines()


def tried(log: Path) -> Counter[tuple[str, int]]:
    """How often each configuration of each workload stands in the log."""
    records = map(json.loads, lines_of(log))
    return Counter((str(r["input"][1:3]), r["config"]["index"]) for r in records)


def tune_process(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mobilenet_tvm.tune", *options, "-o", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def compiles_nothing(monkeypatch):
    """What a verb does before it compiles."""

    def compile_and_check(job, best, args, out):
        return None, None, {"artifact": str(job.artifact), "records": len(best)}

    monkeypatch.setattr(artifact, "compile_and_check", compile_and_check)


@pytest.fixture
def searches_nothing(monkeypatch, compiles_nothing):
    """A tuning run that neither searches nor compiles."""
    monkeypatch.setattr(tune, "tune_tasks", lambda tasks, **_options: Summary())
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
    searches_nothing.setattr(
        artifact, "prepare", lambda args: dataclasses.replace(tiny_job, folder=args.output)
    )
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
    process = tune_process(folder, *SMALL, "--trials", "2", "--rounds", "2", "--json")
    output, said = process.communicate(timeout=300)
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
        assert max(workloads.values()) == 2
        run = read_run(tuned.log)
        assert (run.cpu, run.tvm, run.timing) == (cpu_name(), TVM_VERSION, "measured")
        assert run.trials == len(lines_of(tuned.log))
        assert run.spent_s > 0

    def test_payload(self, tuned):
        payload = tuned.payload
        assert payload["tuned"] == payload["tasks"]
        assert payload["parity"]["passed"] is True
        assert payload["log"] == str(tuned.log)
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
        assert sum(line.startswith("[") and " trials" in line for line in lines) == tasks
        for start in ("searched  ", "artifact  ", "parity    with onnxruntime"):
            assert sum(line.startswith(start) for line in lines) == 1, start
        assert f"{tasks} of {tasks} tasks tuned" in tuned.said
        assert "Cannot find config" not in tuned.said

    def test_the_same_command_again_repeats_nothing(self, tuned, compiles_nothing, capfd):
        before = tuned.log.read_bytes()
        argv = [*SMALL, "--trials", "2", "--no-bench", "-o", str(tuned.folder), "--json"]
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
    deadline = time.monotonic() + 120
    while not log.exists() or len(lines_of(log)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_interrupted_then_killed_then_finished(tmp_path):
    options = (*TINY, "--trials", "2", "--no-bench")
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
    output, said = process.communicate(timeout=180)
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
    return tune.main([*TINY, "--no-bench", "-o", str(folder), *options])


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


def test_fresh_leaves_a_log_alone_that_another_run_writes(logged, tmp_path, capsys):
    capsys.readouterr()
    with filelock.FileLock(f"{logged}.lock"):
        assert tiny(tmp_path, "--fresh") == 2
    assert "another tuning run is writing" in capsys.readouterr().err
    assert logged.read_text() == LINE


def test_the_run_file_is_there_while_the_search_goes_on(fast, tmp_path):
    seen = []

    def search(tasks, *, log, **_options):
        seen.append(read_run(log.path))
        return Summary()

    fast.setattr(tune, "tune_tasks", search)
    assert tiny(tmp_path) == 0
    assert seen[0].cpu == cpu_name()


def test_what_was_searched_is_told_when_parity_fails(fast, tmp_path, capsys):
    def search(tasks, *, summary, **_options):
        summary.trials, summary.failures["build_error"] = 5, 2
        return summary

    def fail(*_arguments):
        raise VerbFailedError("parity failed", {"parity": {"passed": False}})

    fast.setattr(tune, "tune_tasks", search)
    fast.setattr(artifact, "compile_and_check", fail)
    assert tiny(tmp_path, "--json") == 1
    payload = json.loads(capsys.readouterr().out)
    assert payload["parity"] == {"passed": False}
    assert payload["log"] == str(log_of(tmp_path, 32))
    assert payload["search"]["failures"] == {"build_error": 2}
    assert payload["error"] == "parity failed"


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
        ([*TINY, "-o", "{text}"], "cannot write"),
    ],
)
def test_bad_usage_is_one_line_and_nothing_is_searched(
    searches_nothing, tmp_path, capsys, options, words
):
    searches_nothing.setattr(tune, "tune_tasks", lambda *a, **k: pytest.fail("it searched"))
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
    fast.setattr(tune.targets.Preset, "runs_here", lambda preset: False)
    assert tune.main([*TINY, "-o", str(tmp_path)]) == 2
    assert "cannot be tuned on this machine" in capsys.readouterr().err
