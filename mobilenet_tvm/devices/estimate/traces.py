"""Blocks that are executed one after the other, put together into the paths the core sees.

A core overlaps what one block does with what the next one does, so a block alone says little:
alone and repeated, it would wait for its own sums, which in truth another block cleared in
between. Traces are formed as compilers do (J. Fisher, "Trace Scheduling", 1981): from the block
with most work, along the way taken most often, forwards and back, to blocks that are in no trace.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from mobilenet_tvm.devices.estimate.emulator import Block, BlockKey

# Of the executions of both blocks, so that a trace holds what is executed about as often.
_FOLLOWED = 0.5


@dataclass(frozen=True)
class Trace:
    """Blocks in the order of execution, and how often all of it was, in the mean.

    Attributes:
        blocks: first to last.
        executions: mean over the instructions.
    """

    blocks: tuple[BlockKey, ...]
    executions: float


def traces(blocks: Mapping[BlockKey, Block]) -> list[Trace]:
    """All blocks, each in one trace; those with most instructions executed first."""
    before: dict[BlockKey, dict[BlockKey, int]] = defaultdict(dict)
    for key, block in blocks.items():
        for follower, taken in block.followers.items():
            before[follower][key] = taken
    free = set(blocks)

    def neighbour(key: BlockKey, ways: Mapping[BlockKey, int]) -> BlockKey | None:
        if not ways:
            return None
        taken, other = max((taken, other) for other, taken in ways.items())
        often = max(blocks[key].executions, blocks[other].executions) if other in blocks else 0
        return other if other in free and taken >= _FOLLOWED * often else None

    found = []
    for hottest in sorted(blocks, key=lambda key: (-blocks[key].executions * key[1], key)):
        if hottest not in free:
            continue
        path = [hottest]
        free.discard(hottest)
        while (after := neighbour(path[-1], blocks[path[-1]].followers)) is not None:
            path.append(after)
            free.discard(after)
        while (ahead := neighbour(path[0], before[path[0]])) is not None:
            path.insert(0, ahead)
            free.discard(ahead)
        instructions = sum(length for _, length in path)
        executed = sum(blocks[key].executions * key[1] for key in path)
        found.append(Trace(tuple(path), executed / instructions))
    return found
