"""How programs are started on the emulated board; here on one of shell scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mobilenet_tvm
from mobilenet_tvm import toolchain
from mobilenet_tvm.devices.qemu import cpuinfo, machine
from mobilenet_tvm.devices.qemu.machine import QemuRuntime
from mobilenet_tvm.errors import DeviceError, UsageError

LIST_CPUS = (
    "[ \"$1 $2\" = '-cpu help' ] && { printf '  cortex-a72\\n  cortex-a7\\n  max\\n'; exit; }"
)
TELL = f"""
exec {sys.executable} -c 'import json, os, sys
print(json.dumps([sys.argv[1:], dict(os.environ)]))' "$0" "$@"
"""


def executable(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body)
    path.chmod(0o755)
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QemuRuntime:
    """A board whose programs print their arguments and their environment."""
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(tmp_path / "cache"))
    root = tmp_path / "a board"
    emulators = {
        arch: executable(tmp_path / f"qemu-{arch}", f"#!/bin/sh\n{LIST_CPUS}\n{TELL}")
        for arch in ("aarch64", "armv7l")
    }
    executable(root / machine.PYTHON, machine.python_script("3.11"))
    monkeypatch.setattr(cpuinfo, "features", lambda *_: ["fp", "asimd"])
    return QemuRuntime(root, emulators, "3.11.2", {})


def elf(path: Path, e_machine: int) -> Path:
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(11) + e_machine.to_bytes(2, "little"))
    return path


def told(done: subprocess.CompletedProcess[str]) -> tuple[list[str], dict[str, str]]:
    assert done.returncode == 0, done.stderr
    arguments, environment = json.loads(done.stdout)
    return arguments, environment


def test_python_runs_under_qemu_by_its_own_name(fake: QemuRuntime) -> None:
    arguments, environment = told(fake.run_python(["-c", "a b", ""], stdout=subprocess.PIPE))
    python = str(fake.root / "usr/bin/python")
    emulator = str(fake.emulators["aarch64"])
    assert arguments == [emulator, "-0", python, python + "3.11", "-c", "a b", ""]
    assert environment["QEMU_CPU"] == "cortex-a72"
    assert environment["QEMU_LD_PREFIX"] == str(fake.root / "cpus/cortex-a72")


def test_each_cpu_has_its_cpuinfo_beside_the_boards_files(fake: QemuRuntime) -> None:
    for cpu in ("cortex-a72", "max,sve=off", "cortex-a72"):
        _, environment = told(fake.run_python([], cpu=cpu, stdout=subprocess.PIPE))
        sysroot = Path(environment["QEMU_LD_PREFIX"])
        assert (sysroot / "usr/bin/python").samefile(fake.root / machine.PYTHON)
        lines = (sysroot / "proc/cpuinfo").read_text().splitlines()
        assert lines.count(f"model name\t: {cpu} under qemu") == os.cpu_count()
        assert "Features\t: fp asimd" in lines
    assert "CPU part\t: 0xd08" in lines
    assert sorted(path.name for path in sysroot.parent.iterdir()) == ["cortex-a72", "max,sve=off"]


def test_features_are_read_of_the_hardware_capabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = executable(tmp_path / "qemu", f"#!/bin/sh\necho {1 << 1 | 1 << 20} {1 << 14}\n")
    found = cpuinfo.features(tmp_path, tmp_path / "python", emulator, "max")
    assert found == ["asimd", "asimddp", "bf16"]
    broken = executable(tmp_path / "broken", "#!/bin/sh\necho 'no such option' >&2; exit 1\n")
    with pytest.raises(DeviceError, match="with the CPU max,x=on: no such option"):
        cpuinfo.features(tmp_path, tmp_path / "python", broken, "max,x=on")


def test_popen_is_the_process_itself(fake: QemuRuntime) -> None:
    with fake.popen(["x"], cpu="max", stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        arguments, environment = json.loads(started.stdout.read())
    assert arguments[-1] == "x"
    assert environment["QEMU_CPU"] == "max"
    assert started.returncode == 0


def test_nothing_of_the_hosts_reaches_the_board(
    fake: QemuRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = {"HOME": str(tmp_path), "TZ": "UTC"}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    lost = ("PYTHONHOME", "VIRTUAL_ENV", "TVM_BIND_THREADS", "QEMU_STRACE", "TVM_LIBRARY_PATH")
    for name in lost:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONPATH", "/host/packages")
    _, environment = told(
        fake.run_python([], env={"TVM_NUM_THREADS": "2", "TZ": "CET"}, stdout=subprocess.PIPE)
    )
    assert not {*lost, "LD_PRELOAD"} & set(environment)
    assert environment["HOME"] == str(tmp_path)
    assert environment["TZ"] == "CET"
    assert environment["TVM_NUM_THREADS"] == "2"
    assert environment["TVM_USE_RUNTIME_LIB"] == "1"
    assert environment[toolchain.CACHE_VARIABLE] == str(toolchain.cache_dir())
    assert "/host/packages" not in environment["PYTHONPATH"]


def test_this_package_is_found_there_and_none_beside_it(fake: QemuRuntime) -> None:
    for _ in range(2):  # found, the second time
        _, environment = told(fake.run_python([], stdout=subprocess.PIPE))
        (entry,) = Path(environment["PYTHONPATH"]).iterdir()
        assert entry.name == "mobilenet_tvm"
        assert entry.resolve() == Path(mobilenet_tvm.__file__).resolve().parent


def test_a_link_to_elsewhere_is_mended(fake: QemuRuntime, tmp_path: Path) -> None:
    folder = machine._only_our_package()
    (folder / "mobilenet_tvm").unlink()
    (folder / "mobilenet_tvm").symlink_to(tmp_path)
    assert machine._only_our_package() == folder
    assert (folder / "mobilenet_tvm/__init__.py").exists()


def test_a_cache_that_cannot_be_written_is_a_line(
    fake: QemuRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="cannot be written"):
        fake.run_python([])


def test_a_program_runs_with_the_boards_libraries(fake: QemuRuntime, tmp_path: Path) -> None:
    program = str(elf(tmp_path / "program", 183))
    arguments, environment = told(fake.run([program, "1"], stdout=subprocess.PIPE))
    assert arguments == [str(fake.emulators["aarch64"]), program, "1"]
    assert environment["QEMU_LD_PREFIX"] == str(fake.root / "cpus/cortex-a72")
    assert environment["QEMU_CPU"] == "cortex-a72"


def test_a_32_bit_program_runs_under_the_other_qemu(fake: QemuRuntime, tmp_path: Path) -> None:
    program = str(elf(tmp_path / "program", 40))
    arguments, environment = told(fake.run([program], stdout=subprocess.PIPE))
    assert arguments == [str(fake.emulators["armv7l"]), program]
    assert "QEMU_LD_PREFIX" not in environment
    assert environment["QEMU_CPU"] == "cortex-a7"


def test_an_unknown_cpu_is_refused_before_anything_starts(
    fake: QemuRuntime, tmp_path: Path
) -> None:
    program = str(elf(tmp_path / "program", 183))
    for start in (fake.popen, fake.run_python, lambda *_, **how: fake.run([program], **how)):
        with pytest.raises(UsageError, match="knows no CPU cortex-a55; it knows cortex-a7, "):
            start(["-c", ""], cpu="cortex-a55")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"#!/bin/sh", "it is no ELF file"),
        (b"\x7fELF", "it is no ELF file"),
        (b"\x7fELF" + bytes(14) + b"\x3e\x00", "no program for ARM"),
    ],
)
def test_what_cannot_run_is_named(
    fake: QemuRuntime, tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        fake.run([str(path)])
    with pytest.raises(UsageError, match="cannot be read"):
        fake.run([str(tmp_path / "gone")])


def test_started_by_hand_it_is_under_the_qemu_on_path(fake: QemuRuntime) -> None:
    done = subprocess.run(
        [str(fake.root / machine.PYTHON)], env={"PATH": os.defpath + ":/none"}, capture_output=True
    )
    on_path = any(Path(folder, "qemu-aarch64").exists() for folder in os.defpath.split(":"))
    assert (done.returncode != 127) is on_path
