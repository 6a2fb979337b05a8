"""Setting the emulated board up, once for each set of versions, in the cache folder.

``<cache>/qemu/board-<key>`` holds its files, ``<cache>/qemu/emulator-<key>`` Debian's static qemu
where PATH has none. Each is built in a folder of another name and renamed when it works: one
that is there is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from mobilenet_tvm import toolchain
from mobilenet_tvm.devices.qemu import debian, wheels
from mobilenet_tvm.devices.qemu.machine import PYTHON, QemuRuntime, python_script
from mobilenet_tvm.errors import DeviceError, last_line

COMMAND = "python -m mobilenet_tvm.devices.qemu"

# Raise it when what is made here changes.
_FORMAT = 2
_ABOUT = "board.json"
_FOREIGN = "arm64"
_PROGRAMS = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm"}
_BOARD_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_EMULATOR_PACKAGE = "qemu-user-static"
_UNFINISHED = ".unfinished-"
_CHECK_TIMEOUT_S = 120.0

# What the board's programs never open, a third of its size.
_TRIMMED = (
    "usr/lib/*/gconv",
    "usr/lib/python3*/*/test",
    "usr/lib/python3*/*/tests",
    "usr/lib/python3*/lib2to3",
    "usr/lib/python3*/pydoc_data",
    "usr/share",
    "usr/sbin",
)

# Also leaves the bytecode of all that it imports. TVM says on stderr which library it loads.
_CHECK = """
import platform, sys
import numpy, psutil, tvm, tvm.rpc.server, tvm.contrib.graph_executor
import mobilenet_tvm.runtime, mobilenet_tvm.targets, mobilenet_tvm.cli.frame
assert platform.machine() == "aarch64", platform.machine()
assert tvm.get_global_func("rpc.ServerLoop")
assert float(numpy.ones((8, 8), "float32").dot(numpy.ones(8, "float32")).sum()) == 64.0
print(platform.python_version())
"""


class About(msgspec.Struct, frozen=True):
    """What a finished board says of itself."""

    python_version: str
    versions: dict[str, str]


def is_set_up() -> bool:
    """Whether the emulated board can be used at once, with no network."""
    return _find() is not None


def why_not() -> str:
    """Why the emulated board cannot be used, and what to do, in a line; "" when it can."""
    if is_set_up():
        return ""
    missing = debian.missing_tools()
    if sys.platform != "linux":
        return f"not set up: qemu-user is for Linux; {debian.NO_APT}"
    if missing:
        return f"not set up: {' and '.join(missing)} not found; {debian.NO_APT}"
    return f"not set up: {COMMAND} (once; needs the network)"


def runtime(
    progress: Callable[[str], None] = lambda line: None, *, set_up: bool = True
) -> QemuRuntime:
    """The emulated board, set up first where it is not there yet.

    Args:
        progress: gets a line for each step of the set-up, which takes half a minute.
        set_up: whether it may be set up, over the network.

    Raises:
        DeviceError: it is not set up and cannot be; the message says what is missing.
    """
    found = _find()
    if found is not None:
        return found
    if not set_up or sys.platform != "linux" or debian.missing_tools():
        raise DeviceError(f"the emulated board is {why_not()}")
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, progress):
            return _find() or _set_up(folder, progress)
    except OSError as error:
        where = error.filename or folder
        raise DeviceError(
            f"the emulated board cannot be set up: {error.strerror}: {where}"
        ) from None


def key() -> str:
    """Names what a board is made of; another system or another version is another board."""
    made_of = {
        "format": _FORMAT,
        "system": debian.release(),
        "packages": _BOARD_PACKAGES,
        "wheels": wheels.pins(),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _folder() -> Path:
    return toolchain.cache_dir() / "qemu"


def _board() -> Path:
    return _folder() / f"board-{key()}"


def _own_emulators() -> Path:
    return _folder() / f"emulator-{debian.release()}-{platform.machine()}"


def _emulator(program: str) -> Path | None:
    """PATH's qemu, else ours."""
    for name in (program, f"{program}-static"):
        path = shutil.which(name)
        if path is not None:
            return Path(path).absolute()
    own = _own_emulators() / program
    return own if own.exists() else None


def _emulators() -> dict[str, Path] | None:
    found = {arch: _emulator(program) for arch, program in _PROGRAMS.items()}
    there = {arch: path for arch, path in found.items() if path is not None}
    return there if len(there) == len(found) else None


def _find() -> QemuRuntime | None:
    emulators = _emulators()
    about = _board() / _ABOUT
    if emulators is None or not about.exists():
        return None
    return _runtime(_board(), emulators, msgspec.json.decode(about.read_bytes(), type=About))


def _runtime(root: Path, emulators: dict[str, Path], about: About) -> QemuRuntime:
    return QemuRuntime(root, emulators, about.python_version, about.versions)


@contextlib.contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the set-up's lock, and clear away what a killed set-up left."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process is setting it up: waiting for it")
        lock.acquire()
    try:
        for left in folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def _set_up(folder: Path, say: Callable[[str], None]) -> QemuRuntime:
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as name:
        scratch = Path(name)
        emulators = _emulators()
        packages = [f"{package}:{_FOREIGN}" for package in _BOARD_PACKAGES]
        if emulators is None:
            packages.append(_EMULATOR_PACKAGE)
        (scratch / "apt").mkdir()
        archives = debian.fetch(packages, _FOREIGN, scratch / "apt", say)
        if emulators is None:
            emulators = _keep_emulators(archives, scratch / "emulators")
        root = scratch / "board"
        ours = [path for path in archives if path.stem.endswith((f"_{_FOREIGN}", "_all"))]
        say(f"unpacking {len(ours)} packages")
        python = _unpack(ours, root)
        site = root / f"usr/local/lib/python{python}/dist-packages"
        wanted = wheels.pins()
        wheels.install(wanted, python, site, say)
        say("trying it")
        made_of = debian.versions(ours) | wheels.installed(site)
        version = _check(_runtime(root, emulators, About(python, made_of)))
        about = About(version, made_of)
        (root / _ABOUT).write_bytes(msgspec.json.encode(about))
        # Left over from another version of this function, or by hand: not whole.
        shutil.rmtree(_board(), ignore_errors=True)
        root.rename(_board())
        return _runtime(_board(), emulators, about)


def _keep_emulators(archives: list[Path], scratch: Path) -> dict[str, Path]:
    """Debian's static qemu, for good."""
    scratch.mkdir()
    # Debian 13 has the same static programs in qemu-user, and without the ending.
    wanted = {
        f"usr/bin/{program}{ending}": scratch / program
        for program in _PROGRAMS.values()
        for ending in ("-static", "")
    }
    for archive in archives:
        if archive.name.startswith("qemu-user"):
            debian.unpack_files(archive, wanted)
    missing = [name for name in _PROGRAMS.values() if not (scratch / name).exists()]
    if missing:
        raise DeviceError(
            f"{_EMULATOR_PACKAGE} of this release has no {' and '.join(missing)}: install "
            "qemu-user, so that they are on PATH"
        )
    shutil.rmtree(_own_emulators(), ignore_errors=True)
    scratch.rename(_own_emulators())
    found = _emulators()
    assert found is not None, "just renamed"
    return found


def _unpack(archives: list[Path], root: Path) -> str:
    """Unpack packages into a sysroot without what no program opens; Python's version, ``3.11``."""
    root.mkdir()
    for archive in archives:
        debian.unpack(archive, root)
    for pattern in _TRIMMED:
        for path in root.glob(pattern):
            shutil.rmtree(path)
    if not (root / "lib").exists():  # since Debian 13 a link of base-files, which is not here
        (root / "lib").symlink_to("usr/lib")
    for path in root.rglob("*"):
        # Followed by the kernel, which knows of no sysroot: into the host's files.
        if path.is_symlink() and path.readlink().is_absolute():
            inside = root / path.readlink().relative_to("/")
            path.unlink()
            if inside.exists():
                path.symlink_to(os.path.relpath(inside, path.parent))
    pythons = [path.name for path in root.glob("usr/bin/python3.*") if path.name[9:].isdigit()]
    if len(pythons) != 1:
        raise DeviceError(f"Debian's packages hold {len(pythons)} Pythons instead of one")
    python = pythons[0].removeprefix("python")
    script = root / PYTHON
    script.unlink(missing_ok=True)
    script.write_text(python_script(python))
    script.chmod(0o755)
    return python


def _check(board: QemuRuntime) -> str:
    """Import all that it has, there; the version of its Python."""
    try:
        done = board.run_python(
            ["-c", _CHECK],
            cpu="max",
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        done.check_returncode()
    except subprocess.TimeoutExpired:
        raise DeviceError(f"the emulated board did not start in {_CHECK_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        why = last_line(Exception(error.stderr)) or str(error)
        raise DeviceError(f"the emulated board does not work: {why}") from None
    return str(done.stdout).strip()
