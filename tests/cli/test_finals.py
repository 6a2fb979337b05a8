"""Finalists: which build has which, whose time is whose, and when there is no final."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mobilenet_tvm import tune
from mobilenet_tvm.bench.in_model import InModel
from mobilenet_tvm.build.manifest import LayerInfo, read_manifest
from mobilenet_tvm.cli import finals
from mobilenet_tvm.cli.finals import attribute, play_finals
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Record, Task, parse_line, read_log

TINY = ("--alpha", "0.25", "--resolution", "32", "--tuner", "autotvm", "--no-bench")


def task(key: str, label: str) -> Task:
    handle = SimpleNamespace(target="llvm")
    return Task(key, label, flops=1.0, weight=1, candidates=(0, 1), default=0, handle=handle)


def record(key: str, config: int) -> Record:
    return Record(key, config, 1.0, 0, "", "llvm")


def test_times_go_to_the_finalist_that_the_build_had() -> None:
    tasks = [task("a", "A"), task("b", "B"), task("twin", "T"), task("other twin", "T")]
    layers = tuple(LayerInfo("k", task=label) for label in ("A", "B", None, "A", "T"))
    line_ups = {
        "a": [record("a", 7), record("a", 8), record("a", 9)],
        "b": [record("b", 5), record("b", 6)],
        "twin": [record("twin", 1), record("twin", 2)],
    }
    times_us = np.array(
        [[1.0, 10.0, 99.0, 3.0, 1.0], [4.0, 20.0, 99.0, 6.0, 1.0], [5.0, 30.0, 99.0, 5.0, 1.0]]
    )
    found = attribute(InModel(layers, times_us), tasks, line_ups)
    assert found == pytest.approx(
        {
            ("a", "llvm", 7): 2e-6,  # of both layers that it has
            ("a", "llvm", 8): 5e-6,
            ("a", "llvm", 9): 5e-6,
            ("b", "llvm", 5): 20e-6,  # of the first build and the third
            ("b", "llvm", 6): 20e-6,
        }
    )
    times_us[1] = math.inf  # it computes something else
    assert set(attribute(InModel(layers, times_us), tasks, line_ups)) == {
        *(("a", "llvm", 7), ("a", "llvm", 9), ("b", "llvm", 5))
    }


class Said:
    """An output that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    warn = line

    def working(self, text: str) -> Any:
        return contextlib.nullcontext()


def test_where_there_is_nothing_to_compare_there_is_no_final(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("it is built")

    monkeypatch.setattr(finals, "compile_model", never)
    here = SimpleNamespace(here=True)
    job: Any = SimpleNamespace(templates="ours", device=here, tasks=[task("a", "A")])
    args, out = argparse.Namespace(finalists=4), cast("Any", Said())
    two = [record("a", 0), record("a", 1)]
    assert play_finals(job, [two[0]], args, out)[0] is two[0]
    timed = [dataclasses.replace(one, in_model_s=1.0) for one in two]
    assert play_finals(job, timed, args, out) == timed
    assert play_finals(job, two, argparse.Namespace(finalists=1), out) == two
    for change in ({"templates": "stock"}, {"device": SimpleNamespace(here=False)}):
        other = SimpleNamespace(**{**vars(job), **change})
        assert play_finals(cast("Any", other), two, args, out) == two
    assert out.lines == []


def test_a_final_that_fails_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise DeviceError("the linker failed")

    monkeypatch.setattr(finals, "compile_model", fails)
    job: Any = SimpleNamespace(
        templates="ours",
        device=SimpleNamespace(here=True),
        tasks=[task("a", "A")],
        artifact=tmp_path / "net.so",
        relay=None,
        preset=None,
        info=None,
        linker=None,
    )
    out, two = cast("Any", Said()), [record("a", 0), record("a", 1)]
    assert play_finals(job, two, argparse.Namespace(finalists=4), out) == two
    assert out.lines == ["nothing is known of the layers in the model: the linker failed"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tune_plays_them_and_builds_with_the_winners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenet_tvm.bench.in_model._ROUND_MS", 20.0)
    options = [*TINY, "--trials", "2", "--no-transfer", "--json", "-o", str(tmp_path)]
    assert tune.main(options) == 0
    said = capsys.readouterr()
    payload = json.loads(said.out)
    (log,) = map(Path, payload["logs"])
    timed = [one for one in read_log(log, pytest.fail) if one.in_model_s is not None]
    assert f"finals    {len(timed)} configurations of {payload['tasks']} tasks" in said.err
    assert len(timed) > payload["tasks"] == len({one.key for one in timed})
    # What the tuned build has are the winners.
    used = read_manifest(Path(payload["artifact"])).tuning.records
    if used:  # else the untuned defaults were faster end to end
        best = {one.key: one for one in map(parse_line, used)}
        for one in best.values():
            rivals = [x for x in timed if x.key == one.key and x.in_model_s is not None]
            assert one.in_model_s is not None
            assert one.in_model_s <= 1.01 * min(x.in_model_s for x in rivals if x.in_model_s)
    before = log.read_bytes()
    assert tune.main(options) == 0
    assert "finals" not in capsys.readouterr().err
    assert log.read_bytes() == before
