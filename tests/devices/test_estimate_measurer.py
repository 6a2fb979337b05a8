"""The measurer: real candidates of x86 and ARM tasks, estimated; nothing here is timed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.devices import estimate
from mobilenet_tvm.devices.estimate import measurer as module
from mobilenet_tvm.devices.estimate import native
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Task, extract_tasks
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks
from mobilenet_tvm.search import Trial
from mobilenet_tvm.search.ansor import AnsorSearcher, CostModel
from mobilenet_tvm.search.trial import Failure

X86 = targets.resolve("x86-avx2")
DEADLINE_S = 120.0  # of a busy machine; none of the trials takes more than a second of work


def needs(preset: targets.Preset) -> None:
    if shutil.which(f"qemu-{preset.arch}") is None:
        pytest.skip(f"there is no qemu-{preset.arch} here: apt-get install qemu-user")


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=64, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    return {task.label: task for task in extract_tasks(relay.module, X86)}


@pytest.fixture
def measurer() -> Iterator[estimate.EstimateMeasurer]:
    needs(X86)
    made = estimate.EstimateMeasurer(X86)
    yield made
    made.close()


def arm_task(preset: targets.Preset) -> Task:
    """A pointwise layer with TVM's own template for ARM."""
    toolchain.activate()
    import tvm
    from tvm import autotvm, te

    target = tvm.target.Target(preset.target)
    data, kernel = te.placeholder((1, 16, 8, 8)), te.placeholder((32, 16, 1, 1))
    arguments = (data, kernel, (1, 1), (0, 0, 0, 0), (1, 1), "float32")
    handle = autotvm.task.create("conv2d_nchw_spatial_pack.arm_cpu", arguments, target)
    key = str(handle.workload)
    return Task(key, "pointwise", float(handle.flop), 1, (0,), None, handle, "autotvm", 4 * 16 * 32)


def test_a_candidate_has_the_same_cost_each_time(
    tasks: dict[str, Task], measurer: estimate.EstimateMeasurer
) -> None:
    task = next(iter(tasks.values()))
    trials = [measurer.measure(task, task.candidates[0], DEADLINE_S) for _ in range(2)]
    assert trials[0].failure is None, trials[0].message
    assert trials[0].costs_s == trials[1].costs_s
    assert len(trials[0].costs_s) == 1
    other = estimate.EstimateMeasurer(X86)
    assert other.measure(task, task.candidates[0], DEADLINE_S).costs_s == trials[0].costs_s
    other.close()


def test_estimates_are_said_to_be_estimates(measurer: estimate.EstimateMeasurer) -> None:
    assert measurer.timing == "estimated"


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "rpi5", "cortex-a55", "neoverse-n1"])
def test_arm_is_estimated_on_whatever_this_is(name: str) -> None:
    preset = targets.resolve(name)
    needs(preset)
    made = estimate.EstimateMeasurer(preset)
    found = made.cost(arm_task(preset), 0, DEADLINE_S)
    made.close()
    assert isinstance(found, estimate.Cost), found.message
    # 16 * 32 * 64 multiply-adds, four in one instruction.
    assert found.instructions > 16 * 32 * 64 / 4
    assert found.cycles > 16 * 32 * 64 / 16


def test_what_rank_there_is_does_not_come_from_chance(
    tasks: dict[str, Task], measurer: estimate.EstimateMeasurer
) -> None:
    """Where candidates differ widely in what they execute, the estimate has to follow."""
    task = max((t for t in tasks.values() if "depthwise 3x3/2" in t.label), key=lambda t: t.flops)
    found = [measurer.cost(task, config, DEADLINE_S) for config in task.candidates]
    costs = [one for one in found if isinstance(one, estimate.Cost)]
    assert len(costs) == len(task.candidates) > 4
    rank = spearmanr([c.instructions for c in costs], [c.cycles for c in costs]).statistic
    assert rank > 0.5
    assert len({c.cycles for c in costs}) > len(costs) // 2


def test_a_new_best_that_is_wrong_is_no_best(
    tasks: dict[str, Task],
    measurer: estimate.EstimateMeasurer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = next(iter(tasks.values()))
    monkeypatch.setattr(module, "difference", lambda result, expected: "differs")
    trial = measurer.measure(task, task.candidates[0], DEADLINE_S)
    assert (trial.failure, trial.message) == (Failure.WRONG_OUTPUT, "differs")
    # What is far slower than the best is not looked at.
    assert measurer.measure(task, task.candidates[0], DEADLINE_S, best_s=1e-12).failure is None


def test_candidates_of_other_layouts_are_each_compared_with_their_own() -> None:
    """TVM's template for ARM takes its weights laid out as the configuration says."""
    preset = targets.resolve("rpi4")
    needs(preset)
    made = estimate.EstimateMeasurer(preset)
    task = arm_task(preset)
    space = task.handle.config_space
    # The first configurations differ in the block of output channels, and have the least tiles.
    assert [space.get(i)["tile_co"].size[-1] for i in range(3)] == [1, 2, 4]
    trials = [made.measure(task, config, DEADLINE_S) for config in range(3)]
    made.close()
    assert [trial.message for trial in trials if trial.failure is not None] == []


def test_ansors_candidates_are_estimated_and_compared(measurer: estimate.EstimateMeasurer) -> None:
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    task = next(t for t in extract_ansor_tasks(relay.module, X86) if "pointwise" in t.label)
    searcher = AnsorSearcher(task, trials=3, seed=0, model=CostModel(seed=0, cores=1))
    for _ in range(3):
        config = searcher.next()
        assert config is not None
        trial = measurer.measure(task, config, DEADLINE_S)
        assert trial.failure is None, trial.message
        assert 0 < trial.cost_s < 1
        searcher.tell(trial)


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_a_difference_is_named(value: float) -> None:
    expected = np.linspace(-1, 1, 8, dtype=np.float32)
    assert module.difference(expected, expected) is None
    wrong = expected.copy()
    wrong[3] = value
    assert module.difference(wrong, expected) is not None


def test_a_candidate_that_does_not_build_costs_its_trial_only(
    tasks: dict[str, Task], measurer: estimate.EstimateMeasurer
) -> None:
    task = next(iter(tasks.values()))
    trial = measurer.measure(task, 10**9, DEADLINE_S)
    assert trial.failure is Failure.BUILD_ERROR
    assert isinstance(measurer.cost(task, 10**9), Trial)
    assert measurer.measure(task, task.candidates[0], DEADLINE_S).failure is None


def test_a_deadline_is_kept(tasks: dict[str, Task], measurer: estimate.EstimateMeasurer) -> None:
    task = max(tasks.values(), key=lambda task: task.flops)
    trial = measurer.measure(task, task.candidates[0], 0.0)
    assert trial.failure in (Failure.BUILD_TIMEOUT, Failure.RUN_TIMEOUT)


def test_where_it_works_nothing_is_said() -> None:
    for preset in (X86, targets.resolve("rpi4"), targets.resolve("neoverse-n1")):
        needs(preset)
        assert estimate.why_not(preset) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x86-avx512", "no figures of x86-avx512's core"),
        ("armv7", "no figures of armv7's core"),
        ("apple-m1", "no figures of apple-m1's core"),
    ],
)
def test_where_it_cannot_work_one_line_says_why(name: str, reason: str) -> None:
    preset = targets.resolve(name)
    said = estimate.why_not(preset)
    assert said is not None
    assert said.startswith(reason)
    assert "\n" not in said
    with pytest.raises(DeviceError, match=f"--device estimate does not work for {name}"):
        estimate.EstimateMeasurer(preset)


def test_a_machine_that_qemu_has_not_is_named() -> None:
    said = estimate.why_not(dataclasses.replace(X86, qemu=None))
    assert said is not None
    assert "emulates no machine for x86-avx2" in said


def test_without_qemu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    said = estimate.why_not(X86)
    assert said is not None
    assert "there is no qemu-x86_64" in said
    assert "apt-get install qemu-user" in said


@pytest.mark.parametrize(
    "says",
    [
        "qemu: unknown option 'plugin'",
        "qemu-x86_64: Could not load plugin x.so: dynamic loading is not supported",
    ],
)
def test_a_qemu_without_plugins_is_found_out(
    says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = tmp_path / "qemu-x86_64"
    qemu.write_text(f'#!/bin/sh\necho "{says}" >&2\nexit 1\n')
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = estimate.why_not(X86)
    assert said is not None
    assert f"{qemu} loads no plugins ({says})" in said
    assert "\n" not in said


def test_a_later_qemu_gets_a_plugin_for_its_version(tmp_path: Path) -> None:
    """One that takes version 3 only, as qemu words it."""
    qemu = tmp_path / "qemu-x86_64"
    qemu.write_text(
        '#!/bin/sh\ncase "$2" in *-$(cat "$(dirname "$0")/third")-*) exit 1;; esac\n'
        'echo "Could not load plugin: plugin requires API version 1, but this QEMU supports only a '
        'minimum version of 3" >&2\nexit 1\n'
    )
    qemu.chmod(0o755)
    options = ["-shared", "-nostdlib", "-O2", "-fvisibility=hidden", "-DAPI_VERSION=3"]
    third = native._compiled("plugin.c", f"{native.platform.machine()}.so", options)
    (tmp_path / "third").write_text(third.name.split("-")[1])
    assert native.plugin(qemu) == third
