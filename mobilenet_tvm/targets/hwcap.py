"""What an ARM CPU can do, by the kernel's own bits (``getauxval``), named as /proc/cpuinfo does.

Not /proc/cpuinfo itself: under qemu-user that is the host's. The tables are those of Linux,
arch/arm64/kernel/cpuinfo.c and arch/arm/kernel/setup.c.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Final

_AT_HWCAP: Final = 16
_AT_HWCAP2: Final = 26

_AARCH64: Final = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma "
    "lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
_AARCH64_2: Final = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm "
    "svebf16 i8mm bf16 dgh rng bti"
)
_ARM: Final = (
    "swp half thumb 26bit fastmult fpa vfp edsp java iwmmxt crunch thumbee neon vfpv3 vfpv3d16 "
    "tls vfpv4 idiva idivt vfpd32 lpae evtstrm"
)
_ARM_2: Final = "aes pmull sha1 sha2 crc32"


def is_arm(machine: str | None = None) -> bool:
    """Whether ``machine`` (default: this one) is ARM, of 32 or 64 bits."""
    return (machine or platform.machine()).startswith(("aarch64", "arm"))


def names(machine: str, hwcap: int, hwcap2: int) -> frozenset[str]:
    """Features by the two words of bits that the kernel of ``machine`` gives a process."""
    first, second = (_AARCH64, _AARCH64_2) if machine == "aarch64" else (_ARM, _ARM_2)
    return frozenset(
        name
        for table, bits in ((first, hwcap), (second, hwcap2))
        for bit, name in enumerate(table.split())
        if bits >> bit & 1
    )


def hwcap_features() -> frozenset[str]:
    """Of this CPU; none where the C library cannot tell (macOS), or where it is no ARM."""
    if not is_arm():
        return frozenset()
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return frozenset()
    getauxval.restype = ctypes.c_ulong
    getauxval.argtypes = [ctypes.c_ulong]
    return names(platform.machine(), getauxval(_AT_HWCAP), getauxval(_AT_HWCAP2))
