"""What a core does with a line that is not in its L1: the figures that the estimate needs.

Sizes of the caches are the preset's; how instructions flow is LLVM's own model of the core. Here
stand the rest. They are round figures of the right size, not measurements: of latencies only
Neoverse N1's have a source (AnandTech on Graviton2, 2020: L2 11 cycles, memory 81 ns), the others,
the associativities and the widths between caches are what such cores usually have, and where
nothing was known a relative's figure stands. Zen 4's were set while looking at six of the layers
that docs/estimate.md reports, before the other eight were measured. The order of candidates hardly
depends on them (that page says how little).
"""

from __future__ import annotations

from dataclasses import dataclass

from mobilenet_tvm.targets import Preset


@dataclass(frozen=True)
class Level:
    """A cache, or memory, as the core sees it.

    Attributes:
        bytes_per_cycle: that a stream of lines comes at.
        latency_cycles: until a line that nobody foresaw is there.
        ways: associativity; of memory 0.
    """

    bytes_per_cycle: float
    latency_cycles: float
    ways: int = 0


@dataclass(frozen=True)
class Core:
    """One core.

    Attributes:
        mcpu: LLVM's name of it, whose scheduling model ``llvm-mca`` uses.
        clock_hz: nominal; turns cycles into the seconds that records hold.
        l1_ways: associativity of the L1 data cache.
        l2: the second-level cache.
        l3: the third, where the preset has one.
        memory: what lies behind.
        misses: that may be under way at a time.
    """

    mcpu: str
    clock_hz: float
    l1_ways: int
    l2: Level
    l3: Level
    memory: Level
    misses: int

    @property
    def levels(self) -> tuple[Level, Level, Level]:
        """What serves a line that is not in L1, nearest first."""
        return (self.l2, self.l3, self.memory)


LINE_BYTES = 64  # of every core here

_NO_L3 = Level(1, 1, 1)

_CORES = (
    Core("cortex-a53", 1.4e9, 4, Level(8, 15, 16), _NO_L3, Level(2, 180), 3),
    Core("cortex-a55", 1.8e9, 4, Level(16, 10, 4), Level(8, 35, 16), Level(4, 200), 4),
    Core("cortex-a72", 1.5e9, 2, Level(16, 21, 16), _NO_L3, Level(3, 200), 6),
    Core("cortex-a76", 2.4e9, 4, Level(32, 11, 8), Level(16, 35, 16), Level(5, 280), 20),
    Core("neoverse-n1", 2.5e9, 4, Level(32, 11, 8), Level(12, 80, 16), Level(6, 200), 20),
    Core("neoverse-v1", 2.6e9, 4, Level(32, 11, 8), Level(16, 80, 16), Level(8, 220), 32),
    Core("haswell", 3.4e9, 8, Level(32, 12, 8), Level(16, 36, 16), Level(5, 220), 10),
    # LLVM's model of x86-64-v2 is Sandy Bridge's.
    Core("x86-64-v2", 3.4e9, 8, Level(16, 12, 8), Level(12, 30, 16), Level(4, 220), 10),
    # No preset's: what benchmarks/estimate.py compares estimates with.
    Core("znver4", 3.7e9, 8, Level(32, 14, 8), Level(24, 50, 16), Level(6, 400), 24),
)
CORES = {core.mcpu: core for core in _CORES}


def core_of(preset: Preset) -> Core | None:
    """The core that a preset compiles for, None where there are no figures of it."""
    return CORES.get(preset.cpu)
