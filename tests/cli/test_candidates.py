"""Candidates built, checked and decided upon; nothing is compiled or timed here."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mobilenet_tvm import targets
from mobilenet_tvm.bench.decide import Choice
from mobilenet_tvm.build import Plan, UnusablePlanError
from mobilenet_tvm.build.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModelInfo,
    TargetInfo,
    ToolchainInfo,
    TuningInfo,
    read_manifest,
    sha256_file,
    write_manifest,
)
from mobilenet_tvm.cli import artifact, candidates
from mobilenet_tvm.cli.frame import Output, VerbFailedError
from mobilenet_tvm.errors import DeviceError

TRANSFORMS = {"autotvm": 1, "ansor": 2, "mix": 9, "untuned": 1, "stock": 20}
PLANS = (
    Plan("autotvm", (), 0.010),
    Plan("ansor", (0, 1), 0.012),
    Plan("mix", (1,), 0.009),
    Plan("fastest", (0,), 0.020, "estimated 2.2x the time of mix"),
)


class Parity:
    """As much of a ``ParityResult`` as is looked at."""

    def __init__(self, passed: bool) -> None:
        self.passed = passed

    def __bool__(self) -> bool:
        return self.passed

    def summary(self) -> str:
        return "parity passed" if self.passed else "parity failed: off by 0.5"

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed}


class World:
    """Compiles, checks and measures in nothing; what it should find can be set."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unusable: set[str] = set()
        self.wrong: set[str] = set()
        self.crashing: set[str] = set()
        self.hanging: set[str] = set()
        self.times_ms = {"autotvm": 10.0, "ansor": 12.0, "mix": 9.0, "untuned": 8.0}
        self.built: list[str] = []
        self.given: dict[str, dict[str, Any]] = {}
        self.rivals: tuple[Plan, ...] = ()
        self.compared: list[str] = []
        self.text = io.StringIO()
        self.errors = io.StringIO()
        self.out = Output(Console(file=self.text, width=90), Console(file=self.errors, width=300))
        self.preset = targets.resolve("x86")
        self.job = artifact.Job(
            relay=SimpleNamespace(module=None),  # type: ignore[arg-type]
            info=ModelInfo("net", "sha256:00"),
            preset=self.preset,
            tasks=(),
            preprocessing=None,
            labels=None,
            images=(),
            folder=folder,
        )
        monkeypatch.setattr(candidates, "compile_model", self.compile_model)
        monkeypatch.setattr(candidates, "check_artifact", self.check_artifact)
        monkeypatch.setattr(candidates, "decide", self.decide)
        self.plans: tuple[Plan, ...] = PLANS
        monkeypatch.setattr(artifact, "make_plans", self.make_plans)
        monkeypatch.setattr(artifact, "rivals", lambda *_args, **_options: self.rivals)

    def make_plans(self, *_args: Any, bytes_per_s: float) -> tuple[Plan, ...]:
        self.bytes_per_s = bytes_per_s
        return self.plans

    def compile_model(
        self, relay: Any, preset: Any, path: Path, *, plan: Plan, **options: Any
    ) -> Manifest:
        self.built.append(plan.name)
        self.given[plan.name] = options
        if plan.name in self.unusable:
            raise UnusablePlanError(f"plan {plan.name} cannot be built: no record")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(plan.name)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name="net",
            model=ModelInfo("net", "sha256:00"),
            inputs=(),
            outputs=(),
            target=TargetInfo(preset.name, preset.target, preset.arch, ()),
            toolchain=ToolchainInfo("0", "0", "0"),
            tuning=TuningInfo(2, 2 * plan.records, layout_transforms=TRANSFORMS[plan.name]),
            so_sha256=sha256_file(path),
        )
        write_manifest(path, manifest)
        return manifest

    def check_artifact(self, path: Path, **_options: Any) -> Parity:
        if path.read_text() in self.crashing:
            raise DeviceError(f"{path.read_text()} died of SIGSEGV")
        return Parity(path.read_text() not in self.wrong)

    def decide(self, built: Any, **options: Any) -> Choice:
        self.compared = [one.name for one in built]
        self.options = options
        for name in self.hanging & set(self.compared):
            raise DeviceError(f"the bench worker of {name} gave no answer within 60 s")
        chosen = min(self.compared, key=lambda name: self.times_ms[name])
        times = {name: self.times_ms[name] for name in self.compared}
        ratio = {name: time / times[chosen] for name, time in times.items()}
        return Choice(chosen, times, ratio, "fastest of some", ("it was loud",))

    def run(self, **changes: Any) -> Any:
        args = SimpleNamespace(
            **{"require_tuned": False, "no_check": False, "threads": 2, **changes}
        )
        return artifact.compile_and_check(self.job, {}, args, self.out)  # type: ignore[arg-type]

    def decision(self) -> dict[str, Any]:
        return {one.name: one for one in read_manifest(self.job.artifact).decision}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path / "out", monkeypatch)


@pytest.mark.parametrize(
    ("preset", "bytes_per_s"), [("x86", 40e9), ("cuda-sm80", 1555e9), ("jetson-orin", 204.8e9)]
)
def test_plans_are_estimated_for_the_presets_own_memory(
    world: World, preset: str, bytes_per_s: float
) -> None:
    world.job = dataclasses.replace(world.job, preset=targets.resolve(preset))
    world.run(no_check=True)
    assert world.bytes_per_s == bytes_per_s


def test_the_fastest_becomes_the_artifact_and_the_manifest_says_why(world: World) -> None:
    manifest, parity, payload = world.run()
    assert world.job.artifact.read_text() == "mix"
    assert sorted(os.listdir(world.job.folder)) == [
        f"net.{world.preset.name}.manifest.json",
        f"net.{world.preset.name}.so",
    ]
    assert manifest == read_manifest(world.job.artifact)
    assert manifest.so_sha256 == sha256_file(world.job.artifact)
    assert bool(parity)
    told = world.decision()
    assert list(told) == ["autotvm", "ansor", "mix", "fastest"]
    assert (told["mix"].chosen, told["mix"].why) == (True, "fastest of some")
    assert (told["mix"].median_ms, told["mix"].ratio) == (9.0, 1.0)
    assert told["ansor"].why == "1.33x the time of mix"
    assert told["ansor"].ratio == pytest.approx(12 / 9)
    assert [one.layout_transforms for one in told.values()] == [1, 2, 9, None]
    assert told["fastest"].why == "not built: estimated 2.2x the time of mix"
    assert (world.options["threads"], world.built) == (2, ["autotvm", "ansor", "mix"])
    assert payload["layout_transforms"] == 9
    assert [one["name"] for one in payload["decision"]] == list(told)
    shown = world.text.getvalue()
    assert "chosen: fastest of some" in shown
    assert "9.000" in shown
    assert "it was loud" in world.errors.getvalue()


def test_what_computes_something_else_is_out(world: World) -> None:
    world.wrong = {"mix"}
    world.run()
    assert world.compared == ["autotvm", "ansor"]
    assert world.job.artifact.read_text() == "autotvm"
    told = world.decision()["mix"]
    assert (told.parity_passed, told.median_ms) == (False, None)
    assert told.why == "left out: parity failed: off by 0.5"
    assert "plan mix is left out" in world.errors.getvalue()


def test_where_nothing_passes_the_first_stays_and_the_verb_fails(world: World) -> None:
    world.wrong = {"autotvm", "ansor", "mix"}
    with pytest.raises(VerbFailedError, match="parity failed") as caught:
        world.run()
    assert caught.value.payload["parity"] == {"passed": False}
    assert world.job.artifact.read_text() == "autotvm"
    assert world.decision()["autotvm"].why == "no candidate passed the parity check"
    assert world.compared == []


def test_a_plan_that_cannot_be_built_is_out(world: World) -> None:
    world.unusable = {"mix", "ansor"}
    world.run()
    assert world.job.artifact.read_text() == "autotvm"
    told = world.decision()
    assert told["autotvm"].why == "the only candidate left"
    assert told["mix"].why == "left out: plan mix cannot be built: no record"
    assert world.compared == []


def test_where_no_plan_can_be_built_nothing_is_left(world: World) -> None:
    world.unusable = {"autotvm", "ansor", "mix"}
    with pytest.raises(UnusablePlanError, match="plan autotvm"):
        world.run()
    assert os.listdir(world.job.folder) == []


def test_a_plan_that_fails_in_the_check_is_out(world: World) -> None:
    world.crashing = {"mix"}
    world.run()
    assert world.job.artifact.read_text() == "autotvm"
    assert world.compared == ["autotvm", "ansor"]
    assert world.decision()["mix"].why == "left out: mix died of SIGSEGV"
    assert "plan mix is left out: mix died of SIGSEGV" in world.errors.getvalue()


@pytest.mark.parametrize("text", ["Traceback\n  in a kernel\nTVMError: no such device\n", ""])
def test_an_error_of_tvm_in_the_check_is_the_plans_own(
    world: World, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    passing = world.check_artifact

    def check(path: Path, **options: Any) -> Parity:
        if path.read_text() == "mix":
            raise RuntimeError(text)
        return passing(path, **options)

    monkeypatch.setattr(candidates, "check_artifact", check)
    world.run()
    assert world.job.artifact.read_text() == "autotvm"
    reason = "TVMError: no such device" if text else "RuntimeError"
    assert world.decision()["mix"].why == f"left out: it fails in the parity check: {reason}"


def test_an_interrupt_that_tvm_carries_ends_the_verb(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(path: Path, **_options: Any) -> Parity:
        raise RuntimeError("KeyboardInterrupt")

    monkeypatch.setattr(candidates, "check_artifact", check)
    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        world.run()
    assert world.built == ["autotvm"]


def test_where_every_plan_fails_the_first_failure_is_raised(world: World) -> None:
    world.unusable, world.crashing = {"ansor"}, {"autotvm", "mix"}
    with pytest.raises(DeviceError, match="autotvm died"):
        world.run()
    assert os.listdir(world.job.folder) == []


def test_where_measuring_fails_the_estimate_decides_between_those_that_passed(
    world: World,
) -> None:
    world.hanging, world.wrong = {"ansor"}, {"mix"}
    _, parity, _ = world.run()
    assert bool(parity)
    assert world.job.artifact.read_text() == "autotvm"
    told = world.decision()
    reason = "the bench worker of ansor gave no answer within 60 s"
    assert told["autotvm"].why == f"least estimate: not measured, for {reason}"
    assert [one.name for one in told.values() if one.chosen] == ["autotvm"]
    assert (told["ansor"].why, told["ansor"].parity_passed) == ("not measured", True)
    assert all(one.median_ms is None for one in told.values())
    assert f"warning: the candidates cannot be measured: {reason}" in world.errors.getvalue()


def test_one_plan_is_neither_measured_nor_shown_in_a_table(world: World) -> None:
    world.plans = PLANS[:1]
    world.run()
    assert world.compared == []
    assert world.decision()["autotvm"].chosen
    assert "candidate" not in world.text.getvalue()


def test_for_another_machine_the_estimate_decides(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.Preset, "runs_here", lambda _self: False)
    _, parity, _ = world.run()
    assert parity is None
    assert (world.built, world.compared) == (["mix"], [])
    told = world.decision()
    assert told["mix"].why == "least estimate: estimated, not measured"
    assert told["autotvm"].why == "not built: estimated 1.1x the time of mix"
    assert all(one.median_ms is None for one in told.values())
    assert "does not run on this machine" in world.text.getvalue()


def test_an_estimate_that_leaves_layers_out_decides_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.plans = (Plan("autotvm", (), 0.001, untuned=3), *PLANS[1:3])
    world.hanging = {"autotvm"}
    world.run()
    assert world.compared == ["autotvm", "ansor", "mix"]
    assert world.job.artifact.read_text() == "mix"
    monkeypatch.setattr(targets.Preset, "runs_here", lambda _self: False)
    world.run()
    assert world.job.artifact.read_text() == "mix"
    assert world.decision()["autotvm"].why == "not built: 3 of its convolutions have no record"


def test_without_a_check_the_time_still_decides(world: World) -> None:
    world.wrong = {"mix"}
    _, parity, _ = world.run(no_check=True)
    assert parity is None
    assert world.job.artifact.read_text() == "mix"
    assert world.decision()["mix"].parity_passed is None
    assert "not checked: --no-check" in world.text.getvalue()


UNTUNED = Plan("untuned", (), math.inf, records=False)


def test_the_untuned_build_is_kept_where_it_is_the_fastest(world: World) -> None:
    world.rivals = (UNTUNED,)
    manifest, _, payload = world.run()
    assert world.compared == ["autotvm", "ansor", "mix", "untuned"]
    assert world.job.artifact.read_text() == "untuned"
    assert world.given["untuned"]["best"] == {}
    assert (manifest.tuning.tuned, payload["tuned"]) == (0, 0)
    told = world.decision()
    assert (told["untuned"].chosen, told["untuned"].why) == (True, "fastest of some")
    assert told["mix"].why == "1.12x the time of untuned"
    shown = " ".join(world.text.getvalue().split())
    assert "0 of 2 tasks tuned: the untuned defaults are the fastest" in shown


def test_where_measuring_fails_the_untuned_build_is_not_taken(world: World) -> None:
    world.rivals, world.hanging = (UNTUNED,), {"ansor"}
    world.run()
    assert world.job.artifact.read_text() == "mix"


def test_the_untuned_build_stands_in_for_what_computes_something_else(world: World) -> None:
    world.rivals, world.wrong = (UNTUNED,), {"autotvm", "ansor", "mix"}
    world.run()
    assert world.job.artifact.read_text() == "untuned"
    assert world.decision()["untuned"].why == "the only candidate left"


def test_where_nothing_is_measured_there_are_no_rivals(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.rivals = (UNTUNED,)
    world.plans = (Plan("autotvm", (), 0.010),)
    monkeypatch.setattr(artifact, "_tuned_plans", lambda _job, plans, _best: plans)
    world.run(require_tuned=True)  # it asks for records, be they slower
    assert world.built == ["autotvm"]
    monkeypatch.setattr(targets.Preset, "runs_here", lambda _self: False)
    world.run()
    assert world.built == ["autotvm"] * 2


def test_stock_builds_have_stock_tasks_and_schedules(world: World) -> None:
    ours, stock = object(), object()
    world.job = dataclasses.replace(world.job, tasks=(ours,), stock_tasks=(stock,))  # type: ignore[arg-type]
    world.rivals = (Plan("stock", (), math.inf, schedules="stock"),)
    world.times_ms["stock"] = 7.0
    world.run()
    assert world.job.artifact.read_text() == "stock"
    given = world.given["stock"]
    assert (given["tasks"], given["schedules"]) == ((stock,), "stock")
    given = world.given["mix"]
    assert (given["tasks"], given["schedules"]) == ((ours,), "ours")


def test_where_stock_is_asked_for_its_plan_is_called_so(world: World) -> None:
    task = object()
    world.job = dataclasses.replace(world.job, tasks=(task,), schedules="stock")  # type: ignore[arg-type]
    world.plans = (Plan("autotvm", (), 0.010),)
    world.run()
    assert world.built == ["stock"]
    given = world.given["stock"]
    assert (given["tasks"], given["schedules"]) == ((task,), "stock")


def test_a_failure_leaves_the_old_artifact_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run()
    before = world.job.artifact.read_text(), read_manifest(world.job.artifact)

    def interrupted(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(candidates, "decide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.run()
    assert (world.job.artifact.read_text(), read_manifest(world.job.artifact)) == before
    assert len(os.listdir(world.job.folder)) == 2


def test_a_folder_that_cannot_be_written_is_one_line(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    world.job = dataclasses.replace(world.job, folder=tmp_path / "file" / "out")
    with pytest.raises(Exception, match="cannot write") as caught:
        world.run()
    assert "\n" not in str(caught.value)
    assert world.built == []
