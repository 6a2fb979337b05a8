"""The computation of a first convolution (few input channels), float32, for any target.

It reads the image as it comes, ``[N, C, H, W]``, and writes the blocked layout of the layers
behind it: TVM's stock templates want their input blocked and padded first, two more passes over
the image. Padding is part of the load (see ``window``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import autotvm, te
from tvm.topi.nn.utils import get_pad_tuple

from mobilenet_tvm.schedules.layout import shape_of
from mobilenet_tvm.schedules.template import unpacked
from mobilenet_tvm.schedules.window import padded, padded_product

MAX_CHANNELS = 4  # colour images; with more, a blocked input pays
MAX_UNROLLED_TAPS = 36  # 3x3 over four channels; LLVM chews half a minute on 7x7 over three


def compute(
    cfg: Any,
    data: te.Tensor,
    kernel: te.Tensor,
    strides: Any,
    padding: Any,
    *,
    tag: str,
    channel_block: Callable[[int], int],
    define_space: Callable[[Any, int, int, int], None],
    kernel_chunks: Callable[[Any, int], int] | None = None,
    pad_apart: bool = False,
) -> te.Tensor:
    """Compute a convolution over few input channels.

    Args:
        cfg: the AutoTVM configuration.
        data: ``[N, C, H, W]``.
        kernel: ``[K/y, 1, KH, KW, C, y]``, or ``[K, C, KH, KW]`` when the task is described.
        strides: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)`` or a shorter form of it.
        tag: of the convolution.
        channel_block: block of a number of channels.
        define_space: defines the knobs, given ``cfg``, the output's channel blocks, its height
            and its width.
        kernel_chunks: as in ``pointwise.compute``.
        pad_apart: as in ``depthwise.compute``.

    Returns:
        ``[N, K/z, OH, OW, z]``, or ``[N, K, OH, OW]`` for a 4-D kernel outside tuning.
    """
    batch, channels, height, width = shape_of(data)
    plain = kernel if len(kernel.shape) == 4 else None
    if plain is not None:
        filters, _, kernel_height, kernel_width = shape_of(kernel)
        block = channel_block(filters)
    else:
        outer, _, kernel_height, kernel_width, _, kernel_block = shape_of(kernel)
        filters = outer * kernel_block
        block = channel_block(filters) if kernel_chunks is not None else kernel_block
    chunks = filters // block
    stride_y, stride_x = (int(stride) for stride in strides)
    pads = get_pad_tuple(padding, (kernel_height, kernel_width))
    top, left, bottom, right = (int(pad) for pad in pads)
    out_height = (height + top + bottom - kernel_height) // stride_y + 1
    out_width = (width + left + right - kernel_width) // stride_x + 1
    define_space(cfg, chunks, out_height, out_width)
    taps = channels * kernel_height * kernel_width
    cfg.add_flop(2 * batch * filters * out_height * out_width * taps)

    unpack = False
    if plain is not None:
        kernel_block = block * (kernel_chunks(cfg, chunks) if kernel_chunks is not None else 1)
        packed = (filters // kernel_block, 1, kernel_height, kernel_width, channels, kernel_block)
        if autotvm.GLOBAL_SCOPE.in_tuning:
            kernel = te.placeholder(packed, kernel.dtype, "kernel")
        else:  # only reached with layout alteration off: correct, not fast
            unpack = True
            kernel = te.compute(
                packed,
                lambda k, _c, y, x, i, o: plain[k * kernel_block + o, i, y, x],
                name="packed",
            )
    together = kernel_block // block

    if pad_apart:
        image = padded(data, (top, left, bottom, right))
    channel = te.reduce_axis((0, channels), name="channel")
    tap_y = te.reduce_axis((0, kernel_height), name="tap_y")
    tap_x = te.reduce_axis((0, kernel_width), name="tap_x")

    def product(n: Any, k: Any, h: Any, w: Any, o: Any) -> Any:
        weight = kernel[k // together, 0, tap_y, tap_x, channel, k % together * block + o]
        y, x = h * stride_y + tap_y, w * stride_x + tap_x
        if pad_apart:
            return image[n, channel, y, x] * weight
        return padded_product(
            lambda y, x: data[n, channel, y, x],
            weight,
            (y - top, x - left),
            (height, width),
            (top, left, bottom, right),
        )

    out = te.compute(
        (batch, chunks, out_height, out_width, block),
        lambda n, k, h, w, o: te.sum(
            product(n, k, h, w, o),
            axis=[channel, tap_y, tap_x],
        ),
        name="stem",
        tag=tag,
    )
    return unpacked(out, tag) if unpack else out
