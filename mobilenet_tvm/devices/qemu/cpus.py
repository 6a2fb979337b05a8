"""Which CPU qemu-user is to be for one that a module is compiled for.

An emulated CPU is a guard: an instruction that it lacks ends the program with SIGILL. So the
nearest model is wanted that has all instructions of the CPU compiled for, and few more.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mobilenet_tvm.errors import DeviceError, UsageError, last_line

# For a CPU that qemu may not have, models with at least its instructions, nearest first (the
# tests hold each row against LLVM's lists): ARMv8.2 with dot products and half floats is what
# A55, A75 to A78, X1 and N1 have in common. A CPU that is not here is emulated as "max".
_AARCH64: dict[str, tuple[str, ...]] = {
    "generic": ("cortex-a53",),
    "cortex-a34": ("cortex-a35", "cortex-a53"),
    "cortex-a55": ("cortex-a76", "neoverse-n1"),
    "cortex-a73": ("cortex-a72", "cortex-a57"),
    "cortex-a75": ("cortex-a76", "neoverse-n1"),
    "cortex-a77": ("cortex-a76", "neoverse-n1"),
    "cortex-a78": ("cortex-a76", "neoverse-n1"),
    "cortex-x1": ("cortex-a76", "neoverse-n1"),
}
# A8 is ARMv7 with NEON and no more: A7 and A15 have fused multiply-add and division.
_ARMV7: dict[str, tuple[str, ...]] = {
    "generic": ("cortex-a8", "cortex-a9"),
    "cortex-a5": ("cortex-a7", "cortex-a15"),
    "cortex-a12": ("cortex-a15",),
    "cortex-a17": ("cortex-a15",),
}
TABLES = {"aarch64": _AARCH64, "armv7l": _ARMV7}


@dataclass(frozen=True)
class EmulatedCpu:
    """``name`` for qemu's ``-cpu``; ``note`` says what differs, and is empty for the CPU itself."""

    name: str
    note: str = ""


@functools.cache
def known(emulator: Path) -> tuple[str, ...]:
    """The CPU models that this qemu knows.

    Raises:
        DeviceError: it does not run.
    """
    try:
        # qemu 7 ends with status 1 after this list.
        done = subprocess.run(
            [str(emulator), "-cpu", "help"],
            capture_output=True,
            text=True,
            timeout=30,
            env={},  # nothing of a QEMU_CPU or LD_PRELOAD of the host's
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"{emulator} does not run ({error}): reinstall qemu-user") from None
    models = tuple(line.split()[0] for line in done.stdout.splitlines() if line.startswith(" "))
    if not models:
        why = last_line(Exception(done.stderr or f"exit status {done.returncode}"))
        raise DeviceError(f"{emulator} does not run ({why}): reinstall qemu-user")
    return models


def check(emulator: Path, cpu: str) -> None:
    """Refuse a CPU that qemu does not know (``max,sve=off`` is ``max`` with an option).

    Raises:
        UsageError: unknown; the message names the known ones.
    """
    models = known(emulator)
    if cpu.split(",")[0] not in models:
        raise UsageError(
            f"{emulator.name} knows no CPU {cpu}; it knows {', '.join(sorted(models))}"
        )


def nearest(cpu: str, models: Collection[str], arch: str = "aarch64") -> EmulatedCpu:
    """What to emulate for LLVM's ``-mcpu`` name, of the ``models`` that qemu knows.

    Args:
        cpu: ``cortex-a55``.
        models: ``known(emulator)``.
        arch: ``aarch64`` or ``armv7l``.
    """
    if cpu in models:
        return EmulatedCpu(cpu)
    for name in TABLES[arch].get(cpu, ()):
        if name in models:
            note = f"this qemu has no {cpu}: {name}, which has at least its instructions"
            return EmulatedCpu(name, note)
    return EmulatedCpu(
        "max", f"this qemu has no {cpu}: max, which has instructions that the board lacks"
    )
