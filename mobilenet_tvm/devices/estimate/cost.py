"""From counts to cycles.

Computing and each level's transfers go on side by side, so the slowest of them is the least that a
kernel takes (the roofline). But they are not wholly hidden behind it: buffers fill, and what is
fetched early is not always early enough. A share of the rest is added::

    cycles = slowest + SEEN * (all - slowest)

of computing (``llvm-mca``, every load a hit in L1) and the transfers from L2, L3 and memory. A line
that a prefetcher foresees takes a line's worth of the level's bandwidth; any other one the
level's latency, divided by the misses that may be under way at a time, where that is more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobilenet_tvm.devices.estimate import mca
from mobilenet_tvm.devices.estimate.cores import LINE_BYTES, Core
from mobilenet_tvm.devices.estimate.emulator import Emulation, Traffic
from mobilenet_tvm.devices.estimate.traces import traces

# Between the roofline's 0 (all is hidden) and 1 (nothing is). On Zen 4, anything from 0.1 to 1
# chooses about equally well (benchmarks/estimate.py); the pure roofline does not see what
# candidates differ in.
SEEN = 0.25


@dataclass(frozen=True)
class Cost:
    """Cycles of one call of a kernel.

    Attributes:
        instructions: executed.
        computing: with every load a hit in L1.
        transfers: from L2, L3 and memory, were nothing else going on.
    """

    instructions: int
    computing: float
    transfers: tuple[float, float, float]

    @property
    def cycles(self) -> float:
        """The estimate."""
        parts = (self.computing, *self.transfers)
        return max(parts) + SEEN * (sum(parts) - max(parts))


def cost_of(program: Path, emulation: Emulation, core: Core, *, triple: str) -> Cost:
    """The cost of what an emulated kernel did.

    Raises:
        EmulationError: ``llvm-objdump`` or ``llvm-mca`` failed.
    """
    code = mca.disassemble(program)
    paths = traces(emulation.blocks)
    pieces = [[line for key in path.blocks for line in mca.text_of(code, key)] for path in paths]
    each = mca.cycles(pieces, triple=triple, mcpu=core.mcpu)
    return Cost(
        sum(block.executions * key[1] for key, block in emulation.blocks.items()),
        sum(path.executions * cycles for path, cycles in zip(paths, each, strict=True)),
        transfers(emulation.traffic, core),
    )


def transfers(traffic: Traffic, core: Core) -> tuple[float, float, float]:
    """Cycles that the lines from L2, L3 and memory take."""

    def one(index: int) -> float:
        level = core.levels[index]
        foreseen = LINE_BYTES / level.bytes_per_cycle
        other = max(foreseen, level.latency_cycles / core.misses)
        return traffic.streamed[index] * foreseen + traffic.scattered[index] * other

    return (one(0), one(1), one(2))
