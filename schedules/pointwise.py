"""The computation of a pointwise (1x1, stride 1) convolution, NCHW[x]c float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import autotvm, te, tir

from mobilenet_tvm.schedules.layout import shape_of
from mobilenet_tvm.schedules.template import unpacked


def compute(
    cfg: Any,
    data: te.Tensor,
    kernel: te.Tensor,
    *,
    tag: str,
    channel_block: Callable[[int], int],
    define_space: Callable[[Any, int, int, int], None],
    kernel_chunks: Callable[[Any, int], int] | None = None,
) -> te.Tensor:
    """Compute a 1x1 convolution with stride 1 and no padding.

    Args:
        cfg: the AutoTVM configuration.
        data: ``[N, C/x, H, W, x]``, or ``[N, C, H, W]`` when the task is described.
        kernel: ``[K/y, C/x, 1, 1, x, y]``, or ``[K, C, 1, 1]``.
        tag: of the convolution.
        channel_block: block of a number of channels.
        define_space: defines the knobs, given ``cfg``, the output's channel blocks, its height
            and its width.
        kernel_chunks: where the weights of several of the output's channel blocks lie together,
            so that ``y`` is so many of them, of how many, given ``cfg`` and the output's channel
            blocks, the space being defined; else it is one.

    Returns:
        ``[N, K/z, H, W, z]``, or ``[N, K, H, W]`` for 4-D data outside tuning. ``z`` is a block
        of the output.
    """
    unpack = False
    if len(data.shape) == 4:
        batch, channels, height, width = shape_of(data)
        filters = shape_of(kernel)[0]
        in_block, out_block = channel_block(channels), channel_block(filters)
        define_space(cfg, filters // out_block, height, width)
        kernel_block = out_block
        if kernel_chunks is not None:
            kernel_block *= kernel_chunks(cfg, filters // out_block)
        data_shape = (batch, channels // in_block, height, width, in_block)
        kernel_shape = (filters // kernel_block, channels // in_block, 1, 1, in_block, kernel_block)
        if autotvm.GLOBAL_SCOPE.in_tuning:
            data = te.placeholder(data_shape, data.dtype, "data")
            kernel = te.placeholder(kernel_shape, kernel.dtype, "kernel")
        else:  # only reached with layout alteration off: correct, not fast
            unpack = True
            plain, plain_kernel = data, kernel
            data = te.compute(
                data_shape,
                lambda n, c, h, w, i: plain[n, c * in_block + i, h, w],
                name="packed_data",
            )
            kernel = te.compute(
                kernel_shape,
                lambda k, c, _y, _x, i, o: plain_kernel[
                    k * kernel_block + o, c * in_block + i, 0, 0
                ],
                name="packed_kernel",
            )
        batch, chunks, height, width, in_block = shape_of(data)
    else:
        batch, chunks, height, width, in_block = shape_of(data)
        outer, _, _, _, _, kernel_block = shape_of(kernel)
        filters = outer * kernel_block
        out_block = channel_block(filters) if kernel_chunks is not None else kernel_block
        define_space(cfg, filters // out_block, height, width)
    together = kernel_block // out_block
    cfg.add_flop(2 * batch * chunks * in_block * filters * height * width)

    channel = te.reduce_axis((0, chunks * in_block), name="channel")
    out = te.compute(
        (batch, filters // out_block, height, width, out_block),
        lambda n, k, h, w, o: te.sum(
            data[n, channel // in_block, h, w, channel % in_block]
            * kernel[
                k // together,
                channel // in_block,
                0,
                0,
                channel % in_block,
                k % together * out_block + o,
            ],
            axis=channel,
        ),
        name="pointwise",
        tag=tag,
    )
    return unpacked(out, tag) if unpack else out


def tile(cfg: Any, stage: te.schedule.Stage) -> tir.IterVar:
    """Tile the output's stage by the knobs ``chunks`` x ``rows`` x ``columns``.

    ``chunks`` by ``band`` rows of tiles are one unit of parallel work. A thread takes neighbouring
    units: those of some bands with ``pixels_outer``, else of some channels. Returns the axis at
    which a tile's sums are computed.
    """
    chunks, rows, columns = (cfg[knob].val for knob in ("chunks", "rows", "columns"))
    n, k, h, w, o = stage.op.axis
    k_outer, k_inner = stage.split(k, chunks)
    band, h = stage.split(h, rows * cfg["band"].val)
    h_outer, h_inner = stage.split(h, rows)
    w_outer, w_inner = stage.split(w, columns)
    inner = (h_outer, w_outer, k_inner, h_inner, w_inner, o)
    if cfg["pixels_outer"].val:
        stage.reorder(n, band, k_outer, *inner)
        stage.parallel(stage.fuse(n, band, k_outer))
    else:
        stage.reorder(n, k_outer, band, *inner)
        stage.parallel(stage.fuse(n, k_outer, band))
    for axis in (k_inner, h_inner, w_inner):
        stage.unroll(axis)
    stage.vectorize(o)
    return w_outer
