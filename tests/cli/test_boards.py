"""Where ``tune`` measures: what is refused before anything takes time, and what boards must be."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from mobilenet_tvm import targets
from mobilenet_tvm.cli import boards
from mobilenet_tvm.cli.transfer import Known, Where, proposals
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records import RunInfo, parse_line
from mobilenet_tvm.search.board import Opened
from mobilenet_tvm.targets import Preset

X86 = targets.resolve("x86-avx2")
ARM = targets.resolve("rpi4")


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    boards.add_device_options(parser)
    return parser.parse_args(options)


@pytest.mark.parametrize(
    ("options", "preset", "words"),
    [
        ((), ARM, "rpi4 cannot be tuned on this machine"),
        (("--device", "qemu"), ARM, "an emulator's times mean nothing"),
        (("--device", "qemu", "--allow-emulated"), X86, "emulates 64-bit ARM boards"),
        (("--device", "qemu", "--allow-emulated"), targets.resolve("armv7"), "64-bit ARM"),
        (("--tracker", "here:9190"), ARM, "--key: missing"),
        (("--key", "rpi4"), ARM, "--tracker: missing"),
        (("--device", "estimate", "--tracker", "a:1", "--key", "b"), ARM, "leave them out"),
    ],
)
def test_what_cannot_be_measured_on_is_one_line(
    options: tuple[str, ...], preset: Preset, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        boards.check_device_options(parse(*options), preset)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "preset"),
    [
        (("--device", "qemu", "--allow-emulated", "--boards", "3"), ARM),
        (("--tracker", "here", "--key", "rpi4"), ARM),
        (("--device", "estimate"), ARM),
        ((), targets.resolve("x86")),
    ],
)
def test_what_can_be_is_not_refused(options: tuple[str, ...], preset: Preset) -> None:
    boards.check_device_options(parse(*options), preset)


def opened(**changes: Any) -> Opened:
    told: dict[str, Any] = {
        "board": "10.0.0.7:9090",
        "cpu": "Cortex-A72 (cortex_a72)",
        "machine": "aarch64",
        "features": ARM.cpu_features,
        "cores": 4,
    }
    return Opened(**(told | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"machine": "x86_64"}, "is x86_64, rpi4 is for aarch64"),
        ({"features": ("fp",)}, "lacks CPU features that rpi4 uses: asimd"),
        ({"cores": 1}, "--threads 2: board 10.0.0.7:9090 (Cortex-A72 (cortex_a72)) has 1 cores"),
    ],
)
def test_a_board_that_cannot_run_the_preset_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r"10\.0\.0\.7:9090") as caught:
        boards._refuse_misfit(opened(**changes), ARM, 2)
    assert words in str(caught.value)


def test_a_board_that_does_not_tell_is_given_a_try() -> None:
    boards._refuse_misfit(opened(), ARM, 2)
    boards._refuse_misfit(opened(machine=None, features=None, cores=None), ARM, 2)


LINE = (
    '{"input": ["llvm -keys=cpu", "dense_nopack.x86", [["TENSOR", [1, %d], "float32"], '
    '["TENSOR", [1000, 256], "float32"], null, "float32"], {}], "config": {"index": 3, '
    '"code_hash": null, "entity": [["tile_y", "sp", [-1, 1, 1]], ["tile_x", "sp", [-1, 1, 1]], '
    '["tile_k", "sp", [-1, 1]]]}, "result": [[%r], 0, 0.5, 1700000000.0], "version": 0.2, '
    '"tvm_version": "0.19.0"}'
)


def known(timing: Any, *lines: str) -> Known:
    from pathlib import Path

    run = RunInfo(
        format_version=1,
        preset="rpi4",
        target="llvm -keys=cpu",
        cpu="cortex-a72",
        tvm="0.19.0",
        llvm="22",
        model="m",
        model_digest="sha256:0",
        searcher="autotvm",
        seed=0,
        threads=1,
        spent_s=0.0,
        trials=len(lines),
        failures={},
        timing=timing,
    )
    return Known(Path("log"), tuple(map(parse_line, lines)), run, frozenset())


def test_an_emulators_times_are_nothing_beside_measured_ones() -> None:
    measured = known("measured", LINE % (256, 1e-5))
    emulated = known("emulated", LINE % (256, 1e-9), LINE % (512, 1e-9))
    found = proposals([emulated, measured])
    assert [record.cost_s for record in found] == [1e-5, 1e-9]
    assert found[0].key != found[1].key


def test_a_log_is_of_this_run_only_by_the_same_clock() -> None:
    emulated = known("emulated", LINE % (256, 1e-9))
    assert emulated.of(Where("cortex-a72", 1, "emulated"))
    assert not emulated.of(Where("cortex-a72", 1))
    assert emulated.lessons(set(), "llvm -keys=cpu", Where("cortex-a72", 1, "emulated")) == []
