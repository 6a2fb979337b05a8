"""Traces: which blocks are put together."""

from __future__ import annotations

from mobilenet_tvm.devices.estimate.emulator import Block, BlockKey
from mobilenet_tvm.devices.estimate.traces import Trace, traces

A, B, C, D = (16, 4), (32, 4), (48, 4), (64, 4)


def nest(rounds: int, trips: int) -> dict[BlockKey, Block]:
    """A sets up, B repeats itself, C finishes and goes back to A; D comes last."""
    return {
        A: Block(rounds, {B: rounds}),
        B: Block(rounds * trips, {B: rounds * (trips - 1), C: rounds}),
        C: Block(rounds, {A: rounds - 1, D: 1}),
        D: Block(1, {}),
    }


def test_an_inner_loop_is_a_trace_of_its_own() -> None:
    found = traces(nest(rounds=10, trips=100))
    assert found[0] == Trace((B,), 1000)


def test_what_stands_around_it_is_joined_over_the_way_back() -> None:
    found = traces(nest(rounds=10, trips=100))
    assert Trace((C, A), 10) in found
    assert Trace((D,), 1) in found


def test_every_block_is_in_one_trace_and_all_executions_count() -> None:
    blocks = nest(rounds=7, trips=3)
    found = traces(blocks)
    assert sorted(key for trace in found for key in trace.blocks) == sorted(blocks)
    executed = sum(trace.executions * sum(length for _, length in trace.blocks) for trace in found)
    assert abs(executed - sum(b.executions * key[1] for key, b in blocks.items())) < 1e-9


def test_the_way_taken_seldom_is_left_out() -> None:
    blocks = {
        A: Block(100, {B: 90, C: 10}),
        B: Block(90, {D: 90}),
        C: Block(10, {D: 10}),
        D: Block(100, {A: 99}),
    }
    found = traces(blocks)
    assert [set(trace.blocks) for trace in found] == [{A, B, D}, {C}]
    assert found[0].executions == (100 + 90 + 100) / 3


def test_the_order_of_the_counts_changes_nothing() -> None:
    blocks = nest(rounds=10, trips=5)
    assert traces(blocks) == traces(dict(reversed(blocks.items())))
