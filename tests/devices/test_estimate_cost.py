"""From counts to cycles."""

from __future__ import annotations

import pytest

from mobilenet_tvm.devices.estimate import CORES, Cost
from mobilenet_tvm.devices.estimate.cores import Core, Level
from mobilenet_tvm.devices.estimate.cost import SEEN, transfers
from mobilenet_tvm.devices.estimate.emulator import Traffic

CORE = Core("none", 1e9, 4, Level(32, 12, 8), Level(16, 40, 16), Level(4, 200), misses=4)


def test_a_foreseen_line_takes_bandwidth_and_another_one_latency() -> None:
    assert transfers(Traffic((10, 10, 10), (0, 0, 0)), CORE) == (20, 40, 160)
    # 12 / 4 and 40 / 4 and 200 / 4 cycles a line, or the bandwidth's where that is more.
    assert transfers(Traffic((0, 0, 0), (10, 10, 10)), CORE) == (30, 100, 500)


def test_no_traffic_adds_nothing() -> None:
    assert Cost(5, 100.0, (0.0, 0.0, 0.0)).cycles == 100


def test_the_slowest_part_counts_whole_and_the_rest_in_part() -> None:
    assert Cost(5, 100.0, (20.0, 40.0, 0.0)).cycles == 100 + SEEN * 60
    assert Cost(5, 100.0, (20.0, 400.0, 0.0)).cycles == 400 + SEEN * 120


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_what_is_further_away_never_costs_less(core: Core) -> None:
    if core.l3.latency_cycles > 1:  # it has one
        assert core.l2.latency_cycles < core.l3.latency_cycles
        assert core.l2.bytes_per_cycle >= core.l3.bytes_per_cycle
        assert core.l3.bytes_per_cycle >= core.memory.bytes_per_cycle
    assert core.l2.latency_cycles < core.memory.latency_cycles
    assert core.l2.bytes_per_cycle > core.memory.bytes_per_cycle
