"""Which C++ compiler of this machine can build the plug-in.

It must be one that uses libstdc++, for libtvm does: types of the standard library go between the
two. Zig brings its own library, libc++, and is of use only where libstdc++'s headers are there.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mobilenet_tvm import toolchain
from mobilenet_tvm.cuda.errors import CudaError

_NAMES = ("g++", "clang++", "c++")
_INCLUDE = Path("/usr/include")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: how it is called.
        version: as it says itself, one line.
        compile_flags: that it wants when it compiles.
        link_flags: that it wants when it links.
    """

    command: tuple[str, ...]
    version: str
    compile_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()

    def run(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        """Call it; how it ended is for the caller to see."""
        return _run([*self.command, *arguments])


def find() -> Compiler | None:
    """``$CXX``, else g++, clang++, c++, else zig; None where there is none.

    Raises:
        CudaError: ``$CXX`` is set and is no compiler.
    """
    if chosen := os.environ.get("CXX", "").strip():
        try:
            command = shlex.split(chosen)
        except ValueError as error:
            what = f"CXX={chosen!r} cannot be read ({error})"
            raise CudaError(f"{what}: set it to a C++ compiler") from None
        version = _version(command)
        if version is None:
            raise CudaError(f"CXX={chosen!r} does not run: set it to a C++ compiler, or unset it")
        return Compiler(tuple(command), version)
    for name in _NAMES:
        path = shutil.which(name)
        if path and (version := _version([path])):
            return Compiler((path,), version)
    return _zig()


def _zig() -> Compiler | None:
    headers = _libstdcxx_headers()
    command = (sys.executable, "-m", "ziglang", "c++")
    version = _version(command) if headers else None
    if not version:
        return None
    # -I: before zig's own folders, or #include_next does not get from the one to the other.
    flags = ("-g0", "-nostdinc++", *(f"-I{folder}" for folder in headers))
    # The library itself comes with libtvm.
    return Compiler(command, f"zig, {version}", flags, ("-nostdlib++",))


def _libstdcxx_headers() -> tuple[Path, ...]:
    """Folders of the newest libstdc++ headers, none where they are not there in full."""
    machine = platform.machine()
    versions = [path for path in (_INCLUDE / "c++").glob("*") if path.name.isdecimal()]
    for path in sorted(versions, key=lambda path: int(path.name), reverse=True):
        # As Debian installs them, or as GCC does it itself.
        debian = _INCLUDE / f"{machine}-linux-gnu" / "c++" / path.name
        for folder in (debian, *sorted(path.glob(f"{machine}-*linux*"))):
            if (folder / "bits" / "c++config.h").exists():
                return path, folder
    return ()


def _version(command: list[str] | tuple[str, ...]) -> str | None:
    try:
        done = _run([*command, "--version"])
    except OSError:
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    # Our debug-info library is for LLVM inside TVM.
    environment.pop("LD_PRELOAD", None)
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        environment.setdefault(name, str(toolchain.cache_dir() / "zig"))
    return subprocess.run(command, capture_output=True, text=True, env=environment)
