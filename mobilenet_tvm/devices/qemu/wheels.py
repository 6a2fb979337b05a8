"""The Python packages of the emulated board: aarch64 wheels in the versions installed here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import DeviceError

# What serving, loading and running an artifact imports, TVM's own needs at run time included.
NAMES = (
    toolchain.TVM_PACKAGE,
    "archspec",
    "cloudpickle",
    "filelock",
    "markdown-it-py",
    "mdurl",
    "ml_dtypes",
    "msgspec",
    "numpy",
    "packaging",
    "platformdirs",
    "psutil",
    "pyelftools",
    "pygments",
    "rich",
    "rich-argparse",
    "tornado",
    "typing_extensions",
)

# The board needs no compiler: libtvm.so is 69 MB, TVM's sources 65 MB.
_TRIMMED = (
    "bin",
    "tvm/libtvm.so",
    "tvm/3rdparty",
    "tvm/include",
    "tvm/jvm",
    "tvm/rust",
    "tvm/src",
    "tvm/web",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/distutils",
    "numpy/f2py",
)

# glibc of Debian 11 and later is at least 2.31.
_PLATFORMS = ("2_17", "2_26", "2_27", "2_28")
_TIMEOUT_S = 600.0


def pins() -> dict[str, str]:
    """Version of each of ``NAMES`` as it is installed here; "" of what is not."""
    found = {}
    for name in NAMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = toolchain.pinned() if name == toolchain.TVM_PACKAGE else ""
    return found


def install(
    wanted: Mapping[str, str], python: str, folder: Path, say: Callable[[str], None]
) -> None:
    """Unpack aarch64 wheels into ``folder``, without what only a compiler needs.

    Args:
        wanted: versions by name, as of ``pins()``.
        python: the emulated Python's version, ``3.11``.
        folder: gets them; it must not exist.
        say: gets progress lines.

    Raises:
        DeviceError: no pip, no network, or no such wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise DeviceError(f"pip is missing here: {sys.executable} -m ensurepip")
    exact = [f"{name}=={version}" if version else name for name, version in wanted.items()]
    say(f"pip: {len(exact)} aarch64 wheels for Python {python}")
    trouble = _pip(exact, python, folder)
    if trouble:
        # The emulated Python may be older than this one, and newer numpys are not for it.
        shutil.rmtree(folder, ignore_errors=True)
        loose = [exact[0], *list(wanted)[1:]]
        if _pip(loose, python, folder):
            raise DeviceError(
                f"pip cannot fetch the aarch64 wheels of the emulated board ({trouble}); it "
                "needs the network once"
            )
    for name in _TRIMMED:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for tests in sorted(folder.glob("numpy/**/tests")):
        shutil.rmtree(tests)


def _pip(requirements: list[str], python: str, folder: Path) -> str:
    """What pip says is wrong; "" when nothing is."""
    options = ["--only-binary=:all:", "--no-deps", "--no-compile", "--quiet"]
    platforms = ["manylinux2014_aarch64", *(f"manylinux_{name}_aarch64" for name in _PLATFORMS)]
    options += [option for name in platforms for option in ("--platform", name)]
    options += ["--python-version", python, "--implementation", "cp"]
    for abi in ("cp" + python.replace(".", ""), "abi3", "none"):
        options += ["--abi", abi]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--target", str(folder), *options, *requirements],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    return errors[-1].removeprefix("ERROR: ") if errors else f"exit status {done.returncode}"


def installed(folder: Path) -> dict[str, str]:
    """Versions of what ``install`` put there."""
    return {
        distribution.name: distribution.version
        for distribution in importlib.metadata.distributions(path=[str(folder)])
    }
