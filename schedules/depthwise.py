"""The computation of a depthwise convolution, NCHW[x]c float32, for any target.

Padding is part of the load (see ``window``): rows outside the image are read from the nearest
row with a zero weight, columns outside it are zero.

The zero weight has one price: 0 * Inf is NaN, so where a border row holds an Inf, the outputs
whose window hangs over that border are NaN where the mathematics says Inf. A finite output
never becomes NaN that way, for a window that meets the image at all holds the border row it
hangs over; only padding as tall as the kernel makes windows that do not, and those are not ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import autotvm, te
from tvm.topi.nn.utils import get_pad_tuple

from mobilenet_tvm.schedules.layout import shape_of
from mobilenet_tvm.schedules.template import unpacked
from mobilenet_tvm.schedules.window import padded, padded_product


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) else (value, value)


def compute(
    cfg: Any,
    data: te.Tensor,
    kernel: te.Tensor,
    strides: Any,
    padding: Any,
    *,
    tag: str,
    channel_block: Callable[[int], int],
    define_space: Callable[[Any, int, int, int, int], None],
    pad_apart: bool = False,
) -> te.Tensor:
    """Compute a depthwise convolution.

    Args:
        cfg: the AutoTVM configuration.
        data: ``[N, C/x, H, W, x]``, or ``[N, C, H, W]`` when the task is described.
        kernel: ``[C/x, 1, KH, KW, 1, x]``, or ``[C, 1, KH, KW]``.
        strides: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)`` or a shorter form of it.
        tag: of the convolution.
        channel_block: block of a number of channels.
        define_space: defines the knobs, given ``cfg``, the output's height and width, the
            number of taps and the horizontal stride.
        pad_apart: whether the padded image is a stage of its own (``window.padded``), which the
            schedule keeps where it is fast; else padding is part of each load.

    Returns:
        ``[N, C/x, OH, OW, x]``, or ``[N, C, OH, OW]`` for 4-D data outside tuning.
    """
    unpack = False
    if len(data.shape) == 4:
        batch, channels, height, width = shape_of(data)
        _, _, kernel_height, kernel_width = shape_of(kernel)
        block = channel_block(channels)
        if autotvm.GLOBAL_SCOPE.in_tuning:
            data = te.placeholder(
                (batch, channels // block, height, width, block), data.dtype, "data"
            )
            kernel = te.placeholder(
                (channels // block, 1, kernel_height, kernel_width, 1, block),
                kernel.dtype,
                "kernel",
            )
        else:  # only reached with layout alteration off: correct, not fast
            unpack = True
            plain, plain_kernel = data, kernel
            data = te.compute(
                (batch, channels // block, height, width, block),
                lambda n, c, h, w, i: plain[n, c * block + i, h, w],
                name="packed_data",
            )
            kernel = te.compute(
                (channels // block, 1, kernel_height, kernel_width, 1, block),
                lambda c, _m, y, x, _n, i: plain_kernel[c * block + i, 0, y, x],
                name="packed_kernel",
            )
    batch, chunks, height, width, block = shape_of(data)
    _, _, kernel_height, kernel_width, _, _ = shape_of(kernel)
    stride_y, stride_x = _pair(strides)
    top, left, bottom, right = get_pad_tuple(padding, (kernel_height, kernel_width))
    out_height = (height + top + bottom - kernel_height) // stride_y + 1
    out_width = (width + left + right - kernel_width) // stride_x + 1
    define_space(cfg, out_height, out_width, kernel_height * kernel_width, stride_x)
    cfg.add_flop(2 * batch * chunks * block * out_height * out_width * kernel_height * kernel_width)

    if pad_apart:
        image = padded(data, (top, left, bottom, right))
    tap_y = te.reduce_axis((0, kernel_height), name="tap_y")
    tap_x = te.reduce_axis((0, kernel_width), name="tap_x")

    def product(n: Any, c: Any, h: Any, w: Any, i: Any) -> Any:
        weight = kernel[c, 0, tap_y, tap_x, 0, i]
        y, x = h * stride_y + tap_y, w * stride_x + tap_x
        if pad_apart:
            return image[n, c, y, x, i] * weight
        return padded_product(
            lambda y, x: data[n, c, y, x, i],
            weight,
            (y - top, x - left),
            (height, width),
            (top, left, bottom, right),
        )

    out = te.compute(
        (batch, chunks, out_height, out_width, block),
        lambda n, c, h, w, i: te.sum(
            product(n, c, h, w, i),
            axis=[tap_y, tap_x],
        ),
        name="depthwise",
        tag=tag,
    )
    return unpacked(out, tag) if unpack else out


def schedule_tiles(
    cfg: Any, schedule: te.Schedule, sums: te.Tensor, out: te.Tensor, *, bands: bool = False
) -> None:
    """A register tile of ``rows`` x ``columns`` outputs of one channel block, all unrolled.

    ``taps_outer`` is the order of the sums' loops. With ``bands`` one channel block of ``band``
    rows of tiles is one unit of parallel work, and a thread takes neighbouring bands; else a unit
    is one row of tiles, and a thread takes neighbouring channels. See
    ``template.schedule_template``.
    """
    n, c, h, w, i = schedule[out].op.axis
    if bands:
        band, h = schedule[out].split(h, cfg["rows"].val * cfg["band"].val)
    h_outer, h_inner = schedule[out].split(h, cfg["rows"].val)
    w_outer, w_inner = schedule[out].split(w, cfg["columns"].val)
    if bands:
        schedule[out].reorder(n, band, c, h_outer, w_outer, h_inner, w_inner, i)
        schedule[out].parallel(schedule[out].fuse(n, band, c))
    else:
        schedule[out].reorder(n, c, h_outer, w_outer, h_inner, w_inner, i)
        schedule[out].parallel(schedule[out].fuse(n, c, h_outer))
    schedule[out].unroll(h_inner)
    schedule[out].unroll(w_inner)
    schedule[out].vectorize(i)

    schedule[sums].compute_at(schedule[out], w_outer)
    _, c, h, w, i = schedule[sums].op.axis
    tap_y, tap_x = schedule[sums].op.reduce_axis
    if cfg["taps_outer"].val:
        schedule[sums].reorder(c, tap_y, tap_x, h, w, i)
    else:
        schedule[sums].reorder(c, h, w, tap_y, tap_x, i)
    for axis in (tap_y, tap_x, h, w):
        schedule[sums].unroll(axis)
    schedule[sums].vectorize(i)
