"""How many cycles a schedule takes, by arithmetic: what picks the defaults of the templates.

One core is described by a few figures (``Core``); a schedule by what its inner loop issues and by
the bytes that each level of the caches must bring. docs/x86-schedules.md derives the formulas and
holds them against measured times. Only the order of the estimates matters here: they choose among
the knobs of one layer, and are never shown as times.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

FLOAT_BYTES: Final = 4


@dataclass(frozen=True)
class Core:
    """One core, as the model sees it.

    Attributes:
        registers: vector registers.
        l1_bytes: of the data cache that one loop may count on: three quarters of the smallest
            one in use (32 KiB).
        l2_bytes: likewise, of 1 MiB.
    """

    registers: int
    l1_bytes: int = 24 << 10
    l2_bytes: int = 768 << 10

    @property
    def most_sums(self) -> int:
        """The largest register tile, in vectors, that does not spill: all registers, less what
        the weights and the broadcast or shifted inputs need."""
        return self.registers - 4


# Bytes a cycle that one core reads: from L2 and L3 as loops of loads do that the prefetcher sees
# coming. Weights come from L3 or from memory, whichever the model's size leaves.
L2_BYTES_A_CYCLE: Final = 32.0
L3_BYTES_A_CYCLE: Final = 16.0
# A sum waits for its last FMA, so a step of a tile takes at least an FMA's latency: four cycles,
# of which a tile of few sums wants more, for its loads are late now and then.
FMA_LATENCY: Final = 6.0
# What a tile costs beside its sums: addresses, the first loads, the last stores.
TILE_CYCLES: Final = 4.0
# A unit of parallel work begins with divisions that find its place.
UNIT_CYCLES: Final = 120.0
# At each block of input channels a tile meets as many new cache lines as its pixels fill. They
# come while it computes, but for this times their square.
NEW_LINES: Final = 0.02
_LINE_BYTES: Final = 64
# Pixels of several rows are not neighbours: more lines and pages at once.
APART: Final = 1.05
# With several blocks of 512 bits each pixel is broadcast to a register first.
SEVERAL: Final = 1.04
# LLVM holds so many weights of a window in registers, or loads each where it is used.
_HELD_TAPS: Final = 9
# What of the shorter one is not hidden when a loop waits for memory and computes.
UNHIDDEN: Final = 0.1


def vector_cycles(block: int) -> float:
    """Cycles of one FMA, load or store of ``block`` float32 lanes: half a cycle up to 256 bits.

    So on Zen 4 in every case, and on Intel's for loads; for FMAs its second 512-bit port halves
    that, and loads are what bounds a tile of few blocks.
    """
    return 1.0 if block > 8 else 0.5


def fits(core: Core, chunks: int, pixels: int) -> bool:
    """Whether a register tile's sums stay in the registers.

    One block of weights is multiplied by pixels broadcast from memory, which needs a register
    beside the sums. Several blocks want theirs in registers, and LLVM loads the pixels of the
    next step early.
    """
    sums = chunks * pixels
    if chunks == 1:
        return sums <= core.most_sums
    return sums + chunks + min(pixels, 4) <= core.registers - 2


@dataclass(frozen=True)
class Gemm:
    """A pointwise convolution: ``channels`` x ``filters`` weights, ``height`` x ``width`` pixels.

    ``in_block`` and ``out_block`` are channels in one block.
    """

    channels: int
    filters: int
    height: int
    width: int
    in_block: int
    out_block: int


def sums_cycles(core: Core, out_block: int, chunks: int, pixels: int) -> float:
    """Cycles that a tile of sums needs for one input channel."""
    sums = chunks * pixels
    vector = vector_cycles(out_block)
    multiply = sums * vector
    # A broadcast of four bytes is as cheap as the narrowest load. With one block each FMA brings
    # its own; with several one serves all.
    load = chunks * vector + pixels * 0.5
    if chunks > 1 and vector == 1.0:
        multiply *= SEVERAL
    return max(multiply, load, FMA_LATENCY) if fits(core, chunks, pixels) else 2.5 * multiply


def pointwise_cycles(
    core: Core,
    gemm: Gemm,
    *,
    chunks: int,
    rows: int,
    columns: int,
    band: int,
    pixels_outer: bool,
) -> float:
    """Cycles of a pointwise convolution on one core, given its knobs (``x86.pointwise``)."""
    row_tiles = -(-gemm.height // rows)
    column_tiles = -(-gemm.width // columns)
    filter_tiles = -(-gemm.filters // (gemm.out_block * chunks))
    tiles = row_tiles * column_tiles * filter_tiles
    pixels = rows * columns
    lines = pixels * gemm.in_block * FLOAT_BYTES / _LINE_BYTES
    apart = APART if rows > 1 and columns < gemm.width else 1.0
    compute = (
        apart
        * tiles
        * (
            gemm.channels * sums_cycles(core, gemm.out_block, chunks, pixels)
            + gemm.channels / gemm.in_block * NEW_LINES * lines**2
            + TILE_CYCLES
        )
    )
    bands = -(-row_tiles // band)
    compute += UNIT_CYCLES * filter_tiles * bands

    inputs = gemm.channels * gemm.height * gemm.width * FLOAT_BYTES
    weights = gemm.channels * gemm.filters * FLOAT_BYTES
    # The last layer left the inputs in L2 if they fit; the weights were last used an inference ago.
    first = weights / L3_BYTES_A_CYCLE + inputs / _rate(core, inputs)
    tile_weights = gemm.channels * chunks * gemm.out_block * FLOAT_BYTES
    again = 0.0
    if pixels_outer:
        band_inputs = inputs * band / row_tiles
        again += (bands - 1) * weights / _rate(core, weights)
        if band_inputs > core.l1_bytes:
            again += (filter_tiles - 1) * inputs / _rate(core, int(band_inputs))
    else:
        again += (filter_tiles - 1) * inputs / _rate(core, inputs)
    if tile_weights > core.l1_bytes:
        again += (tiles - filter_tiles) * tile_weights / _rate(core, tile_weights)
    memory = first + again
    return max(compute, memory) + UNHIDDEN * min(compute, memory)


def window_cycles(
    core: Core,
    block: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    rows: int,
    columns: int,
) -> float:
    """Cycles for each output vector of a depthwise convolution's tile of ``rows`` x ``columns``.

    All taps of all outputs are unrolled, and LLVM keeps weights, sums and the inputs of a row in
    registers while it can; what it must spill is a store and a load more.
    """
    height, width = kernel
    taps, sums = height * width, rows * columns
    row = (columns - 1) * strides[1] + width
    inputs = ((rows - 1) * strides[0] + height) * row
    held = taps if taps <= _HELD_TAPS else 2
    loads = inputs if held == taps else inputs + taps
    spilled = max(0, sums + row + held - core.most_sums)
    vector = vector_cycles(block)
    cycles = max(sums * taps, loads) * vector + 2 * spilled * vector + TILE_CYCLES
    return cycles / sums


def _rate(core: Core, size: int) -> float:
    """Bytes a cycle of data that is read again and has ``size`` bytes."""
    return L2_BYTES_A_CYCLE if size <= core.l2_bytes else L3_BYTES_A_CYCLE


def best_of(
    knobs: Mapping[str, Sequence[int]],
    cycles: Callable[[Mapping[str, int]], float],
    allowed: Callable[[Mapping[str, int]], bool] = lambda _: True,
) -> dict[str, int]:
    """The allowed values of the knobs that take the fewest cycles, the first of equals; none, if
    none is allowed."""
    values = itertools.product(*knobs.values())
    points = (dict(zip(knobs, point, strict=True)) for point in values)
    return min(filter(allowed, points), key=cycles, default={})
