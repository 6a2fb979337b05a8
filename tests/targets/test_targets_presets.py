"""Presets by name, and what this machine can run."""

from __future__ import annotations

import platform

import pytest

from mobilenet_tvm import targets
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets import host, presets

X86 = [preset for preset in presets.PRESETS if preset.arch == "x86_64"]
ARM = [preset for preset in presets.PRESETS if preset.arch != "x86_64"]


def pretend(monkeypatch: pytest.MonkeyPatch, machine: str, features: set[str]) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for module in (host, presets):
        monkeypatch.setattr(module, "cpu_features", lambda: frozenset(features))


@pytest.mark.parametrize("name", presets._BY_NAME)
def test_every_preset_resolves_to_itself(name: str) -> None:
    found = targets.resolve(name)
    assert found.name == name
    assert name in targets.names()
    assert found.target.startswith("llvm " if found.gpu is None else "cuda ")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 means this machine")
def test_x86_runs_here_and_is_the_best_that_does() -> None:
    found = targets.resolve("x86")
    assert found.runs_here()
    wider = [preset for preset in X86 if preset.peak_lanes > found.peak_lanes]
    assert not [preset.name for preset in wider if preset.runs_here()]


@pytest.mark.parametrize("preset", X86, ids=lambda preset: preset.name)
def test_x86_falls_back_to_what_the_cpu_has(
    monkeypatch: pytest.MonkeyPatch, preset: presets.Preset
) -> None:
    pretend(monkeypatch, "x86_64", set(preset.cpu_features))
    assert targets.resolve("x86") == preset


def test_x86_on_another_machine_says_what_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "aarch64", {"neon"})
    with pytest.raises(UsageError, match=r"\(aarch64, .*name one of x86-avx512") as caught:
        targets.resolve("x86")
    assert "\n" not in str(caught.value)
    assert targets.resolve("x86-avx2").name == "x86-avx2"  # compiling for another is fine


@pytest.mark.parametrize(
    ("wrong", "suggested"), [("x86-avx521", "x86-avx512"), ("x68", "x86"), ("avx2", "x86-avx2")]
)
def test_an_unknown_preset_is_told_its_neighbour(wrong: str, suggested: str) -> None:
    with pytest.raises(UsageError) as caught:
        targets.resolve(wrong)
    assert f"unknown target {wrong!r}: did you mean {suggested}? presets are" in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "zzz"])
def test_a_name_near_nothing_lists_the_presets(wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        targets.resolve(wrong)
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in targets.names())


def test_missing_features_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_features", lambda: frozenset({"fma"}))
    assert targets.missing_features(("zz", "fma", "aa")) == ("zz", "aa")
    assert targets.missing_features(()) == ()


def test_features_are_spelt_as_the_presets_spell_them() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the presets so far are x86's")
    known = targets.cpu_features()
    assert {"sse4_2", "popcnt"} <= known  # every x86-64 CPU since 2008


def test_wider_presets_need_all_that_narrower_ones_do() -> None:
    features = [set(preset.cpu_features) for preset in X86]
    assert features[0] > features[1] > features[2]


def test_tvm_agrees_on_the_lanes() -> None:
    from mobilenet_tvm import toolchain

    toolchain.activate()
    import tvm
    from tvm.target.x86 import get_simd_32bit_lanes

    for preset in X86:
        with tvm.target.Target(preset.target):
            assert get_simd_32bit_lanes() == preset.peak_lanes


def test_this_machine_has_a_name_and_cores() -> None:
    import os

    assert "(" in targets.cpu_name()
    assert 1 <= targets.physical_cores() <= (os.cpu_count() or 1)


def test_arm_is_a_raspberry_pi_4() -> None:
    assert targets.resolve("arm") is targets.resolve("rpi4")
    assert targets.resolve("arm").cpu == "cortex-a72"


@pytest.mark.parametrize("preset", ARM, ids=lambda preset: preset.name)
def test_native_is_the_best_that_an_arm_machine_runs(
    monkeypatch: pytest.MonkeyPatch, preset: presets.Preset
) -> None:
    pretend(monkeypatch, preset.arch, set(preset.cpu_features))
    found = targets.resolve("native")
    assert found.arch == preset.arch
    assert found.cpu_features == preset.cpu_features


def test_native_without_any_preset_says_what_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "aarch64", {"fp"})
    with pytest.raises(UsageError, match=r"target native means this machine.*neoverse-v1"):
        targets.resolve("native")


@pytest.mark.parametrize("preset", ARM, ids=lambda preset: preset.name)
def test_llvm_and_tvm_know_the_target(
    capfd: pytest.CaptureFixture[str], preset: presets.Preset
) -> None:
    """An unknown core or attribute is only a line on stderr, and generic code."""
    from mobilenet_tvm import toolchain

    toolchain.activate()
    import tvm

    target = tvm.target.Target(preset.target)
    assert "arm_cpu" in target.keys
    assert str(target.attrs["mtriple"]) == preset.triple
    assert str(target.attrs.get("mcpu", preset.cpu)) == preset.cpu
    tvm.target.codegen.llvm_get_cpu_features(target)
    assert "not valid" not in capfd.readouterr().err


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.name)
def test_the_sizes_are_those_of_a_real_machine(preset: presets.Preset) -> None:
    assert 16 << 10 <= preset.l1d_bytes < preset.l2_bytes
    assert preset.l3_bytes == 0 or preset.l3_bytes > preset.l2_bytes
    assert preset.cores >= 4
    assert bool(preset.linker) == (preset.kind == "so")
