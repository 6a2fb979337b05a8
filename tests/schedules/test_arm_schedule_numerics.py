"""Our ARM templates compute what the definition says: their schedules, built for this machine.

A TE schedule knows no instruction set, so what is checked here is all but LLVM's ARM back end;
``test_arm_emulated`` runs what that makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import ARM_TARGETS, check

ARM = pytest.mark.parametrize("target", ARM_TARGETS.values(), ids=list(ARM_TARGETS))


@ARM
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("batch", "channels", "height", "width"),
    [(3, 6, 7, 7), (1, 24, 14, 14), (1, 100, 5, 7), (1, 960, 1, 1), (1, 7, 6, 13)],
)
def test_depthwise(
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    target: str,
    kernel: int,
    stride: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
) -> None:
    shapes = (batch, channels, height, width), (channels, 1, kernel, kernel)
    # As TensorFlow pads, and as PyTorch does.
    before = kernel // 2 - (stride == 2 and height > 1)
    how = stride, (before, before, kernel // 2, kernel // 2)
    made = make_kernel("depthwise", target, *shapes, *how)
    configs = [made.default, *made.samples(1, seed=channels + kernel + stride)]
    check(made, configs, references["depthwise"], shapes, *how)


@ARM
@pytest.mark.parametrize(
    ("batch", "channels", "filters", "height", "width"),
    [
        (3, 6, 24, 7, 7),
        (1, 24, 6, 14, 14),
        (1, 100, 36, 5, 7),
        (1, 960, 100, 1, 1),
        (1, 3, 7, 2, 13),
        (1, 16, 48, 8, 48),
    ],
)
def test_pointwise(
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    target: str,
    batch: int,
    channels: int,
    filters: int,
    height: int,
    width: int,
) -> None:
    shapes = (batch, channels, height, width), (filters, channels, 1, 1)
    made = make_kernel("pointwise", target, *shapes)
    configs = [made.default, *made.samples(3, seed=channels)]
    check(made, configs, references["pointwise"], shapes)


@ARM
@pytest.mark.parametrize(("channels", "filters"), [(3, 16), (1, 24), (4, 6)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, (0, 0, 1, 1)), (3, 2, (1, 1, 1, 1)), (5, 1, (2,) * 4)]
)
def test_stem(
    make_kernel: Callable[..., Any],
    references: dict[str, Any],
    target: str,
    channels: int,
    filters: int,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
) -> None:
    shapes = (1, channels, 12, 10), (filters, channels, kernel, kernel)
    made = make_kernel("stem", target, *shapes, stride, padding)
    configs = [made.default, *made.samples(2, seed=filters + kernel)]
    check(made, configs, references["stem"], shapes, stride, padding)
