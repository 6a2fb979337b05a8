"""The set-up: what it is keyed by, what it leaves when it fails or is killed. No network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mobilenet_tvm import toolchain
from mobilenet_tvm.devices import qemu
from mobilenet_tvm.devices.qemu import __main__ as verb
from mobilenet_tvm.devices.qemu import cpuinfo, debian, setup, wheels
from mobilenet_tvm.errors import DeviceError

NO_DPKG = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on PATH: a Debian machine has it"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder of the set-up in it."""
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "qemu"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def executable(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def with_apt(path: Path, apt_get: str = "exit 0", dpkg_deb: str = "exit 0") -> None:
    executable(path / "dpkg", "echo amd64")
    executable(path / "dpkg-deb", dpkg_deb)
    executable(path / "apt-get", apt_get)


# --- the key


def test_another_version_or_system_is_another_board(monkeypatch: pytest.MonkeyPatch) -> None:
    key = setup.key()
    assert key == setup.key()
    pins = wheels.pins()
    monkeypatch.setattr(wheels, "pins", lambda: pins | {"numpy": "1.0"})
    assert setup.key() != key
    monkeypatch.setattr(wheels, "pins", lambda: pins)
    assert setup.key() == key
    monkeypatch.setattr(debian, "release", lambda: "debian-sid")
    assert setup.key() != key


def test_pins_are_what_is_installed_here() -> None:
    pins = wheels.pins()
    assert tuple(pins) == wheels.NAMES
    assert pins[toolchain.TVM_PACKAGE] == toolchain.pinned()
    assert pins["numpy"].startswith(("1.", "2."))


# --- what is missing


def test_without_apt_it_says_what_to_do(cache: Path, path: Path) -> None:
    assert not qemu.is_set_up()
    said = qemu.why_not()
    assert said.startswith("not set up: apt-get and dpkg and dpkg-deb not found; ")
    assert "set it up on Debian" in said
    assert "\n" not in said
    with pytest.raises(DeviceError, match=r"^the emulated board is not set up: apt-get and dpkg"):
        qemu.runtime()
    assert not cache.exists()


def test_with_apt_it_names_the_command(cache: Path, path: Path) -> None:
    with_apt(path)
    assert qemu.why_not() == (
        "not set up: python -m mobilenet_tvm.devices.qemu (once; needs the network)"
    )
    with pytest.raises(DeviceError, match=r"python -m mobilenet_tvm.devices.qemu"):
        qemu.runtime(set_up=False)
    with pytest.raises(DeviceError, match=r"python -m mobilenet_tvm.devices.qemu"):
        qemu.emulated_cpu("cortex-a72")
    assert not cache.exists()


def test_apts_own_words_are_said_and_nothing_is_left(cache: Path, path: Path) -> None:
    log = cache.parent.parent / "log"
    for name in ("sh", "cat"):
        (path / name).symlink_to(f"/bin/{name}")
    with_apt(path, f'echo "$@" >>{log}; cat "$3" >>{log}; echo "E: No such package" >&2; exit 100')
    steps: list[str] = []
    with pytest.raises(DeviceError, match=r"apt-get failed \(No such package\); .* network once"):
        qemu.runtime(steps.append)
    assert steps[0] == "apt: package lists for arm64"
    assert [entry.name for entry in cache.iterdir()] == ["lock"]
    # Its own state, no hook of the host's, and the emulator too, for PATH has none.
    asked = log.read_text()
    assert f'Dir::State "{cache}/{setup._UNFINISHED}' in asked
    assert "#clear APT::Update::Post-Invoke;" in asked
    assert "libstdc++6:arm64 qemu-user-static\n" in asked
    assert "install --download-only" in asked


def test_the_command_ends_with_3_and_one_line(
    cache: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the emulated board is not set up: apt-get")
    assert captured.err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_a_line(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_apt(path)
    (tmp_path / "file").touch()
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="the emulated board cannot be set up: Not a directory"):
        qemu.runtime()


def test_the_systems_own_qemu_comes_first(cache: Path, path: Path) -> None:
    assert setup._emulator("qemu-aarch64") is None
    own = setup._own_emulators()
    own.mkdir(parents=True)
    (own / "qemu-aarch64").touch()
    assert setup._emulator("qemu-aarch64") == own / "qemu-aarch64"
    executable(path / "qemu-aarch64-static", "")
    assert setup._emulator("qemu-aarch64") == path / "qemu-aarch64-static"
    executable(path / "qemu-aarch64", "")
    assert setup._emulator("qemu-aarch64") == path / "qemu-aarch64"


# --- killed, or twice at once

# A set-up whose download says that it began and then takes its time, or is quick.
SET_UP = """
    import sys, time
    from pathlib import Path
    from mobilenet_tvm.devices import qemu
    from mobilenet_tvm.devices.qemu import debian, setup, wheels

    def fetch(packages, foreign, folder, say):
        (folder / "half.deb").write_text("half")
        say("downloading")
        time.sleep(float(sys.argv[1]))
        return []

    def unpack(archives, root):
        root.mkdir()
        return "3.11"

    debian.missing_tools = lambda: ()
    debian.fetch, setup._unpack = fetch, unpack
    wheels.install = lambda wanted, python, folder, say: None
    setup._check = lambda board: "3.11.2"
    setup._emulators = lambda: {"aarch64": Path("qemu-aarch64"), "armv7l": Path("qemu-arm")}
    board = qemu.runtime(lambda line: print(line, flush=True))
    print(board.root.name, board.python_version, flush=True)
"""


def start(seconds: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(SET_UP)
    command = [sys.executable, "-c", code, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def lines_until(process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if wanted(lines[-1]):
            return lines
    raise AssertionError(f"it ended after {lines}")


def test_a_killed_set_up_leaves_nothing_half_done(cache: Path) -> None:
    with start(600) as first:
        lines_until(first, lambda line: line == "downloading")
        assert list(cache.glob(f"{setup._UNFINISHED}*/apt/half.deb"))
        first.kill()
    assert first.returncode == -signal.SIGKILL
    assert not qemu.is_set_up()
    with start(0) as second:
        said = lines_until(second, lambda line: line.startswith("board-"))[-1]
    assert said == f"board-{setup.key()} 3.11.2"
    assert sorted(entry.name for entry in cache.iterdir()) == [f"board-{setup.key()}", "lock"]


def test_a_second_process_waits_and_finds_it_done(cache: Path) -> None:
    with start(3) as first:
        lines_until(first, lambda line: line == "downloading")
        with start(600) as second:
            said = lines_until(second, lambda line: line.startswith("board-"))
        lines_until(first, lambda line: line.startswith("board-"))
    assert said[0] == "another process is setting it up: waiting for it"
    assert "downloading" not in said


def test_what_does_not_work_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(archives: list[Path], root: Path) -> str:
        (root / "usr/bin").mkdir(parents=True)
        executable(root / "usr/bin/python", "echo 'ImportError: no libtvm_runtime' >&2; exit 1")
        return "3.11"

    monkeypatch.setattr(debian, "missing_tools", lambda: ())
    monkeypatch.setattr(debian, "fetch", lambda *_: [])
    monkeypatch.setattr(setup, "_unpack", unpack)
    monkeypatch.setattr(wheels, "install", lambda *_: None)
    emulator = cache.parent.parent / "emulator"
    executable(emulator, "echo '  max'")
    monkeypatch.setattr(cpuinfo, "features", lambda *_: ["fp"])
    monkeypatch.setattr(setup, "_emulators", lambda: {"aarch64": emulator, "armv7l": emulator})
    with pytest.raises(DeviceError, match="does not work: ImportError: no libtvm_runtime"):
        qemu.runtime()
    assert sorted(entry.name for entry in cache.iterdir()) == ["lock", "packages"]


# --- packages


def package(folder: Path, name: str, files: dict[str, str], links: dict[str, str]) -> Path:
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: arm64\nMaintainer: x <x@x>\nDescription: x\n"
    )
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    for path, text in links.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).symlink_to(text)
    archive = folder / f"{name}_1%3a2-3_arm64.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(archive)],
        check=True,
        capture_output=True,
    )
    return archive


@NO_DPKG
def test_unpacking_leads_no_link_out_of_the_board(tmp_path: Path) -> None:
    archives = [
        package(
            tmp_path,
            "python3.11-minimal",
            {"usr/bin/python3.11": "elf", "usr/share/doc/x": "x", "usr/lib/a/gconv/x": "x"},
            {"usr/bin/python3": "python3.11", "usr/lib/gone": "/usr/share/doc/x"},
        ),
        package(
            tmp_path,
            "libc6",
            {"etc/python3.11/sitecustomize.py": "here", "usr/lib/ld-linux-aarch64.so.1": "elf"},
            {"usr/lib/python3.11/sitecustomize.py": "/etc/python3.11/sitecustomize.py"},
        ),
    ]
    root = tmp_path / "board"
    assert setup._unpack(archives, root) == "3.11"
    assert (root / "usr/lib/python3.11/sitecustomize.py").read_text() == "here"
    assert (root / "lib/ld-linux-aarch64.so.1").exists()
    assert not (root / "usr/lib/gone").is_symlink()
    assert not (root / "usr/share").exists()
    assert not (root / "usr/lib/a/gconv").exists()
    assert os.access(root / "usr/bin/python", os.X_OK)
    assert not [path for path in root.rglob("*") if path.is_symlink() and not path.exists()]
    assert debian.versions(archives)["libc6:arm64"] == "1:2-3"


@NO_DPKG
def test_only_the_emulators_are_kept(cache: Path, path: Path, tmp_path: Path) -> None:
    (path / "dpkg-deb").symlink_to("/usr/bin/dpkg-deb")
    for name in ("tar", "xz", "zstd"):
        if found := shutil.which(name, path=os.defpath):
            (path / name).symlink_to(found)
    cache.mkdir(parents=True)
    files = {"usr/bin/qemu-aarch64-static": "64", "usr/bin/qemu-mips-static": "mips"}
    older = package(tmp_path, "qemu-user-static", files, {})
    with pytest.raises(DeviceError, match="has no qemu-arm: install qemu-user"):
        setup._keep_emulators([older], tmp_path / "first")
    # Debian 13: the same programs under other names, and the old ones are links.
    newer = package(
        tmp_path,
        "qemu-user",
        {"usr/bin/qemu-aarch64": "64", "usr/bin/qemu-arm": "32"},
        {"usr/bin/qemu-arm-static": "qemu-arm"},
    )
    found = setup._keep_emulators([newer], tmp_path / "second")
    assert {arch: path.read_text() for arch, path in found.items()} == {
        "aarch64": "64",
        "armv7l": "32",
    }
    assert sorted(path.name for path in setup._own_emulators().iterdir()) == [
        "qemu-aarch64",
        "qemu-arm",
    ]


# --- wheels


def test_wheels_for_an_older_python_are_looked_for_without_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def pip(requirements: list[str], python: str, folder: Path) -> str:
        asked.append(requirements)
        for name in ("tvm/libtvm.so", "tvm/libtvm_runtime.so", "tvm/src/a", "numpy/x/tests/b"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return "no numpy 9.9 for Python 3.9" if len(asked) == 1 else ""

    monkeypatch.setattr(wheels, "_pip", pip)
    wanted = {toolchain.TVM_PACKAGE: "0.19.0.12", "numpy": "9.9", "rich": ""}
    wheels.install(wanted, "3.9", tmp_path / "site", lambda line: None)
    assert asked == [
        [f"{toolchain.TVM_PACKAGE}==0.19.0.12", "numpy==9.9", "rich"],
        [f"{toolchain.TVM_PACKAGE}==0.19.0.12", "numpy", "rich"],
    ]
    assert sorted(path.name for path in (tmp_path / "site").rglob("*") if path.is_file()) == [
        "libtvm_runtime.so"
    ]


def test_no_wheel_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_pip", lambda *_: "No matching distribution found for numpy")
    with pytest.raises(DeviceError, match=r"wheels .* \(No matching distribution found for numpy"):
        wheels.install({"numpy": "2"}, "3.11", tmp_path / "site", lambda line: None)


def test_a_board_says_what_it_is_made_of(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulators = {"aarch64": Path("/qemu-aarch64"), "armv7l": Path("/qemu-arm")}
    monkeypatch.setattr(setup, "_emulators", lambda: emulators)
    root = cache / f"board-{setup.key()}"
    root.mkdir(parents=True)
    assert not qemu.is_set_up()
    about = setup.About("3.11.2", {"libc6:arm64": "2.36"})
    (root / "board.json").write_bytes(msgspec.json.encode(about))
    assert qemu.why_not() == ""
    found = qemu.runtime()
    assert found == qemu.QemuRuntime(root, emulators, "3.11.2", {"libc6:arm64": "2.36"})
