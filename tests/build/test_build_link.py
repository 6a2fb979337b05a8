"""Cross-linking for ARM, and what a library is looked at for before it is called done."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build import link as linking
from mobilenet_tvm.build.link import LinkError, check_library, foreign_instructions, parse_linker
from mobilenet_tvm.build.manifest import manifest_path, read_manifest
from mobilenet_tvm.errors import UsageError
from tests.build.test_build_compile import INFO, small_relay

SHARED = [p.name for p in targets.presets.PRESETS if p.kind == "so" and p.arch != "x86_64"]
# A dot product: of ARMv8.2, decoded where the core has it.
SDOT = "sdot v0.4s, v1.16b, v2.16b"


def object_of(source: str, folder: Path, target: str, *options: str) -> Path:
    """A C source compiled for ``target`` with zig."""
    (folder / "x.c").write_text(source)
    path = folder / "x.o"
    toolchain.zig("cc", "-target", target, *options, "-c", "-o", str(path), str(folder / "x.c"))
    return path


def library_of(source: str, folder: Path, preset: targets.Preset, *options: str) -> Path:
    """A shared library of a C source, linked as the preset links."""
    system = {"aarch64": "aarch64-linux-gnu", "armv7l": "arm-linux-gnueabihf"}[preset.arch]
    path = folder / "x.so"
    objects = object_of(source, folder, system, "-O1", *options)
    toolchain.zig(*preset.linker, "-o", str(path), str(objects))
    return path


@pytest.mark.parametrize("name", SHARED)
def test_every_arm_preset_links_and_passes_its_own_check(tmp_path: Path, name: str) -> None:
    preset, path = targets.resolve(name), tmp_path / "small.so"
    manifest = compile_model(small_relay(), preset, path, info=INFO)
    with path.open("rb") as stream:
        assert (
            ELFFile(stream)["e_machine"]
            == {"aarch64": "EM_AARCH64", "armv7l": "EM_ARM"}[preset.arch]
        )
    check_library(path, preset)
    assert manifest.target.arch == preset.arch
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


def test_apple_gets_objects_that_tvm_links_there(tmp_path: Path) -> None:
    path = tmp_path / "small.apple-m1.tar"
    manifest = compile_model(small_relay(), targets.resolve("apple-m1"), path, info=INFO)
    mach_o_64 = b"\xcf\xfa\xed\xfe"
    with tarfile.open(path) as archive:
        members = [archive.extractfile(member) or io.BytesIO() for member in archive]
        assert {stream.read(4) for stream in members} == {mach_o_64}
        assert len(members) == 2  # the code, and graph and weights
    assert manifest.name == "small.apple-m1"
    assert read_manifest(path) == manifest
    assert manifest_path(path).name == "small.apple-m1.manifest.json"
    from mobilenet_tvm.runtime import load

    with pytest.raises(UsageError, match=r"is for arm64 .preset apple-m1., this machine is"):
        load(path)


def test_the_wrong_machine_is_named(tmp_path: Path) -> None:
    path = library_of("int f(void) { return 1; }", tmp_path, targets.resolve("rpi4"))
    with pytest.raises(LinkError, match=r"x\.so is for EM_AARCH64, not armv7l: wrong --linker"):
        check_library(path, targets.resolve("armv7"))


def test_an_instruction_that_the_core_lacks_is_found(tmp_path: Path) -> None:
    source = f'void f(void) {{ __asm__ volatile("{SDOT}"); }}'
    old, new = targets.resolve("rpi4"), targets.resolve("rpi5")
    path = library_of(source, tmp_path, old, "-mcpu=cortex_a76")
    assert len(foreign_instructions(path, old)) == 1
    with pytest.raises(LinkError, match=r"instructions that cortex-a72 lacks .1, the first at"):
        check_library(path, old)
    check_library(path, new)


def test_a_symbol_that_nobody_has_is_named(tmp_path: Path) -> None:
    source = "extern int nobody_has(void); int f(void) { return nobody_has(); }"
    path = library_of(source, tmp_path, targets.resolve("rpi4"))
    with pytest.raises(LinkError, match=r"x\.so wants nobody_has from outside"):
        check_library(path, targets.resolve("rpi4"))


def test_libm_and_the_tvm_runtime_are_there(tmp_path: Path) -> None:
    source = (
        "extern float expf(float); extern int TVMBackendParallelLaunch(float);"
        "int f(float x) { return TVMBackendParallelLaunch(expf(x)); }"
    )
    check_library(library_of(source, tmp_path, targets.resolve("rpi4")), targets.resolve("rpi4"))


def test_a_library_that_a_board_may_not_have_is_named(tmp_path: Path) -> None:
    preset = targets.resolve("rpi4")
    path, other = tmp_path / "x.so", tmp_path / "libother.so.3"
    objects = object_of("int f(void) { return 1; }", tmp_path, "aarch64-linux-gnu")
    toolchain.zig(*preset.linker, "-soname", other.name, "-o", str(other), str(objects))
    toolchain.zig(*preset.linker, "-o", str(path), str(objects), str(other))
    with pytest.raises(LinkError, match=r"needs libother\.so\.3, which a board may not have"):
        check_library(path, preset)


def test_an_old_glibc_by_zig(tmp_path: Path) -> None:
    preset, path = targets.resolve("rpi4"), tmp_path / "small.so"
    linker = parse_linker("zig cc -target aarch64-linux-gnu.2.17")
    compile_model(small_relay(), preset, path, info=INFO, linker=linker)
    check_library(path, preset)


def test_a_linker_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="no linker no-such-gcc on PATH: install it, or leave"):
        compile_model(
            small_relay(),
            targets.resolve("rpi4"),
            tmp_path / "small.so",
            info=INFO,
            linker=("no-such-gcc",),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_linker_for_another_machine_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def links_for_another(*arguments: str) -> None:
        output = arguments[arguments.index("-o") + 1]
        zig("cc", "-shared", "-target", "x86_64-linux-gnu", "-o", output, str(source))

    zig = toolchain.zig
    source = tmp_path / "x.c"
    source.write_text("int f(void) { return 1; }")
    monkeypatch.setattr(linking.toolchain, "zig", links_for_another)
    with pytest.raises(LinkError, match="is for EM_X86_64, not aarch64"):
        compile_model(small_relay(), targets.resolve("rpi4"), tmp_path / "y.so", info=INFO)
    assert not (tmp_path / "y.so").exists()


def test_an_objdump_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_options: object) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(linking.subprocess, "run", fails)
    with pytest.raises(LinkError, match=r"cannot look into x\.so"):
        foreign_instructions(tmp_path / "x.so", targets.resolve("rpi4"))


@pytest.mark.parametrize("text", ["", "'open"])
def test_a_linker_must_be_a_command(text: str) -> None:
    with pytest.raises(ValueError, match=r"no command|quotation"):
        parse_linker(text)


def test_a_soft_float_library_is_refused(tmp_path: Path) -> None:
    preset = targets.resolve("armv7")
    soft = dataclasses.replace(
        preset, linker=("cc", "-target", "arm-linux-gnueabi", "-mcpu=generic+v7a", "-shared")
    )
    path = tmp_path / "x.so"
    source = object_of("int f(void) { return 1; }", tmp_path, "arm-linux-gnueabi")
    toolchain.zig(*soft.linker, "-o", str(path), str(source))
    with pytest.raises(LinkError, match="is soft-float, armv7 is hard-float"):
        check_library(path, preset)
