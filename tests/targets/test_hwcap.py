"""ARM's feature bits have the names that Linux gives them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from mobilenet_tvm.targets import Preset, hwcap
from mobilenet_tvm.targets.presets import PRESETS


def test_a_cortex_a72_and_an_a76() -> None:
    # As qemu 7.2 gives them to a process, and a Raspberry Pi 4 (without AES) and 5.
    a72 = hwcap.names("aarch64", 0x8FB, 0)
    assert a72 == {"fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid"}
    a76 = hwcap.names("aarch64", 0x119FFB, 0)
    assert a76 - a72 == {"atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp"}


def test_the_second_word() -> None:
    assert hwcap.names("aarch64", 1 << 22, 1 << 1 | 1 << 13 | 1 << 14) == {
        "sve",
        "sve2",
        "i8mm",
        "bf16",
    }


def test_32_bits() -> None:
    assert {"neon", "vfpv3", "vfpv4"} <= hwcap.names("armv7l", 1 << 12 | 1 << 13 | 1 << 16, 0)


@pytest.mark.parametrize("preset", [one for one in PRESETS if hwcap.is_arm(one.arch)])
def test_presets_ask_for_features_that_a_board_can_name(preset: Preset) -> None:
    every = hwcap.names(preset.arch, 0xFFFFFFFF, 0xFFFFFFFF)
    assert set(preset.cpu_features) <= every


def test_this_machine() -> None:
    if not hwcap.is_arm():
        assert hwcap.hwcap_features() == frozenset()
        return
    (line,) = {  # one for each core
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "Features" in line
    }
    known = hwcap.names(platform.machine(), 0xFFFFFFFF, 0xFFFFFFFF)
    assert hwcap.hwcap_features() == known & set(line.partition(":")[2].split())
