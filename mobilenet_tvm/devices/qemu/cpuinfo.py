"""What an emulated CPU says of itself: ``/proc/cpuinfo``, which under qemu 7 is the host's.

qemu looks for an absolute path in its sysroot first. So each emulated CPU gets a sysroot of its
own: links to the board's files, and its ``proc/cpuinfo``, with the features that qemu tells
programs in ``AT_HWCAP``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mobilenet_tvm.errors import DeviceError, last_line

# Bits of AT_HWCAP and AT_HWCAP2 in order: Linux, arch/arm64/include/uapi/asm/hwcap.h.
_HWCAP = """
fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc
dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg
"""
_HWCAP2 = """
dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm
svebf16 i8mm bf16 dgh rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32
smeb16f32 smef32f32 smefa64 wfxt ebf16 sveebf16 cssc rprfm sve2p1 sme2 sme2p1
"""
_ASK = "import ctypes; ask = ctypes.CDLL(None).getauxval; ask.restype = ctypes.c_ulong; "
_ASK += "print(ask(16), ask(26))"
_TIMEOUT_S = 60.0

# CPU implementer and part: MIDR_EL1 in ARM's Technical Reference Manuals.
_PARTS = {
    "a64fx": (0x46, 0x001),
    "cortex-a35": (0x41, 0xD04),
    "cortex-a53": (0x41, 0xD03),
    "cortex-a55": (0x41, 0xD05),
    "cortex-a57": (0x41, 0xD07),
    "cortex-a72": (0x41, 0xD08),
    "cortex-a76": (0x41, 0xD0B),
    "neoverse-n1": (0x41, 0xD0C),
    "neoverse-v1": (0x41, 0xD40),
}


def sysroot(board: Path, python: Path, emulator: Path, cpu: str) -> Path:
    """The board's files as they are with this CPU; made at its first use, in 0.5 s.

    Args:
        board: the board's files.
        python: its Python, an aarch64 program.
        emulator: qemu-aarch64.
        cpu: as for qemu's ``-cpu``.

    Raises:
        DeviceError: a program does not start on it, or the cache cannot be written.
    """
    folder = board / "cpus" / cpu
    if folder.exists():
        return folder
    text = describe(cpu, features(board, python, emulator, cpu), os.cpu_count() or 1)
    try:
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch, "made")
            (made / "proc").mkdir(parents=True)
            (made / "proc/cpuinfo").write_text(text)
            for name in ("etc", "lib", "usr"):
                (made / name).symlink_to(f"../../{name}")
            with contextlib.suppress(OSError):  # another process was first
                made.rename(folder)
    except OSError as error:
        raise DeviceError(f"{folder.parent} cannot be written ({error.strerror})") from None
    return folder


def features(board: Path, python: Path, emulator: Path, cpu: str) -> list[str]:
    """What programs may use on this CPU, as Linux names it (``asimddp``)."""
    environment: Mapping[str, str] = {"QEMU_CPU": cpu, "QEMU_LD_PREFIX": str(board)}
    command = [str(emulator), str(python), "-I", "-S", "-c", _ASK]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"the emulated board does not start: {error}") from None
    if done.returncode:
        why = last_line(Exception(done.stderr or f"exit status {done.returncode}"))
        raise DeviceError(f"the emulated board does not start with the CPU {cpu}: {why}")
    found = []
    for bits, names in zip(done.stdout.split(), (_HWCAP, _HWCAP2), strict=True):
        found += [name for bit, name in enumerate(names.split()) if int(bits) >> bit & 1]
    return found


def describe(cpu: str, features: list[str], cores: int) -> str:
    """``/proc/cpuinfo`` as Linux writes it on ARM, with a model name that hides nothing."""
    lines = [f"model name\t: {cpu} under qemu", f"Features\t: {' '.join(features)}"]
    if part := _PARTS.get(cpu.split(",")[0]):
        lines += [f"CPU implementer\t: 0x{part[0]:02x}", "CPU architecture: 8"]
        lines += ["CPU variant\t: 0x0", f"CPU part\t: 0x{part[1]:03x}", "CPU revision\t: 0"]
    return "".join("\n".join([f"processor\t: {core}", *lines, "", ""]) for core in range(cores))
