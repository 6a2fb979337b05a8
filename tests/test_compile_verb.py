"""``python -m mobilenet_tvm.compile``: which records it takes, and what it refuses."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from mobilenet_tvm import compile as compile_verb
from mobilenet_tvm import targets
from mobilenet_tvm.cli import artifact, served
from mobilenet_tvm.errors import CheckFailedError
from mobilenet_tvm.records import extract_tasks, parse_line, write_run
from mobilenet_tvm.search import AutoTvmSearcher, Trial

from .conftest import run_here

TINY = ("--alpha", "0.25", "--resolution", "32")


@pytest.fixture(scope="module")
def job():
    """The tiny model, imported once."""
    parser = argparse.ArgumentParser()
    artifact.add_artifact_options(parser)
    return artifact.prepare(parser.parse_args(TINY))


@pytest.fixture
def tiny(job, monkeypatch):
    """Runs the verb on the tiny model; the exit status."""

    def run(folder: Path, *options: object) -> int:
        return compile_verb.main([*TINY, "-o", str(folder), *map(str, options)])

    def prepared(args: argparse.Namespace) -> artifact.Job:
        return dataclasses.replace(
            job, folder=args.output, threads=args.threads, schedules=args.schedules
        )

    monkeypatch.setattr(artifact, "prepare", prepared)
    return run


@pytest.fixture(autouse=True)
def shipped(monkeypatch, tmp_path) -> Path:
    """The folder of the shipped logs of the tiny model's preset; there are none."""
    folder = tmp_path / "package"
    monkeypatch.setattr(served.tuning_logs, "__path__", [str(folder)])
    return folder / targets.resolve("x86").name


@pytest.fixture
def taken(monkeypatch) -> list[dict]:
    """The best records that the verb would have compiled with."""
    seen = []

    def compile_and_check(job, best, args, out):
        seen.append(best)
        return None, None, {"tuned": len(best)}

    monkeypatch.setattr(artifact, "compile_and_check", compile_and_check)
    return seen


def line_of(task, trial) -> str:
    return AutoTvmSearcher(task, trials=1, seed=0).record_line(trial)


@pytest.fixture(scope="module")
def lines(job) -> list[str]:
    """A record line of each task of the tiny model."""
    trials = (Trial(task.candidates[0], (1e-5,)) for task in job.tasks)
    return [line_of(task, t) for task, t in zip(job.tasks, trials, strict=True)]


@pytest.fixture
def logs(lines, tmp_path) -> Path:
    folder = tmp_path / "logs" / "somewhere"
    folder.mkdir(parents=True)
    half = len(lines) // 2
    (folder / "a.autotvm.jsonl").write_text("\n".join(lines[:half]) + "\n")
    (folder / "b.autotvm.jsonl").write_text("\n".join(lines[half:]) + "\n")
    return tmp_path / "logs"


def test_records_of_all_files_of_a_folder_are_taken(tiny, taken, job, logs, tmp_path, capsys):
    assert tiny(tmp_path, "--logs", logs, "--require-tuned", "--json") == 0
    assert set(taken[0]) == {task.key for task in job.tasks}
    assert json.loads(capsys.readouterr().out) == {"tuned": len(job.tasks)}


def test_of_several_logs_the_fastest_record_is_taken(tiny, taken, job, logs, tmp_path):
    task = job.tasks[0]
    slow, fast = (line_of(task, Trial(task.candidates[1], (s,))) for s in (2e-5, 5e-6))
    more = tmp_path / "more.jsonl"
    more.write_text(f"{slow}\n{fast}\n{slow}\n")
    assert tiny(tmp_path, "--logs", more, logs) == 0
    assert taken[0][task.key].line == fast
    assert len(taken[0]) == len(job.tasks)


def run_file(log: Path, **changes: object) -> None:
    """Say of a log that this machine measured it, but for ``changes``."""
    write_run(log, run_here(**changes))


def test_what_this_machine_measured_needs_no_warning(tiny, taken, logs, tmp_path, capsys):
    run_file(logs / "somewhere" / "a.autotvm.jsonl")
    assert tiny(tmp_path, "--logs", logs) == 0
    assert capsys.readouterr().err == ""


def test_logs_of_other_machines_and_threads_are_one_warning(
    tiny, taken, job, logs, tmp_path, capsys
):
    a, b = (logs / "somewhere" / f"{name}.autotvm.jsonl" for name in "ab")
    run_file(a, cpu="a CPU of theirs")
    run_file(b, threads=4)
    assert tiny(tmp_path, "--logs", logs) == 0
    assert len(taken[0]) == len(job.tasks)
    said = capsys.readouterr().err
    assert said.count("warning: ") == said.count("\n") == 1
    assert f"{a} was measured on a CPU of theirs with --threads 1 (and 1 more logs" in said
    assert f"this is {targets.cpu_name()} with --threads 1: " in said


def test_a_log_for_another_machine_is_of_another_machine(
    tiny, taken, logs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(targets.Preset, "runs_here", lambda _self: False)
    log = logs / "somewhere" / "a.autotvm.jsonl"
    run_file(log, cpu="a CPU of theirs")
    assert tiny(tmp_path, "--logs", log) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("timing", "words"),
    [
        ("emulated", "they say which schedules run, and nothing of their speed"),
        ("estimated", "they rank schedules, and say nothing of their speed"),
    ],
)
def test_times_that_nobody_measured_are_taken_with_a_warning(
    tiny, taken, logs, tmp_path, capsys, timing, words
):
    log = logs / "somewhere" / "a.autotvm.jsonl"
    run_file(log, cpu="an emulator", timing=timing)
    assert tiny(tmp_path, "--logs", log) == 0
    assert taken[0]
    said = capsys.readouterr().err
    assert said == f"warning: {log} holds {timing} times, not measured ones: {words}\n"


@pytest.mark.parametrize("timing", ["emulated", "estimated"])
def test_beside_measured_times_others_are_left_out(
    tiny, taken, job, lines, logs, tmp_path, capsys, timing
):
    """An emulator's microsecond must not win against a measured one."""
    measured, other = (logs / "somewhere" / f"{name}.autotvm.jsonl" for name in "ab")
    run_file(measured)
    line = json.loads(lines[0])
    line["result"][0] = [1e-12]
    other.write_text(json.dumps(line) + "\n")
    run_file(other, cpu="another", timing=timing)
    assert tiny(tmp_path, "--logs", logs) == 0
    assert min(record.cost_s for record in taken[0].values()) > 1e-9
    assert f"{other}: left out beside logs of measured times" in capsys.readouterr().err


@pytest.fixture
def ansor_line(job, monkeypatch) -> str:
    """A line of a task that Ansor's extraction would find, which is not called here."""
    key, target = '["0123", 1]', str(job.tasks[0].handle.target)
    task = dataclasses.replace(job.tasks[0], key=key, searcher="ansor", default=None)
    monkeypatch.setattr(compile_verb, "extract_ansor_tasks", lambda *_args, **_options: (task,))
    numbers = [1, 64, 64, 0, 0, 0, 0, 0]
    inputs = [[key, target, numbers, "", 0, []], [[], [["SP", 2, 0, 4, [4], 1]]]]
    return json.dumps({"i": inputs, "r": [[1e-6], 0, 0.1, 1], "v": "v0.6"})


def test_logs_of_both_searchers_are_taken(tiny, taken, logs, ansor_line, tmp_path):
    (logs / "somewhere" / "a.ansor.jsonl").write_text(ansor_line + "\n")
    assert tiny(tmp_path, "--logs", logs) == 0
    assert {record.searcher for record in taken[0].values()} == {"autotvm", "ansor"}


def test_the_usual_logs_are_those_of_both_searchers(tiny, taken, job, lines, ansor_line, tmp_path):
    for searcher, line in (("autotvm", lines[0]), ("ansor", ansor_line)):
        log = dataclasses.replace(job, folder=tmp_path).log_of(searcher)
        assert log.name == f"mobilenet_v1_0.25_32.{searcher}.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(line + "\n")
    assert tiny(tmp_path) == 0
    assert sorted(record.searcher for record in taken[0].values()) == ["ansor", "autotvm"]


def test_ansors_tasks_are_found_only_for_its_records(tiny, taken, logs, tmp_path, monkeypatch):
    def never(*_args, **_options):
        raise AssertionError("it takes seconds")

    monkeypatch.setattr(compile_verb, "extract_ansor_tasks", never)
    assert tiny(tmp_path, "--logs", logs) == 0
    assert taken[0]


def test_an_empty_folder_is_not_tuned(tiny, tmp_path, capsys):
    assert tiny(tmp_path, "--require-tuned", "--json") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: 0 of ")
    assert captured.err.count("\n") == 1
    for words in ("depthwise 3x3", "; ...", "python -m mobilenet_tvm.tune"):
        assert words in captured.err
    assert json.loads(captured.out)["exit_code"] == 1
    assert list(tmp_path.iterdir()) == []


def test_one_missing_task_is_named(tiny, logs, lines, tmp_path, capsys):
    (logs / "somewhere" / "a.autotvm.jsonl").write_text("\n".join(lines[1 : len(lines) // 2]))
    assert tiny(tmp_path, "--logs", logs, "--require-tuned") == 1
    said = capsys.readouterr().err
    assert f"{len(lines) - 1} of {len(lines)} tasks tuned" in said
    assert "no record for conv 3x3/2 3->8 @ 32x32: " in said


def test_without_a_log_it_says_so_and_goes_on(tiny, taken, tmp_path, capsys):
    assert tiny(tmp_path) == 0
    assert taken == [{}]
    said = capsys.readouterr().err
    assert said.startswith("warning: no log at ")
    assert "python -m mobilenet_tvm.tune" in said


def shipped_log(folder: Path, lines: list[str], name: str = "a", **changes: object) -> Path:
    """A shipped log of measured times, by default of another machine's one thread."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.autotvm.jsonl"
    log.write_text("".join(f"{line}\n" for line in lines))
    run_file(log, **{"cpu": "a CPU of theirs", **changes})
    return log


def test_without_a_log_the_shipped_ones_serve(tiny, taken, shipped, lines, tmp_path, capsys):
    shipped_log(shipped, lines[:-2])
    assert tiny(tmp_path) == 0
    assert len(taken[0]) == len(lines) - 2
    captured = capsys.readouterr()
    count = len(lines)
    said = f"records   {count - 2} of {count} tasks by shipped records, 2 untuned\n"
    assert (captured.out, captured.err) == (said, "")  # what machine it was goes without saying


def test_the_nearest_shapes_serve_what_has_no_record(
    tiny, taken, job, shipped, lines, tmp_path, capsys
):
    """Two layers of the tiny model that differ by little, one of which has no record."""
    tasks = {task.label: task for task in job.tasks}
    lender, taker = (tasks[f"pointwise 1x1 {shape} @ 2x2"] for shape in ("64->128", "128->128"))
    config = next(one for one in lender.candidates[::-1] if one != lender.default)
    trials = (Trial(config, (1e-6,)), Trial(lender.default, (2e-6,)))
    others = [
        line for task, line in zip(job.tasks, lines, strict=True) if task not in (lender, taker)
    ]
    shipped_log(shipped, others + [line_of(lender, trial) for trial in trials])
    assert tiny(tmp_path) == 0
    count = len(lines)
    shown = f"{count - 1} of {count} tasks by shipped records, 1 by the nearest shape\n"
    assert capsys.readouterr().out == f"records   {shown}"
    assert taker.key in taken[0]
    assert tiny(tmp_path, "--no-transfer") == 0
    assert taker.key not in taken[1]
    assert tiny(tmp_path, "--require-tuned") == 0  # counted elsewhere: see artifact


def test_a_transferred_record_is_not_a_tuned_task(tiny, job, monkeypatch, tmp_path, capsys):
    key = job.tasks[3].key
    lent = dataclasses.replace(job, folder=tmp_path, transferred=frozenset({key}))
    monkeypatch.setattr(artifact, "prepare", lambda _args: lent)
    best = {task.key: parse_line(line_of(task, Trial(task.default, (1e-6,)))) for task in job.tasks}
    plans = artifact.make_plans(lent.relay.module, lent.tasks, best)
    with pytest.raises(
        CheckFailedError, match=f"{len(best) - 1} of {len(best)} tasks tuned"
    ) as error:
        artifact._tuned_plans(lent, plans, best)
    assert f"no record for {job.tasks[3].label}: " in str(error.value)


@pytest.mark.parametrize(
    ("counts", "threads", "chosen"), [((1, 2), 2, 2), ((1, 4), 3, 4), ((1, 4), 1, 1), ((1,), 2, 1)]
)
def test_of_the_shipped_logs_those_of_the_nearest_threads_serve(
    tiny, taken, job, shipped, tmp_path, capsys, counts, threads, chosen, monkeypatch
):
    monkeypatch.setattr(artifact, "check_threads", lambda _counts: None)
    task = job.tasks[1]
    for count in counts:
        line = line_of(task, Trial(task.candidates[count], (1e-6 / count,)))
        shipped_log(shipped, [line], f"{count}", threads=count)
    assert tiny(tmp_path, "--threads", threads) == 0
    assert taken[0][task.key].config == task.candidates[chosen]
    said = capsys.readouterr().out
    told = f"; 1 of them were measured with --threads {chosen}, not {threads}" in said
    assert told == (chosen != threads)


def test_schedules_for_fewer_threads_serve_only_what_is_timed(
    tiny, taken, shipped, lines, tmp_path, monkeypatch
):
    shipped_log(shipped, lines)
    monkeypatch.setattr(artifact.gpus, "runs_here", lambda _preset: False)
    assert tiny(tmp_path, "--threads", 2) == 0
    assert taken == [{}]
    assert tiny(tmp_path) == 0
    assert len(taken[1]) == len(lines)


def test_estimated_times_of_the_very_layers_serve(tiny, taken, shipped, lines, tmp_path, capsys):
    shipped_log(shipped, lines, timing="estimated")
    assert tiny(tmp_path) == 0
    assert len(taken[0]) == len(lines)
    assert "; their times are estimates\n" in capsys.readouterr().out
    shipped_log(shipped, lines, timing="emulated")
    assert tiny(tmp_path) == 0
    assert taken[1] == {}


def test_logs_none_compiles_untuned(tiny, taken, shipped, lines, tmp_path, capsys):
    shipped_log(shipped, lines)
    assert tiny(tmp_path, "--logs", "none") == 0
    assert taken == [{}]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_ones_own_log_comes_before_the_shipped(tiny, taken, job, shipped, lines, tmp_path):
    shipped_log(shipped, lines)
    log = dataclasses.replace(job, folder=tmp_path).log_of("autotvm")
    log.parent.mkdir(parents=True)
    log.write_text(lines[0] + "\n")
    assert tiny(tmp_path) == 0
    assert list(taken[0]) == [job.tasks[0].key]


def older(line: str, task) -> str:
    """A record of a template that had other knobs at this index."""
    fields = json.loads(line)
    at = fields["config"]["index"]
    fields["config"]["index"] = next(one for one in task.candidates if one != at)
    return json.dumps(fields)


def test_ones_own_log_of_older_schedules_does_not_hide_the_shipped(
    tiny, taken, job, shipped, lines, tmp_path, capsys
):
    shipped_log(shipped, lines)
    log = dataclasses.replace(job, folder=tmp_path).log_of("autotvm")
    log.parent.mkdir(parents=True)
    log.write_text(older(lines[0], job.tasks[0]) + "\n")
    assert tiny(tmp_path) == 0
    assert len(taken[0]) == len(lines)
    captured = capsys.readouterr()
    count = len(lines)
    assert captured.out == f"records   {count} of {count} tasks by shipped records\n"
    assert captured.err.startswith("warning: 1 records are of another version of the schedules")
    assert captured.err.count("warning: ") == 1
    # One that is of today is enough for one's own to come first.
    log.write_text(older(lines[0], job.tasks[0]) + "\n" + lines[1] + "\n")
    assert tiny(tmp_path) == 0
    assert list(taken[1]) == [job.tasks[1].key]


@pytest.mark.parametrize("named", [False, True])
def test_where_all_records_are_of_older_schedules_that_is_all_that_is_said(
    tiny, taken, job, lines, tmp_path, capsys, named
):
    log = dataclasses.replace(job, folder=tmp_path).log_of("autotvm")
    log.parent.mkdir(parents=True)
    log.write_text(older(lines[0], job.tasks[0]) + "\n")
    assert tiny(tmp_path, *(("--logs", log) if named else ())) == 0
    assert taken == [{}]
    said = capsys.readouterr().err
    assert said.startswith("warning: 1 records are of another version of the schedules")
    assert said.count("warning: ") == 1


def test_of_ones_own_logs_that_of_the_right_threads_is_taken(tiny, taken, job, tmp_path, capsys):
    here = dataclasses.replace(job, folder=tmp_path)
    task = job.tasks[0]
    for threads in (1, 2):
        log = dataclasses.replace(here, threads=threads).log_of("autotvm")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(line_of(task, Trial(task.candidates[threads], (1e-6,))) + "\n")
        run_file(log, threads=threads)
    for threads in (1, 2):
        assert tiny(tmp_path, "--threads", threads) == 0
        assert taken[-1][task.key].config == task.candidates[threads]
    assert capsys.readouterr().err == ""


def test_each_kind_of_log_has_a_name_of_its_own(job):
    names = [
        dataclasses.replace(job, threads=threads, schedules=schedules).log_of("autotvm").name
        for schedules in ("best", "stock")
        for threads in (1, 2)
    ]
    assert names == [
        f"mobilenet_v1_0.25_32{infix}.autotvm.jsonl"
        for infix in ("", ".2-threads", ".stock", ".stock.2-threads")
    ]


def test_tvms_own_templates_come_in_with_their_records(
    tiny, job, shipped, lines, tmp_path, monkeypatch
):
    seen = []

    def compile_and_check(job, best, args, out):
        seen.append((job, best))
        return None, None, {}

    monkeypatch.setattr(artifact, "compile_and_check", compile_and_check)
    stock = extract_tasks(job.relay.module, job.preset, schedules="stock")
    assert not {task.key for task in stock} & {task.key for task in job.tasks}
    theirs = [line_of(task, Trial(task.candidates[0], (1e-6,))) for task in stock[:2]]
    shipped_log(shipped, [*lines, *theirs])
    for schedules, count in (("best", len(stock)), ("ours", 0)):
        assert tiny(tmp_path, "--schedules", schedules) == 0
        given, best = seen.pop()
        assert len(given.stock_tasks) == count
        assert sum(task.key in best for task in stock) == (2 if count else 0)
        # Theirs are of this very model, or of none.
        assert not {task.key for task in stock} & given.transferred


def test_bad_lines_are_named_and_left_out(tiny, taken, logs, lines, tmp_path, capsys):
    log = logs / "somewhere" / "a.autotvm.jsonl"
    log.write_text("no record\n" + log.read_text())
    assert tiny(tmp_path, "--logs", log) == 0
    assert len(taken[0]) == len(lines) // 2
    assert f"{log}: line 1" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--logs", "{folder}"), ("--logs", "{folder}/none.jsonl")])
def test_a_log_that_is_not_there_is_2(tiny, tmp_path, capsys, options):
    assert tiny(tmp_path / "out", *(o.format(folder=tmp_path) for o in options)) == 2
    assert "error: no " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "z80"], "unknown target 'z80'"),
        (["--alpha", "0"], "alpha 0 is outside"),
        (["--threads", "4096"], "--threads 4096: give 1 to "),
        (["--resolution", "100"], "96 or 128"),
        (["--images", "{folder}"], "no photos in"),
        (["--labels", "{folder}"], "cannot read the labels"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(tmp_path, capsys, options, words):
    argv = [*TINY, "-o", str(tmp_path / "out"), *(o.format(folder=tmp_path) for o in options)]
    assert compile_verb.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
