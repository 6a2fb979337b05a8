"""The channel-blocked layout NCHW[x]c, and what the target's registers allow."""

from __future__ import annotations

from tvm.target import Target
from tvm.target.x86 import get_simd_32bit_lanes

from mobilenet_tvm.schedules.layout import largest_block

# Channels of half a vector: lanes of ymm registers, of which AVX-512 has 32 as well.
_HALF = 8


def lanes() -> int:
    """float32 lanes of the current target's vectors: 16 (AVX-512), 8 (AVX) or 4 (SSE)."""
    return int(get_simd_32bit_lanes())


def registers() -> int:
    """Vector registers of the current target: 32 zmm (AVX-512), or 16 ymm or xmm."""
    return 32 if lanes() == 16 else 16


def channel_block(channels: int) -> int:
    """Channels in one block: a vector of them, else half a vector of AVX-512, else the largest
    divisor of ``channels`` that fits a vector.

    It depends on nothing else, so the output of one layer is the input of the next as it is.
    Half vectors leave no lane idle: 24 channels are three of 8, where two of 12 would idle a
    quarter of the lanes.
    """
    if channels % lanes() and channels % _HALF == 0:
        return _HALF
    return largest_block(channels, lanes())


def is_x86(target: Target) -> bool:
    """Whether ``target`` is an x86 CPU (the host, when it names no triple)."""
    import platform

    if target.kind.name != "llvm" or "arm_cpu" in target.keys:
        return False
    triple = str(target.attrs.get("mtriple", ""))
    return (triple or platform.machine()).lower().startswith(("x86_64", "amd64", "i686"))
