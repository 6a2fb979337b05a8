"""Finals: which build has which finalist, when there are none, and what fails without harm."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import filelock
import pytest

from mobilenet_tvm import frontend, targets, tune, zoo
from mobilenet_tvm.bench.in_model import InModel
from mobilenet_tvm.build.manifest import read_manifest
from mobilenet_tvm.cli import finals
from mobilenet_tvm.cli.finals import play_finals
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.records import Record, Task, extract_tasks, parse_line, read_log
from mobilenet_tvm.records.lines import with_in_model
from mobilenet_tvm.search import AutoTvmSearcher, Trial

TINY = ("--alpha", "0.25", "--resolution", "32", "--tuner", "autotvm", "--no-bench")
FOUR = argparse.Namespace(finalists=4, seed=0)


class Said:
    """An output that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    warn = line

    def working(self, text: str) -> Any:
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def tasks() -> tuple[Task, ...]:
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    return extract_tasks(relay.module, targets.resolve("x86-avx512"))[1:3]


def record(task: Task, candidate: int, cost_s: float) -> Record:
    searcher = AutoTvmSearcher(task, trials=1, seed=0)
    return parse_line(searcher.record_line(Trial(task.candidates[candidate], (cost_s,))))


class World:
    """A job with a log of two tasks, and what its builds were given."""

    def __init__(self, tasks: tuple[Task, ...], folder: Path) -> None:
        self.log = folder / "tuning_logs" / "net.autotvm.jsonl"
        one, other = tasks
        self.records = [record(one, i, 1.0 + i / 100) for i in range(3)]
        self.records += [record(other, i, 1.0 + i / 100) for i in range(2)]
        self.write()
        self.builds: list[dict[str, Record]] = []
        self.said = Said()
        self.job: Any = SimpleNamespace(
            templates="ours",
            device=SimpleNamespace(here=True),
            tasks=tasks,
            artifact=folder / "net.so",
            relay=None,
            preset=None,
            info=SimpleNamespace(digest="sha256:net"),
            linker=None,
            threads=1,
            log_of=lambda searcher: self.log,
        )

    def write(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_text("".join(f"{one.line}\n" for one in self.records))

    def play(self, args: argparse.Namespace = FOUR) -> list[Record]:
        return play_finals(self.job, self.records, args, cast("Any", self.said))


@pytest.fixture
def world(tasks: tuple[Task, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tasks, tmp_path)

    def compile_model(*_args: object, best: dict[str, Record], **_options: object) -> None:
        made.builds.append(best)

    def time_in_model(paths: list[Path], *, threads: int, seed: int) -> InModel:
        lines = {one.line for best in made.builds for one in best.values()}
        return InModel({one.line: 1e-3 for one in made.records if one.line in lines})

    monkeypatch.setattr(finals, "compile_model", compile_model)
    monkeypatch.setattr(finals, "time_in_model", time_in_model)
    return made


def test_each_build_has_another_finalist_of_every_layer(world: World) -> None:
    found = world.play()
    one, other = world.job.tasks
    first, second, third = (world.records[i].line for i in range(3))
    assert [best[one.key].line for best in world.builds][:3] == [first, second, third]
    fourth, fifth = (world.records[i].line for i in (3, 4))
    assert [best[other.key].line for best in world.builds][:3] == [fourth, fifth, fourth]
    assert [one.in_model_s for one in found] == [1e-3] * 5
    assert read_log(world.log, pytest.fail) == found
    assert world.said.lines == ["finals    5 configurations of 2 tasks timed in the model"]


def test_they_are_not_repeated_until_there_is_another_finalist(world: World) -> None:
    world.records = world.play()
    world.builds.clear()
    assert world.play() == world.records
    assert not world.builds
    world.records.append(record(world.job.tasks[0], 3, 0.99))
    world.write()
    assert world.play()[-1].in_model_s == 1e-3
    assert len(world.builds) == 4
    # Times of another model are none of this one's.
    world.builds.clear()
    world.records = [with_in_model(one, one.in_model_s, "sha256:other") for one in world.play()]
    world.write()
    world.play()
    assert world.builds


def test_a_layer_that_cannot_be_timed_does_not_have_them_repeated(world: World) -> None:
    world.records = world.play()
    world.records[3:] = [with_in_model(one, None) for one in world.records[3:]]
    world.builds.clear()
    assert world.play() == world.records
    assert not world.builds


def test_where_there_is_nothing_to_compare_there_are_none(world: World) -> None:
    assert world.play(argparse.Namespace(finalists=1, seed=0)) == world.records
    for name, value in (("templates", "stock"), ("device", SimpleNamespace(here=False))):
        before = getattr(world.job, name)
        setattr(world.job, name, value)
        assert world.play() == world.records
        setattr(world.job, name, before)
    world.records = [world.records[0], world.records[3]]
    assert world.play() == world.records
    assert not world.builds
    assert not world.said.lines


def test_records_of_an_older_template_are_no_finalists(world: World) -> None:
    fields = json.loads(world.records[1].line)
    fields["config"]["entity"][0][2] = 77
    stale = parse_line(json.dumps(fields))
    world.records[1] = stale
    world.write()
    assert [one.in_model_s for one in world.play()] == [1e-3, None, 1e-3, 1e-3, 1e-3]
    assert all(stale not in best.values() for best in world.builds)


@pytest.mark.parametrize("kind", ["cannot be linked", "cannot be timed", "crashed", "held", "full"])
def test_finals_that_fail_change_nothing(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> Callable[..., None]:
        def failing(*_args: object, **_options: object) -> None:
            raise error

        return failing

    before = world.log.read_bytes()
    with contextlib.ExitStack() as stack:
        if kind == "held":
            stack.enter_context(filelock.FileLock(f"{world.log}.lock"))
        elif kind == "full":
            full = fail(DeviceError("no space left"))
            monkeypatch.setattr("mobilenet_tvm.records.log.write_together", full)
        elif kind == "cannot be timed":
            monkeypatch.setattr(finals, "time_in_model", fail(UsageError("several outputs")))
        else:
            error = DeviceError(kind) if kind == "cannot be linked" else RuntimeError(kind)
            monkeypatch.setattr(finals, "compile_model", fail(error))
        assert world.play() == world.records
    (said,) = world.said.lines
    assert said.startswith("no finals: ")
    assert said.endswith("; of each layer the fastest alone is taken")
    assert world.log.read_bytes() == before
    assert not list(world.job.artifact.parent.glob(".candidates-*"))


def test_a_build_that_computes_something_else_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finals, "time_in_model", lambda *_args, **_options: InModel({}, (2,)))
    assert world.play() == world.records
    assert "finalist 3 computes something else" in world.said.lines[0]


@pytest.mark.slow
def test_tune_plays_them_and_builds_with_the_winners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenet_tvm.bench.in_model._ROUND_MS", 20.0)
    options = [*TINY, "--trials", "2", "--no-transfer", "--json", "-o", str(tmp_path)]
    options.append("--require-tuned")  # or the untuned build might be the fastest
    assert tune.main(options) == 0
    said = capsys.readouterr()
    payload = json.loads(said.out)
    (log,) = map(Path, payload["logs"])
    timed = [one for one in read_log(log, pytest.fail) if one.in_model_s is not None]
    assert f"finals    {len(timed)} configurations of {payload['tasks']} tasks" in said.err
    assert len(timed) > payload["tasks"] == len({one.key for one in timed})
    used = [parse_line(line) for line in read_manifest(Path(payload["artifact"])).tuning.records]
    assert len(used) == payload["tasks"]
    for one in used:
        assert one.in_model_s is not None
        for rival in timed:
            assert rival.in_model_s is not None
            assert rival.key != one.key or one.in_model_s <= 1.01 * rival.in_model_s
    before = log.read_bytes()
    assert tune.main(options) == 0
    assert "finals" not in capsys.readouterr().err
    assert log.read_bytes() == before
