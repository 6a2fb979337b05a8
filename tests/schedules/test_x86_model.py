"""The arithmetic behind the untuned defaults on x86: its laws, and what it picks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mobilenet_tvm import targets, toolchain

toolchain.activate()

AVX512, AVX2, SSE = (targets.resolve(name) for name in ("x86-avx512", "x86-avx2", "x86-sse42"))
# MobileNet's pointwise layers that have an even number of rows: (channels, filters, pixels a side).
EVEN = [(32, 64, 112), (128, 128, 56), (256, 256, 28), (512, 512, 14), (144, 24, 56), (40, 120, 28)]


def knobs(config: Any) -> dict[str, int]:
    return {name: entity.val for name, entity in config._entity_map.items()}


def untuned(made: Any) -> dict[str, int]:
    config = made.default
    made.scheduled(config)  # which is when the template fills it
    return knobs(config)


def default(
    make_kernel: Callable[..., Any], preset: Any, channels: int, filters: int, side: int
) -> dict[str, int]:
    shapes = (1, channels, side, side), (filters, channels, 1, 1)
    return untuned(make_kernel("pointwise", preset, *shapes))


@pytest.mark.parametrize(
    ("channels", "avx512", "avx2"),
    [(64, 16, 8), (24, 8, 8), (40, 8, 8), (184, 8, 8), (12, 12, 6), (1000, 8, 8), (1001, 13, 7)],
)
def test_half_a_vector_rather_than_idle_lanes(channels: int, avx512: int, avx2: int) -> None:
    import tvm

    from mobilenet_tvm.schedules.x86.layout import channel_block

    for preset, block in ((AVX512, avx512), (AVX2, avx2)):
        with tvm.target.Target(preset.target):
            assert channel_block(channels) == block


@pytest.mark.parametrize("preset", [AVX512, AVX2, SSE], ids=lambda preset: preset.name)
@pytest.mark.parametrize(("channels", "filters", "side"), EVEN)
def test_two_threads_have_equal_shares_of_rows(
    make_kernel: Callable[..., Any], preset: Any, channels: int, filters: int, side: int
) -> None:
    chosen = default(make_kernel, preset, channels, filters, side)
    rows = chosen["rows"] * chosen["band"]
    assert chosen["pixels_outer"] == 1
    assert side % rows == 0
    assert side // rows % 2 == 0


@pytest.mark.parametrize("preset", [AVX512, AVX2, SSE], ids=lambda preset: preset.name)
@pytest.mark.parametrize(("channels", "filters", "side"), [*EVEN, (1024, 1024, 7), (64, 64, 37)])
def test_the_default_is_no_spilling_tile_and_one_of_the_space(
    make_kernel: Callable[..., Any], preset: Any, channels: int, filters: int, side: int
) -> None:
    from mobilenet_tvm.schedules.x86.model import Core, fits

    shapes = (1, channels, side, side), (filters, channels, 1, 1)
    made = make_kernel("pointwise", preset, *shapes)
    chosen = untuned(made)
    core = Core(32 if preset.peak_lanes == 16 else 16)
    assert fits(core, chosen["chunks"], chosen["rows"] * chosen["columns"])
    space = made.task.config_space
    assert chosen in [knobs(space.get(index)) for index in made.valid()]


def test_one_pixel_takes_several_blocks_at_once(make_kernel: Callable[..., Any]) -> None:
    for channels, filters in ((1024, 1000), (960, 1280), (240, 64)):
        assert default(make_kernel, AVX512, channels, filters, 1)["chunks"] >= 4


def test_a_prime_width_has_tiles_with_a_short_last_one() -> None:
    from mobilenet_tvm.schedules.x86.template import tile_sizes

    assert tile_sizes(56, 28) == [1, 2, 4, 7, 8, 14, 28]
    assert tile_sizes(37, 28) == [1, 4, 5, 6, 7, 8, 10, 13, 19]
    assert tile_sizes(3, 28) == [1, 3]


def test_what_does_not_fit_costs_time() -> None:
    from mobilenet_tvm.schedules.x86.model import Core, Gemm, pointwise_cycles, sums_cycles

    core = Core(registers=32)
    # Each sum waits for its last FMA; 28 sums of two blocks want more than 32 registers.
    assert sums_cycles(core, 16, 1, 1) == sums_cycles(core, 16, 1, 4)
    assert sums_cycles(core, 16, 2, 14) / 28 > 2 * sums_cycles(core, 16, 2, 7) / 14
    # Half vectors leave no lane of 24 channels idle.
    halves = 3 * sums_cycles(core, 8, 1, 14)
    assert halves < 2 * sums_cycles(core, 12, 1, 14)

    def cycles(gemm: Gemm, band: int) -> float:
        return pointwise_cycles(
            core, gemm, chunks=1, rows=1, columns=14, band=band, pixels_outer=True
        )

    # Many bands stream the weights many times: dear where these are large, cheap where small.
    deep, shallow = Gemm(1024, 1024, 14, 14, 16, 16), Gemm(32, 64, 112, 112, 16, 16)
    assert cycles(deep, 1) > 1.02 * cycles(deep, 14)
    assert cycles(shallow, 14) < 1.01 * cycles(shallow, 112)


def test_a_window_keeps_its_registers() -> None:
    from mobilenet_tvm.schedules.x86.model import Core, window_cycles

    core = Core(registers=32)

    def cycles(rows: int, columns: int, stride: int = 1) -> float:
        return window_cycles(core, 16, (3, 3), (stride, stride), rows, columns)

    # Nine FMAs an output, at best; a wide tile of stride 2 wants 29 pixels of a row at once.
    assert 9 <= cycles(2, 4) < 10
    assert cycles(1, 14, stride=2) > 1.1 * cycles(2, 2, stride=2)


def test_with_two_threads_only_what_keeps_rows_is_tried() -> None:
    from mobilenet_tvm import frontend, zoo
    from mobilenet_tvm.records import extract_tasks
    from mobilenet_tvm.schedules.x86.template import keeps_rows

    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=64)
    module = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "v1"))).module
    alone, shared = (extract_tasks(module, AVX512, threads=threads) for threads in (1, 2))
    for one, two in zip(alone, shared, strict=True):
        space = two.handle.config_space
        assert one.key == two.key
        assert two.default in two.candidates
        assert set(two.candidates) == {
            i for i in one.candidates if keeps_rows(two.handle, space.get(i))
        }
    fewer = [
        len(two.candidates) < len(one.candidates) for one, two in zip(alone, shared, strict=True)
    ]
    assert sum(fewer) > len(fewer) // 2
