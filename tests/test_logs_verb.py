"""``python -m mobilenet_tvm.logs``: every command, in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mobilenet_tvm import frontend, logs, targets, toolchain, zoo
from mobilenet_tvm.records import (
    RecordLog,
    Task,
    extract_tasks,
    read_log,
    read_run,
    run_path,
    write_run,
)
from mobilenet_tvm.records.log import hold

from .conftest import run_here

PRESET = targets.resolve("x86-avx512")
TINY = ("--model", "mobilenet_v1", "--alpha", "0.25", "--resolution", "32", "--classes", "10")
RUN = run_here(
    preset=PRESET.name, target=PRESET.target, cpu="a CPU of theirs", spent_s=30.0, trials=3
)
ANSOR = (
    '{"i": [["[\\"9e858d3c108e9fa2ad39fcf2ab53af13\\", [32, 64], [64, 16], [32, 16]]", '
    '"llvm -keys=cpu -mcpu=skylake-avx512 -mtriple=x86_64-linux-gnu", '
    '[1, 64, 64, 0, 0, 0, 0, 0], "", 1, []], [[], [["SP", 2, 1, 16, [2], 1]]]], '
    '"r": [[1e-06], 0, 0.5, 1], "v": "v0.6"}'
)


@pytest.fixture(scope="module")
def tasks() -> tuple[Task, ...]:
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    return extract_tasks(relay.module, PRESET)


@pytest.fixture
def line(tasks: tuple[Task, ...]) -> Callable[..., str]:
    """``line(task, candidate, *costs_s, error=0)``."""
    toolchain.activate()
    from tvm import autotvm

    def make(task: int, candidate: int, *costs_s: float, error: int = 0) -> str:
        handle = tasks[task].handle
        config = handle.config_space.get(tasks[task].candidates[candidate])
        given = autotvm.measure.MeasureInput(handle.target, handle, config)
        result = autotvm.measure.MeasureResult(costs_s, error, 0.5, 1.0)
        return str(autotvm.record.encode(given, result))

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """``write(name, *lines, **run_changes)``: a log and its run file; ``run=None`` for none."""

    def make(name: str, *lines: str, **changes: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(text + "\n" for text in lines))
        if changes.get("run", True) is not None:
            write_run(path, msgspec.structs.replace(RUN, **changes))
        return path

    return make


def costs(path: Path) -> list[float | None]:
    return [record.cost_s for record in read_log(path, pytest.fail)]


def payload(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_best_keeps_one_record_a_task(line, write, tmp_path, capsys) -> None:
    first = write("a.autotvm.jsonl", line(0, 0, 3e-6), line(0, 1, 2e-6), line(1, 0, 5e-6))
    second = write(
        "b.autotvm.jsonl", line(0, 2, 1e-6), line(1, 0, error=5), line(1, 1, 9e-6), model="other"
    )
    output = tmp_path / "shipped" / "best.autotvm.jsonl"
    assert logs.main(["best", str(first), str(second), "-o", str(output), "--json"]) == 0
    assert payload(capsys) == {
        "log": str(output), "searcher": "autotvm", "records": 2, "trials": 5
    }  # fmt: skip
    assert costs(output) == [1e-6, 9e-6]
    run = read_run(output)
    assert run is not None
    assert (run.model, run.spent_s, run.trials) == ("tiny, other", 60.0, 5)
    assert run.failures == {"wrong_output": 1}


def test_best_keeps_the_untuned_default_beside_it(line, write, tasks, tmp_path, capsys) -> None:
    """Without it nobody can tell what the best one gains."""
    task = tasks[0]
    default = task.candidates.index(task.default)
    fast = (default + 1) % len(task.candidates)
    log = write(
        "a.autotvm.jsonl", line(0, default, 3e-6), line(0, fast, 2e-6), line(0, default, 4e-6)
    )
    output = tmp_path / "best.autotvm.jsonl"
    assert logs.main(["best", str(log), "-o", str(output)]) == 0
    assert costs(output) == [2e-6, 3e-6]
    assert "the best of 2 trials for 1 tasks" in capsys.readouterr().out


def test_best_of_one_log_needs_no_run_file(line, write, tmp_path) -> None:
    log = write("a.jsonl", line(0, 0, 3e-6), run=None)
    output = tmp_path / "best.jsonl"
    write_run(output, RUN)  # an older one's
    assert logs.main(["best", str(log), "-o", str(output)]) == 0
    assert costs(output) == [3e-6]
    assert not run_path(output).exists()


def test_best_never_thins_a_log_out_in_place(line, write, capsys) -> None:
    log = write("a.jsonl", line(0, 0, 3e-6), line(0, 1, 2e-6))
    assert logs.main(["best", str(log), "-o", str(log)]) == 2
    assert "give -o another file" in one_error(capsys)
    assert len(costs(log)) == 2


def test_both_searchers_are_refused_in_one_file(line, write, tmp_path, capsys) -> None:
    mixed = [str(write("a.jsonl", line(0, 0, 3e-6))), str(write("b.jsonl", ANSOR))]
    for command in ("best", "merge"):
        assert logs.main([command, *mixed, "-o", str(tmp_path / "out.jsonl")]) == 2
        assert "cannot go into one file" in one_error(capsys)
    assert not (tmp_path / "out.jsonl").exists()


def test_nothing_but_failures_has_no_best(line, write, tmp_path, capsys) -> None:
    log = write("a.jsonl", line(0, 0, error=4))
    assert logs.main(["best", str(log), "-o", str(tmp_path / "best.jsonl")]) == 2
    assert "not one trial in the logs succeeded" in one_error(capsys)


def test_merge_adds_and_never_loses_the_faster(line, write, capsys) -> None:
    output = write("all.autotvm.jsonl", line(0, 0, 3e-6), line(0, 1, 1e-6), line(1, 0, error=4))
    source = write("new.autotvm.jsonl", line(0, 1, 2e-6), line(1, 0, 4e-6), line(1, 1, 5e-6))
    argv = ["merge", str(source), "-o", str(output), "--json"]
    assert logs.main(argv) == 0
    assert payload(capsys) == {
        "log": str(output), "searcher": "autotvm", "records": 4, "before": 3, "duplicates": 2
    }  # fmt: skip
    assert costs(output) == [3e-6, 1e-6, 4e-6, 5e-6]
    run = read_run(output)
    assert run is not None
    assert (run.spent_s, run.trials, run.failures) == (60.0, 4, {})
    before = output.read_bytes()
    assert logs.main([*argv, "--json"]) == 0  # a second time, nothing is left to add
    assert output.read_bytes() == before


def test_merging_the_same_log_again_adds_no_time(line, write, tmp_path) -> None:
    source = write("new.jsonl", line(0, 0, 2e-6))
    output = tmp_path / "all.jsonl"
    for _ in range(2):
        assert logs.main(["merge", str(source), "-o", str(output)]) == 0
    assert read_run(output) == msgspec.structs.replace(RUN, trials=1)


def test_merge_refuses_another_machine(line, write, capsys) -> None:
    output = write("all.jsonl", line(0, 0, 3e-6))
    before = output.read_bytes()
    for number, (changes, words) in enumerate(
        [
            ({"cpu": "a CPU of ours"}, ["a CPU of theirs", "a CPU of ours"]),
            ({"threads": 2}, ["1 thread", "2 threads"]),
            ({"timing": "emulated"}, ["emulated", "measured"]),
            ({"run": None}, ["--assume-same-machine"]),
        ]
    ):
        source = write(f"new{number}.jsonl", line(0, 0, 1e-6), **changes)
        assert logs.main(["merge", str(source), "-o", str(output)]) == 2
        error = one_error(capsys)
        assert all(word in error for word in [source.name, *words])
        assert output.read_bytes() == before
    assert logs.main(["merge", str(source), "-o", str(output), "--assume-same-machine"]) == 0
    assert costs(output) == [1e-6]
    assert read_run(output) is not None


def test_running_tuner_is_not_disturbed(line, write, tmp_path, capsys) -> None:
    source = write("new.jsonl", line(0, 0, 3e-6))
    output = write("all.jsonl", line(0, 0, 4e-6))
    with RecordLog(output, pytest.fail):
        for command in ("merge", "best"):
            assert logs.main([command, str(source), "-o", str(output)]) == 2
            assert "another tuning run is writing" in one_error(capsys)
    assert costs(output) == [4e-6]
    with hold(source):  # reading one that is being written is fine
        assert logs.main(["merge", str(source), "-o", str(output)]) == 0
    assert costs(output) == [3e-6]


@pytest.mark.parametrize("command", ["best", "merge"])
def test_output_that_is_a_folder_is_refused(line, write, tmp_path, capsys, command) -> None:
    source = write("new.jsonl", line(0, 0, 3e-6))
    assert logs.main([command, str(source), "-o", str(tmp_path)]) == 2
    assert "is a folder: give -o a file" in one_error(capsys)


def test_stats_counts_and_shows(line, write, tasks, tmp_path, capsys) -> None:
    write(
        "logs/a.autotvm.jsonl",
        line(1, 0, 2e-6),
        line(1, 1, error=1),
        line(1, 2, error=2),
        line(2, 0, error=7),
    )
    write("logs/b.ansor.jsonl", ANSOR)
    argv = ["stats", str(tmp_path / "logs"), "--peak", "100", *TINY[:0]]
    assert logs.main(argv) == 0
    shown = capsys.readouterr().out
    assert tasks[1].label in shown
    assert "2 build_error" in shown
    assert logs.main([*argv, "--json"]) == 0
    found = payload(capsys)
    gflops = tasks[1].flops / 2e-6 / 1e9
    first, second = found["logs"][0]["tasks"]
    assert first == {
        "label": tasks[1].label,
        "searcher": "autotvm",
        "key": tasks[1].key,
        "target": str(tasks[1].handle.target),
        "trials": 3,
        "best_us": pytest.approx(2.0),
        "gflops": pytest.approx(gflops),
        "percent_of_peak": pytest.approx(gflops),
        "failures": {"build_error": 2},
    }
    assert (second["best_us"], second["failures"]) == (None, {"run_timeout": 1})
    (ansor,) = found["logs"][1]["tasks"]
    assert (ansor["label"], ansor["gflops"]) == ("9e858d3c 32x64 64x16 32x16", None)
    assert (found["trials"], found["tasks"], found["spent_s"]) == (5, 3, 60.0)
    assert found["failures"] == {"build_error": 2, "run_timeout": 1}


def test_emulated_times_are_no_latencies(line, write, capsys) -> None:
    log = write("a.autotvm.jsonl", line(1, 0, 2e-6), timing="emulated")
    assert logs.main(["stats", str(log), "--peak", "100", "--json"]) == 0
    (task,) = payload(capsys)["logs"][0]["tasks"]
    assert (task["best_us"], task["gflops"], task["percent_of_peak"]) == (None, None, None)


def test_peak_of_another_cpu_is_not_guessed(line, write, capsys) -> None:
    log = write("a.autotvm.jsonl", line(1, 0, 2e-6))
    assert logs.main(["stats", str(log), "--json"]) == 0
    found = payload(capsys)["logs"][0]
    assert found["peak_gflops"] is None
    assert found["tasks"][0]["gflops"] > 0
    assert found["tasks"][0]["percent_of_peak"] is None


def test_peak_of_this_cpu_is_measured(line, write, capsys) -> None:
    log = write("a.autotvm.jsonl", line(1, 0, 2e-6), cpu=targets.cpu_name(), threads=2)
    assert logs.main(["stats", str(log), "--json"]) == 0
    assert payload(capsys)["logs"][0]["peak_gflops"] > 1


def test_stats_says_what_of_a_model_is_covered(line, write, tasks, capsys) -> None:
    log = write("a.autotvm.jsonl", line(1, 0, 2e-6), line(2, 0, error=4))
    assert logs.main(["stats", str(log), *TINY]) == 0
    assert f"coverage  autotvm: 1 of {len(tasks)} tasks of the model" in capsys.readouterr().out
    assert logs.main(["stats", str(log), *TINY, "--json"]) == 0
    coverage = payload(capsys)["coverage"]
    assert [row["key"] for row in coverage] == [task.key for task in tasks]
    assert [row["covered"] for row in coverage].count(True) == 1
    assert coverage[1]["covered"]


def test_verify_passes_what_this_tvm_hits(line, write, tasks, capsys) -> None:
    log = write("a.autotvm.jsonl", *(line(i, 1, 2e-6) for i in range(5)), line(0, 0, error=4))
    assert logs.main(["verify", str(log), *TINY, "--json"]) == 0
    found = payload(capsys)
    assert (found["records"], found["replayed"], found["misses"]) == (6, 5, [])
    assert [row["covered"] for row in found["coverage"]] == [True] * 5 + [False] * (len(tasks) - 5)
    assert found["foreign"] == 0


def test_verify_names_what_would_not_be_hit(line, write, tasks, capsys) -> None:
    good = line(1, 1, 2e-6)
    index = tasks[1].candidates[1]
    entity = json.loads(good)["config"]["entity"]
    other = json.dumps([[name, kind, 3] for name, kind, _ in entity])
    log = write(
        "a.autotvm.jsonl",
        good,
        good.replace(json.dumps(entity), other),
        good.replace(f'"index": {index}', '"index": 999999'),
        good.replace(".mobilenet_x86", ".of_old"),
        good.replace('"float32"], [1, 1]', '"float32"], [0, 0]'),
        ANSOR,
    )
    assert logs.main(["verify", str(log)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    for number, (text, words) in enumerate(
        zip(
            lines,
            [
                "stands for other knobs by now",
                "no index 999999",
                "no template depthwise_conv2d_NCHWc.of_old is registered",
                "",
                "its computation is unknown: keep the .workloads.json.gz",
            ],
            strict=True,
        ),
        2,
    ):
        assert text.startswith(f"{log}:{number}: ")
        assert words in text
    assert captured.err == (
        "error: 5 of 6 records would not be hit by this TVM: tune those tasks again, or leave "
        "these lines out\n"
    )


def test_verify_reads_a_log_no_more_often_for_more_misses(line, write, capsys, monkeypatch) -> None:
    reads: list[Path] = []
    read_text = Path.read_text

    def counted(path: Path, *args: Any, **options: Any) -> str:
        reads.append(path)
        return read_text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", counted)
    of_old = [line(i, 0, 2e-6).replace(".mobilenet_x86", ".of_old") for i in range(5)]
    of_old.insert(1, of_old[0])
    counts = []
    for lines in (of_old[:1], of_old):
        log = write("a.autotvm.jsonl", *lines)
        reads.clear()
        assert logs.main(["verify", str(log), "--json"]) == 1
        counts.append(reads.count(log))
        misses = payload(capsys)["misses"]
    assert [miss["line"] for miss in misses] == [1, 1, 3, 4, 5, 6]
    assert counts[0] == counts[1]


def test_verify_for_another_preset(line, write, capsys) -> None:
    log = write("a.autotvm.jsonl", line(1, 1, 2e-6))
    assert logs.main(["verify", str(log), "--target", "x86-avx2", "--json"]) == 1
    (miss,) = payload(capsys)["misses"]
    assert miss["line"] == 1
    assert "skylake-avx512" in miss["why"]
    assert "haswell" in miss["why"]


@pytest.mark.slow
def test_ansor_records_are_hit_through_the_model_alone(write, capsys) -> None:
    toolchain.activate()
    from tvm import auto_scheduler

    from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks

    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    found = extract_ansor_tasks(relay.module, PRESET)
    handle = found[0].handle
    state = handle.compute_dag.get_init_state()
    text = auto_scheduler.measure_record.dump_record_to_string(
        auto_scheduler.MeasureInput(handle, state),
        auto_scheduler.MeasureResult([1e-6], 0, "", 0.1, 1.0),
    )
    log = write("a.ansor.jsonl", text.strip())
    assert logs.main(["verify", str(log), "--json"]) == 1
    assert len(payload(capsys)["misses"]) == 1
    assert logs.main(["verify", str(log), *TINY, "--json"]) == 0
    coverage = payload(capsys)["coverage"]
    assert [row["covered"] for row in coverage] == [True] + [False] * (len(found) - 1)
    assert logs.main(["stats", str(log), *TINY, "--json"]) == 0
    (row,) = payload(capsys)["logs"][0]["tasks"]
    assert row["label"] == found[0].label
    assert row["gflops"] == pytest.approx(found[0].flops / 1e-6 / 1e9)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["stats", "none.jsonl"], "no log at none.jsonl"),
        (["stats", "{folder}/empty"], "no *.jsonl in"),
        (["stats", "{folder}/a.jsonl", "--target", "x86-avx2"], "--target goes with a model"),
        (["verify", "{folder}/a.jsonl", "--target", "z80"], "unknown target 'z80'"),
        (["verify", "{folder}/a.jsonl", "--onnx", "none.onnx"], "none.onnx"),
        (["merge", "{folder}/empty.jsonl", "-o", "{folder}/out.jsonl"], "no record in"),
    ],
)
def test_bad_usage_is_one_line_and_2(line, write, tmp_path, capsys, argv, words) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    write("a.jsonl", line(0, 0, 3e-6))
    assert logs.main([text.format(folder=tmp_path) for text in argv]) == 2
    assert words in one_error(capsys)


def test_json_may_stand_before_the_command(line, write, capsys) -> None:
    log = write("a.jsonl", line(0, 0, 3e-6))
    assert logs.main(["--json", "stats", str(log)]) == 0
    assert payload(capsys)["trials"] == 1


@pytest.mark.parametrize(
    "argv", [[], ["best", "a.jsonl"], ["stats"], ["stats", "a", "--peak", "0"]]
)
def test_what_argparse_refuses(argv: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        logs.main(argv)
