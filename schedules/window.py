"""A convolution's window at the edge of the image, without a padded copy of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tir

from mobilenet_tvm.schedules.layout import shape_of


def padded_product(
    load: Callable[[Any, Any], Any],
    weight: Any,
    position: tuple[Any, Any],
    size: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> Any:
    """One tap's product, zero where it falls outside the image.

    A row outside the image is read from the nearest row with a zero weight: a select on the
    weight vector, outside the inner loops. A column outside it is a zero instead of a load,
    which an unrolled row tile knows statically but in the first and the last tile.

    Args:
        load: the input at ``(y, x)``.
        weight: the tap's weight.
        position: ``(y, x)`` of the tap, in the unpadded image.
        size: ``(height, width)`` of the image.
        pads: ``(top, left, bottom, right)``; top and bottom smaller than the kernel's height.
    """
    (y, x), (height, width), (top, left, bottom, right) = position, size, pads
    zero = tir.const(0.0, "float32")
    if top or bottom:
        weight = tir.Select(tir.all(y >= 0, y < height), weight, zero)
        y = tir.max(tir.min(y, height - 1), 0)
    value = load(y, x)
    if left or right:
        value = tir.if_then_else(tir.all(x >= 0, x < width), value, zero)
    return value * weight


def padded(data: te.Tensor, pads: tuple[int, int, int, int]) -> te.Tensor:
    """The image with zeros around it: a stage for the schedule to place, never in memory.

    Args:
        data: ``[N, C, H, W, ...]``.
        pads: ``(top, left, bottom, right)``.
    """
    batch, channels, height, width, *block = shape_of(data)
    top, left, bottom, right = pads
    zero = tir.const(0.0, "float32")

    def load(n: Any, c: Any, y: Any, x: Any, *i: Any) -> Any:
        inside = []
        if top or bottom:
            inside += [y >= top, y < top + height]
        if left or right:
            inside += [x >= left, x < left + width]
        value = data[(n, c, y - top, x - left, *i)]
        return tir.if_then_else(tir.all(*inside), value, zero) if inside else value

    shape = (batch, channels, height + top + bottom, width + left + right, *block)
    return te.compute(shape, load, name="padded")
