"""``python -m mobilenet_tvm.compile``: which records it takes, and what it refuses."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from mobilenet_tvm import compile as compile_verb
from mobilenet_tvm.cli import artifact
from mobilenet_tvm.search import Trial
from mobilenet_tvm.search.tuning import record_line

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

    monkeypatch.setattr(
        artifact, "prepare", lambda args: dataclasses.replace(job, folder=args.output)
    )
    return run


@pytest.fixture
def taken(monkeypatch) -> list[dict]:
    """The best records that the verb would have compiled with."""
    seen = []

    def compile_and_check(job, best, args, out):
        seen.append(best)
        return None, None, {"tuned": len(best)}

    monkeypatch.setattr(artifact, "compile_and_check", compile_and_check)
    return seen


@pytest.fixture(scope="module")
def lines(job) -> list[str]:
    """A record line of each task of the tiny model."""
    trials = (Trial(task.candidates[0], (1e-5,)) for task in job.tasks)
    return [record_line(task, t) for task, t in zip(job.tasks, trials, strict=True)]


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
    slow, fast = (record_line(task, Trial(task.candidates[1], (s,))) for s in (2e-5, 5e-6))
    more = tmp_path / "more.jsonl"
    more.write_text(f"{slow}\n{fast}\n{slow}\n")
    assert tiny(tmp_path, "--logs", more, logs) == 0
    assert taken[0][task.key].line == fast
    assert len(taken[0]) == len(job.tasks)


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
