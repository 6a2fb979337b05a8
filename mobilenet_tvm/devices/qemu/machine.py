"""The emulated board as a value: programs are started on it as on the host."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mobilenet_tvm
from mobilenet_tvm import toolchain
from mobilenet_tvm.devices.qemu import cpuinfo, cpus
from mobilenet_tvm.devices.qemu.cpus import EmulatedCpu
from mobilenet_tvm.errors import DeviceError, UsageError

# Within the sysroot. Python takes its name for sys.executable, so that it can be executed.
PYTHON = "usr/bin/python"
EMULATOR_VARIABLE = "MOBILENET_TVM_QEMU"
_PYTHON_SCRIPT = f"""#!/bin/sh
# sys.executable of the emulated board. The kernel cannot execute an aarch64 program, but it can
# a script: so subprocess, multiprocessing and TVM's workers start it from within, too.
here=$(dirname "$0")
# A guest that crashes would leave qemu's core file in the current folder.
ulimit -c 0
emulator=${{{EMULATOR_VARIABLE}:-qemu-aarch64}}
exec "$emulator" -0 "$0" "$here/python@VERSION@" "$@"
"""


def python_script(version: str) -> str:
    """What ``PYTHON`` holds, for Python ``3.11``."""
    return _PYTHON_SCRIPT.replace("@VERSION@", version)


# Of the host's environment a program on the board gets no more: not its LD_PRELOAD, PYTHONHOME,
# VIRTUAL_ENV, nor TVM's and qemu's settings.
_INHERITED = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")

# The default CPU of each architecture: the most usual boards'.
_PLAIN = {"aarch64": "cortex-a72", "armv7l": "cortex-a7"}

# e_machine of an ELF header, and this package's name for it (``Preset.arch``).
_ARCHS = {40: "armv7l", 183: "aarch64"}


@dataclass(frozen=True)
class QemuRuntime:
    """An aarch64 Linux board with Python and TVM's runtime, under qemu-user.

    Its processes are processes of this machine with its files, network and clock. Tried with
    qemu 7.2: fork (with threads, too), kill, waitpid, signals, timers, sockets, shared memory,
    ``prctl(PR_SET_PDEATHSIG)`` and ``RLIMIT_CPU`` work as on a board, and so does a new
    ``sys.executable``; a crash of a child is seen as its signal. What does not:

    - ``RLIMIT_AS`` and ``RLIMIT_DATA`` are accepted and do nothing. A child's ``VmRSS`` in /proc
      is true, plus some 50 MiB of qemu's.
    - ``/proc/cpuinfo`` is one of ours (``cpuinfo``), for qemu 7 shows the host's; ``/sys`` is the
      host's.
    - Another aarch64 program than ``sys.executable`` cannot be executed from within ("Exec format
      error"); one of the host's can, and is the host's.
    - Its times say nothing about a board's.

    Attributes:
        root: the board's files.
        emulators: qemu-user's program for each ``Preset.arch``.
        python_version: of the board's Python, ``3.11.2``.
        versions: what it is made of, by name: Debian packages, wheels.
    """

    root: Path
    emulators: Mapping[str, Path]
    python_version: str
    versions: Mapping[str, str]

    def popen(
        self,
        argv: Sequence[str],
        *,
        cpu: str = _PLAIN["aarch64"],
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start ``python ARGV`` of the board; this package can be imported there as it is here.

        Args:
            argv: ``["-m", "mobilenet_tvm.serve", ...]``.
            cpu: a name that qemu knows (``emulated_cpu``); an instruction that it lacks ends the
                process with SIGILL.
            env: variables on top of the board's own environment.
            options: as for ``subprocess.Popen``, whose pid is the emulated process's own.

        Raises:
            UsageError: qemu knows no such CPU.
            DeviceError: qemu does not run.
        """
        environment = self._environment("aarch64", cpu, env)
        return subprocess.Popen([str(self.root / PYTHON), *argv], env=environment, **options)

    def run_python(
        self,
        argv: Sequence[str],
        *,
        cpu: str = _PLAIN["aarch64"],
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """``popen``, waited for: options as for ``subprocess.run``."""
        environment = self._environment("aarch64", cpu, env)
        return subprocess.run([str(self.root / PYTHON), *argv], env=environment, **options)

    def run(
        self,
        argv: Sequence[str],
        *,
        cpu: str | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program: aarch64, with the board's shared libraries, or static ARMv7.

        Args:
            argv: the path of an ELF file, and its arguments.
            cpu: a name that qemu knows for that architecture; by default a plain board's.
            env: variables on top of the board's own environment.
            options: as for ``subprocess.run``.

        Raises:
            UsageError: no ELF file for ARM, or a CPU that qemu does not know.
            DeviceError: qemu does not run.
        """
        arch = elf_arch(Path(argv[0]))
        environment = self._environment(arch, cpu or _PLAIN[arch], env)
        return subprocess.run([str(self.emulators[arch]), *argv], env=environment, **options)

    def cpus(self, arch: str = "aarch64") -> tuple[str, ...]:
        """CPU models that qemu knows for ``aarch64`` or ``armv7l``."""
        return cpus.known(self.emulators[arch])

    def emulated_cpu(self, cpu: str, arch: str = "aarch64") -> EmulatedCpu:
        """What to emulate for LLVM's ``-mcpu`` name: see ``cpus.nearest``."""
        return cpus.nearest(cpu, self.cpus(arch), arch)

    def _environment(self, arch: str, cpu: str, env: Mapping[str, str] | None) -> dict[str, str]:
        cpus.check(self.emulators[arch], cpu)
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= {
            "QEMU_CPU": cpu,
            EMULATOR_VARIABLE: str(self.emulators["aarch64"]),
            toolchain.CACHE_VARIABLE: str(toolchain.cache_dir()),
            "PYTHONPATH": str(_only_our_package()),
            "PYTHONUNBUFFERED": "1",
            "TOPHUB_LOCATION": "NONE",
            "TVM_USE_RUNTIME_LIB": "1",
        }
        if arch == "aarch64":
            python = self.root / f"{PYTHON}{'.'.join(self.python_version.split('.')[:2])}"
            environment["QEMU_LD_PREFIX"] = str(
                cpuinfo.sysroot(self.root, python, self.emulators[arch], cpu)
            )
        return environment | dict(env or {})


def elf_arch(path: Path) -> str:
    """``Preset.arch`` of an ELF file.

    Raises:
        UsageError: it is no ELF file for ARM.
    """
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    if header[:4] != b"\x7fELF" or len(header) < 20:
        raise UsageError(f"{path} is no program for the emulated board: it is no ELF file")
    machine = int.from_bytes(header[18:20], "little")
    if machine not in _ARCHS:
        raise UsageError(f"{path} is no program for ARM (ELF machine {machine})")
    return _ARCHS[machine]


def _only_our_package() -> Path:
    """A folder to import this very ``mobilenet_tvm`` from, and nothing else.

    Beside it lie the host's packages where it is installed, for the wrong architecture.

    Raises:
        DeviceError: the cache cannot be written.
    """
    package = Path(mobilenet_tvm.__file__).resolve().parent
    name = hashlib.sha256(str(package).encode()).hexdigest()[:16]
    folder = toolchain.cache_dir() / "qemu" / "packages" / name
    link = folder / "mobilenet_tvm"
    if link.is_symlink() and link.readlink() == package:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, "link")
            made.symlink_to(package)
            made.replace(link)  # two processes may do so at once
    except OSError as error:
        raise DeviceError(f"{folder} cannot be written ({error.strerror})") from None
    return folder
