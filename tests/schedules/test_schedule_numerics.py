"""Our templates compute what the definition says, whatever the shape and the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobilenet_tvm import targets
from mobilenet_tvm.targets import Preset

from .conftest import arrays, check

GEOMETRIES = [
    (kernel, stride, padding)
    for kernel in (3, 5)
    for stride in (1, 2)
    for padding in ((0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), (2, 2, 2, 2))
]


@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_depthwise_for_every_geometry(
    preset: Preset,
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
) -> None:
    shapes = (1, 32, 11, 9), (32, 1, kernel, kernel)
    made = make_kernel("depthwise", preset, *shapes, stride, padding)
    check(
        made,
        [made.default, *made.samples(1, seed=kernel * stride + sum(padding))],
        references["depthwise"],
        shapes,
        stride,
        padding,
    )


@pytest.mark.parametrize(("channels", "filters"), [(3, 16), (1, 8), (4, 17)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, (0, 0, 1, 1)), (3, 2, (1, 1, 1, 1)), (5, 1, (2,) * 4)]
)
def test_stem_for_every_geometry(
    preset: Preset,
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    channels: int,
    filters: int,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
) -> None:
    shapes = (1, channels, 12, 10), (filters, channels, kernel, kernel)
    made = make_kernel("stem", preset, *shapes, stride, padding)
    configs = [made.default, *made.samples(1, seed=filters + kernel)]
    check(made, configs, references["stem"], shapes, stride, padding)


@pytest.mark.parametrize("channels", [8, 24, 17, 2])
def test_depthwise_for_channel_counts_that_fit_no_vector(
    preset: Preset, make_kernel: Callable[..., Any], references: dict[str, Any], channels: int
) -> None:
    shapes = (2, channels, 7, 14), (channels, 1, 3, 3)
    how = 1, (1, 1, 1, 1)
    made = make_kernel("depthwise", preset, *shapes, *how)
    check(made, [made.default, *made.samples(2)], references["depthwise"], shapes, *how)


@pytest.mark.parametrize(
    ("channels", "filters", "height", "width"),
    [(3, 8, 9, 9), (24, 40, 8, 8), (17, 33, 5, 6), (64, 32, 1, 1), (32, 64, 7, 7), (16, 24, 6, 48)],
)
def test_pointwise_for_every_shape(
    preset: Preset,
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    channels: int,
    filters: int,
    height: int,
    width: int,
) -> None:
    shapes = (2, channels, height, width), (filters, channels, 1, 1)
    made = make_kernel("pointwise", preset, *shapes)
    configs = [made.default, *made.samples(3, seed=channels)]
    check(made, configs, references["pointwise"], shapes)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    channels=st.integers(2, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    stride=st.integers(1, 3),
    kernel=st.integers(1, 6),
    pads=st.tuples(*[st.integers(0, 5)] * 4),
)
def test_depthwise_of_any_shape(
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    channels: int,
    height: int,
    width: int,
    stride: int,
    kernel: int,
    pads: tuple[int, int, int, int],
) -> None:
    top, left, bottom, right = (min(pad, kernel - 1) for pad in pads)
    if height + top + bottom < kernel or width + left + right < kernel:
        return
    padding = (top, left, bottom, right)
    shapes = (1, channels, height, width), (channels, 1, kernel, kernel)
    made = make_kernel("depthwise", targets.resolve("x86"), *shapes, stride, padding)
    configs = [made.default, *made.samples(1)]
    check(made, configs, references["depthwise"], shapes, stride, padding)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    channels=st.integers(1, 40),
    filters=st.integers(1, 40),
    height=st.integers(1, 12),
    width=st.integers(1, 31),
)
def test_pointwise_of_any_shape(
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    channels: int,
    filters: int,
    height: int,
    width: int,
) -> None:
    shapes = (1, channels, height, width), (filters, channels, 1, 1)
    made = make_kernel("pointwise", targets.resolve("x86"), *shapes)
    check(made, [made.default, *made.samples(1)], references["pointwise"], shapes)


@pytest.mark.parametrize("width", [13, 29, 31])
def test_no_pointwise_space_is_empty(
    preset: Preset, make_kernel: Callable[..., Any], width: int
) -> None:
    # A prime width above the register limit leaves one column, 17 filters no second block.
    made = make_kernel("pointwise", preset, (1, 32, 6, width), (17, 32, 1, 1))
    assert made.valid()


def test_every_configuration_keeps_its_sums_in_registers(
    preset: Preset, make_kernel: Callable[..., Any]
) -> None:
    limit = {16: 28, 8: 12, 4: 12}[preset.peak_lanes]
    depthwise = make_kernel("depthwise", preset, (1, 64, 56, 56), (64, 1, 3, 3), 1, (1, 1, 1, 1))
    pointwise = make_kernel("pointwise", preset, (1, 64, 56, 56), (128, 64, 1, 1))
    for made, knobs in (
        (depthwise, ("rows", "columns")),
        (pointwise, ("chunks", "rows", "columns")),
    ):
        for index in made.valid():
            config = made.task.config_space.get(index)
            assert np.prod([config[knob].val for knob in knobs]) <= limit


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, (1, 1, 1, 1)), (5, 2, (2, 2, 2, 2)), (3, 2, (0, 0, 1, 1)), (3, 1, (2, 2, 2, 2))],
)
@pytest.mark.parametrize("place", [(0, 0), (5, 5), (9, 3)])
def test_a_bad_pixel_reaches_only_outputs_whose_window_holds_it(
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    bad: float,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
    place: tuple[int, int],
) -> None:
    """Under the border trick an Inf may become NaN there (0 * Inf), a finite value never."""
    shapes = (1, 8, 10, 9), (8, 1, kernel, kernel)
    data, weight = arrays(*shapes)
    data[0, 3, place[0], place[1]] = bad
    made = make_kernel("depthwise", targets.resolve("x86"), *shapes, stride, padding)
    with np.errstate(invalid="ignore"):
        expected = references["depthwise"](data, weight, stride, padding)
    found = made.build(made.default)(data, weight)
    assert not np.isfinite(expected).all()
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    fine = np.isfinite(expected)
    assert np.allclose(found[fine], expected[fine], atol=1e-5)
    inner = slice(padding[0], -padding[2])  # rows whose window hangs over no border (stride 1)
    if stride == 1:
        assert np.array_equal(np.isnan(found)[:, :, inner], np.isnan(expected)[:, :, inner])


def test_an_inf_in_a_border_row_becomes_nan_where_the_window_hangs_over_it(
    make_kernel: Callable[..., Any],
) -> None:
    """The one known difference from the definition; depthwise.py's docstring tells it."""
    shapes = (1, 8, 10, 9), (8, 1, 3, 3)
    data, weight = np.ones(shapes[0], np.float32), np.ones(shapes[1], np.float32)
    data[0, 0, 0, 4] = np.inf
    made = make_kernel("depthwise", targets.resolve("x86"), *shapes, 1, (1, 1, 1, 1))
    found = made.build(made.default)(data, weight)
    assert np.isnan(found[0, 0, 0, 3:6]).all()
    assert np.isposinf(found[0, 0, 1, 3:6]).all()
    assert np.isfinite(found).sum() == found.size - 6
