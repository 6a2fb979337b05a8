"""Which CPU stands for which, held against LLVM's lists of instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.devices.qemu import cpus
from mobilenet_tvm.devices.qemu.cpus import EmulatedCpu
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.targets import presets

# qemu 7.2's, as Debian 12 has it.
QEMU_7 = (
    "a64fx",
    "cortex-a35",
    "cortex-a53",
    "cortex-a57",
    "cortex-a72",
    "cortex-a76",
    "max",
    "neoverse-n1",
)
TRIPLES = {"aarch64": "aarch64-linux-gnu", "armv7l": "armv7l-linux-gnueabihf -mattr=+neon"}
# Of LLVM's features those that let it use an instruction in a program of a user's.
INSTRUCTIONS = {
    *("neon", "fp-armv8", "crc", "aes", "sha2", "lse", "rdm", "fullfp16", "dotprod", "rcpc"),
    *("rcpc-immo", "sve", "sve2", "bf16", "i8mm", "fp16fml", "jsconv", "complxnum", "pauth"),
    *("sha3", "sm4", "flagm", "vfp3", "vfp4", "d32", "fp16", "hwdiv", "hwdiv-arm", "mp"),
}


def instructions(cpu: str, arch: str) -> set[str]:
    toolchain.activate()
    import tvm
    from tvm.target import codegen

    target = tvm.target.Target(f"llvm -mtriple={TRIPLES[arch]} -mcpu={cpu}")
    return INSTRUCTIONS & {str(name) for name in codegen.llvm_get_cpu_features(target)}


@pytest.mark.parametrize(
    ("arch", "cpu", "stand_in"),
    [
        (arch, cpu, stand_in)
        for arch, table in cpus.TABLES.items()
        for cpu, stand_ins in table.items()
        for stand_in in stand_ins
    ],
)
def test_a_stand_in_has_every_instruction(arch: str, cpu: str, stand_in: str) -> None:
    wanted = instructions(cpu, arch)
    assert wanted  # LLVM knows the name
    assert wanted <= instructions(stand_in, arch)


def test_stand_ins_are_in_order() -> None:
    for arch, table in cpus.TABLES.items():
        for stand_ins in table.values():
            counts = [len(instructions(name, arch)) for name in stand_ins]
            assert counts == sorted(counts)


def test_dot_products_are_a_guard() -> None:
    """What the tests below rely on: it is not that all features are in every list."""
    assert "dotprod" in instructions("cortex-a55", "aarch64")
    assert "dotprod" not in instructions("cortex-a72", "aarch64")


def test_a_known_cpu_is_itself() -> None:
    assert cpus.nearest("cortex-a72", QEMU_7) == EmulatedCpu("cortex-a72")
    assert cpus.nearest("cortex-a55", [*QEMU_7, "cortex-a55"]) == EmulatedCpu("cortex-a55")


def test_the_nearest_says_so() -> None:
    found = cpus.nearest("cortex-a55", QEMU_7)
    assert found.name == "cortex-a76"
    assert "no cortex-a55: cortex-a76" in found.note
    assert cpus.nearest("cortex-a55", ["max", "neoverse-n1"]).name == "neoverse-n1"
    assert cpus.nearest("generic", ["cortex-a9", "max"], "armv7l").name == "cortex-a9"


def test_else_it_is_max_and_says_that_it_guards_less() -> None:
    for cpu in ("neoverse-v1", "apple-a14", "no-such-cpu"):
        found = cpus.nearest(cpu, QEMU_7)
        assert found.name == "max"
        assert f"no {cpu}" in found.note
        assert "that the board lacks" in found.note


@pytest.mark.parametrize(
    "preset", [preset for preset in presets.PRESETS if preset.arch == "aarch64"], ids=str
)
def test_presets_name_what_is_found_here(preset: targets.Preset) -> None:
    assert preset.qemu == cpus.nearest(preset.cpu, QEMU_7).name


def emulator(folder: Path, body: str) -> Path:
    path = folder / "qemu-aarch64"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_list_is_read_whatever_the_exit_status(tmp_path: Path) -> None:
    said = emulator(tmp_path, "printf 'Available CPUs:\\n  cortex-a72\\n  max\\n'; exit 1")
    assert cpus.known(said) == ("cortex-a72", "max")
    cpus.check(said, "cortex-a72")
    cpus.check(said, "max,sve=off")
    with pytest.raises(UsageError, match="knows no CPU cortex-a7; it knows cortex-a72, max"):
        cpus.check(said, "cortex-a7")


def test_a_broken_qemu_is_a_line(tmp_path: Path) -> None:
    broken = emulator(tmp_path, "echo first >&2; echo 'no libglib' >&2; exit 127")
    with pytest.raises(DeviceError, match=r"does not run \(no libglib\): reinstall qemu-user"):
        cpus.known(broken)
    with pytest.raises(DeviceError, match="does not run"):
        cpus.known(tmp_path / "gone")
