"""Our two pieces of C, compiled once into the cache: the plugin for qemu, and the harness.

Qemu's plugin interface has a version, and a qemu refuses a plugin made for another; the few
functions used are the same in all, so the plugin is compiled for the first version that the
qemu at hand takes. Only a qemu that is linked dynamically can load plugins (Debian's ``qemu-user``,
not ``qemu-user-static``).
"""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.targets import Preset

# Versions 1 (qemu 4.2 to 8.2) to what there may be by the time that this is run.
_API_VERSIONS = range(1, 9)
# Address space of the emulated program, of which it gets what it touches.
_ARENA_BYTES = 1 << 28
# What the kernel is called in its object (``tvm.build`` of a schedule).
KERNEL = "default_function"
_INSTALL = "install qemu-user (on Debian and Ubuntu: apt-get install qemu-user)"


def qemu_of(preset: Preset) -> Path:
    """The emulator of a preset's machine.

    Raises:
        DeviceError: it is not installed.
    """
    name = f"qemu-{preset.arch}"
    found = shutil.which(name)
    if found is None:
        raise DeviceError(f"there is no {name}: {_INSTALL}")
    return Path(found)


@functools.cache
def plugin(qemu: Path) -> Path:
    """The plugin, compiled for this ``qemu``.

    Raises:
        DeviceError: it takes no plugins, or the plugin cannot be compiled.
    """
    said = ""
    for version in _API_VERSIONS:
        options = ["-shared", "-nostdlib", "-O2", "-fvisibility=hidden", f"-DAPI_VERSION={version}"]
        path = _compiled("plugin.c", f"{platform.machine()}.so", options)
        # Plugins are loaded before the program, which is not there, so nothing is run.
        done = subprocess.run(
            [qemu, "-plugin", f"{path},out={path}.none", "/nonexistent"],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stderr.strip()
        if "plugin" not in said:
            return path
        if "version" not in said:
            break
    raise DeviceError(
        f"{qemu} loads no plugins ({(said.splitlines() or ['no reason given'])[0]}): {_INSTALL}, "
        "not a static build of it"
    )


@functools.cache
def harness(arch: str) -> Path:
    """The object that a kernel is linked with, for ``aarch64`` or ``x86_64``.

    Raises:
        DeviceError: it cannot be compiled.
    """
    options = ["-target", f"{arch}-freestanding-none", "-c", "-O2", "-fno-stack-protector"]
    # Else the loop in memset becomes a call of memset.
    options += ["-fno-builtin", "-fno-sanitize=all"]
    options += [f"-DKERNEL={KERNEL}", f"-DARENA_BYTES={_ARENA_BYTES}"]
    return _compiled("harness.c", f"{arch}.o", options)


def _compiled(source: str, name: str, options: Sequence[str]) -> Path:
    """A source of ours, compiled into the cache."""
    return toolchain.compiled(Path(__file__).with_name(source), "estimate", name, options)
