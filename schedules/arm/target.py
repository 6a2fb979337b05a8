"""What the current ARM target's registers and pipeline allow."""

from __future__ import annotations

import math
import platform

from tvm.target import Target

LANES = 4  # float32 in a vector of NEON

# LLVM's names of the cores that issue in order; all others that it knows do not.
_IN_ORDER = frozenset(
    f"cortex-a{number}" for number in (5, 7, 8, 32, 34, 35, 53, 55, 65, "65ae", 510, 520)
)


def is_arm(target: Target) -> bool:
    """Whether ``target`` is an ARM CPU with NEON (64-bit ones all have it)."""
    if target.kind.name != "llvm" or "arm_cpu" not in target.keys:
        return False
    features = [str(feature) for feature in target.attrs.get("mattr", ())]
    application_core = str(target.attrs.get("mcpu", "")).startswith("cortex-a")
    return is_64_bit(target) or "+neon" in features or application_core


def is_64_bit(target: Target) -> bool:
    """Whether ``target`` is AArch64 (as this machine is, when it names no triple)."""
    triple = str(target.attrs.get("mtriple", "")) or platform.machine()
    return triple.lower().startswith(("aarch64", "arm64"))


def registers() -> int:
    """Vector registers of the current target: 32, or 16 of a 32-bit one."""
    return 32 if is_64_bit(Target.current(allow_none=False)) else 16


def in_order() -> bool:
    """Whether the current target issues in order.

    A 32-bit target that names no core is taken for one: most such boards are, and a schedule
    for them costs the others little.
    """
    target = Target.current(allow_none=False)
    core = str(target.attrs.get("mcpu", ""))
    return core in _IN_ORDER or (not core and not is_64_bit(target))


def load_lanes() -> int:
    """Floats that one load had better take on the current target: a whole vector, or half.

    Beside an FMA, Cortex-A55 and its like issue a 64-bit load and no wider one. Cortex-A53 does
    too, but LLVM's model of it orders the loads worse than it gains (llvm-mca, 10 %).
    """
    target = Target.current(allow_none=False)
    halves = in_order() and is_64_bit(target) and str(target.attrs.get("mcpu", "")) != "cortex-a53"
    return LANES // 2 if halves else LANES


def channel_block(channels: int) -> int:
    """Channels in one block: 4, or 2 or 1 where four do not divide their number.

    It depends on nothing else, so the output of one layer is the input of the next as it is.
    Never 3: LLVM loads such a vector in two pieces.
    """
    return math.gcd(channels, LANES)
