"""ONNX's reference evaluator made fit to be a reference: in float64, operators mended or quick.

Sums over a window (convolution, pooling) go through the window's places: each is one strided
slice of the padded input, and what is left is a product or a maximum of whole arrays. That is
the definition of the operator, and shares nothing with TVM or ONNX Runtime.

Imported only where the evaluator is used: ``onnx.reference`` takes a while to load.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_average_pool import AveragePool_19 as _AveragePool
from onnx.reference.ops.op_conv import Conv as _Conv
from onnx.reference.ops.op_max_pool import MaxPool as _MaxPool

Array = NDArray[Any]


@dataclass(frozen=True)
class Window:
    """A window over the spatial axes, its attributes resolved; a value an axis each.

    ``before`` and ``after`` are the pads; ``extra`` is what ``ceil_mode`` lets the last window
    reach beyond them; ``out`` is the output's size.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    extra: tuple[int, ...]
    out: tuple[int, ...]

    def pad(self, x: Array, value: float, *, extra_value: float | None = None) -> Array:
        """``x [N, C, *spatial]`` with ``value`` in the pads, ``extra_value`` beyond them."""
        unpadded = [(0, 0), (0, 0)]
        pads = zip(self.before, self.after, strict=True)
        padded = np.pad(x, [*unpadded, *pads], constant_values=value)
        if any(self.extra):
            beyond = value if extra_value is None else extra_value
            padded = np.pad(
                padded, [*unpadded, *((0, size) for size in self.extra)], constant_values=beyond
            )
        return padded

    def places(self, padded: Array) -> Iterator[Array]:
        """For each place of the kernel, the last axis first, the ``[N, C, *out]`` it meets."""
        for place in itertools.product(*map(range, self.kernel)):
            slices = [
                slice(index * dilation, index * dilation + (out - 1) * stride + 1, stride)
                for index, dilation, stride, out in zip(
                    place, self.dilations, self.strides, self.out, strict=True
                )
            ]
            yield padded[(slice(None), slice(None), *slices)]


def window(
    size: Sequence[int],
    kernel: Sequence[int],
    auto_pad: str | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    *,
    ceil_mode: bool = False,
) -> Window:
    """The attributes of a convolution or a pooling over an input of spatial ``size``."""
    axes = len(size)
    strides, dilations = list(strides or [1] * axes), list(dilations or [1] * axes)
    pads = [0] * 2 * axes if auto_pad == "VALID" or not pads else list(pads)
    before, after, extra, out = [], [], [], []
    for axis in range(axes):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        stride, first, last = strides[axis], pads[axis], pads[axes + axis]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            steps = -(-size[axis] // stride)
            total = max((steps - 1) * stride + reach - size[axis], 0)
            smaller, larger = total // 2, total - total // 2
            first, last = (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
        room = first + size[axis] + last - reach
        steps = (-(-room // stride) if ceil_mode else room // stride) + 1
        # A window that would begin in the pads behind the input is none.
        if ceil_mode and (steps - 1) * stride >= size[axis] + first:
            steps -= 1
        before.append(first)
        after.append(last)
        extra.append(max((steps - 1) * stride - room, 0))
        out.append(steps)
    return Window(
        tuple(kernel),
        tuple(strides),
        tuple(dilations),
        tuple(before),
        tuple(after),
        tuple(extra),
        tuple(out),
    )


class Conv(_Conv):  # type: ignore[misc]
    """Convolution, grouped or not, any number of spatial axes.

    onnx 1.18 computes the pads of ``SAME_UPPER`` and ``SAME_LOWER`` from the batch and channel
    counts in place of height and width, and goes through the groups one by one.
    """

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array]:
        group, kernel = group or 1, w.shape[2:]
        if x.shape[1] != w.shape[1] * group or w.shape[0] % group:
            raise ValueError(f"Conv of {x.shape} with {w.shape} in {group} groups")
        view = window(x.shape[2:], kernel, auto_pad, dilations, pads, strides)
        batch, points = x.shape[0], math.prod(view.out)
        depth, width = w.shape[1], w.shape[0] // group
        weights = w.reshape(group, width, depth, -1)
        y = np.zeros((batch, group, width, points), x.dtype)
        for place, met in enumerate(view.places(view.pad(x, 0))):
            values = met.reshape(batch, group, depth, points)
            factor = weights[..., place]  # [group, width, depth]
            # Depthwise: a product of columns; numpy would call BLAS a channel at a time.
            y += factor * values if depth == 1 else factor @ values
        y = y.reshape(batch, w.shape[0], *view.out)
        if b is not None:
            y += b.reshape(-1, *[1] * len(view.out))
        return (y,)


class MaxPool(_MaxPool):  # type: ignore[misc]
    """Maximum over a window; onnx 1.18 takes seconds for one layer of a 112 x 112 input."""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: list[int] | None = None,
        storage_order: int | None = None,
        strides: list[int] | None = None,
    ) -> tuple[Array, ...]:
        if len(self.onnx_node.output) > 1 or x.dtype.kind != "f":  # the places of the maxima
            result: tuple[Array, ...] = super()._run(
                x,
                auto_pad=auto_pad,
                ceil_mode=ceil_mode,
                dilations=dilations,
                kernel_shape=kernel_shape,
                pads=pads,
                storage_order=storage_order,
                strides=strides,
            )
            return result
        view = window(
            x.shape[2:],
            kernel_shape,
            auto_pad,
            dilations,
            pads,
            strides,
            ceil_mode=bool(ceil_mode),
        )
        y = np.full((*x.shape[:2], *view.out), -np.inf, x.dtype)
        for met in view.places(view.pad(x, -np.inf)):
            y = np.maximum(y, met)
        return (y,)


class AveragePool(_AveragePool):  # type: ignore[misc]
    """Mean over a window; what ``ceil_mode`` adds beyond the pads is never counted."""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: list[int] | None = None,
        strides: list[int] | None = None,
        count_include_pad: int | None = None,
    ) -> tuple[Array]:
        view = window(
            x.shape[2:],
            kernel_shape,
            auto_pad,
            dilations,
            pads,
            strides,
            ceil_mode=bool(ceil_mode),
        )
        inside = np.ones((1, 1, *x.shape[2:]), x.dtype)
        counted = view.pad(inside, 1 if count_include_pad else 0, extra_value=0)
        total = np.zeros((*x.shape[:2], *view.out), x.dtype)
        count = np.zeros((1, 1, *view.out), x.dtype)
        for met, one in zip(view.places(view.pad(x, 0)), view.places(counted), strict=True):
            total += met
            count += one
        return (total / count,)


class LRN(OpRun):  # type: ignore[misc]
    """Local response normalisation over the channels.

    onnx 1.18 goes through as many channels as the batch has images, and leaves the rest out.
    """

    op_domain = ""

    def _run(
        self,
        x: Array,
        alpha: float = 1e-4,
        beta: float = 0.75,
        bias: float = 1.0,
        size: int = 1,
    ) -> tuple[Array]:
        channels, before, after = x.shape[1], (size - 1) // 2, size // 2
        squares = np.stack(
            [(x[:, max(0, c - before) : c + after + 1] ** 2).sum(axis=1) for c in range(channels)],
            axis=1,
        )
        return ((x / (bias + alpha / size * squares) ** beta).astype(x.dtype),)


class BatchNormalization(OpRun):  # type: ignore[misc]
    """Inference with the stored statistics.

    Below opset 14, onnx 1.18 mixes the batch's own statistics in, as in training, which no
    runtime does.
    """

    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        variance: Array,
        epsilon: float = 1e-5,
        **_training,
    ) -> tuple[Array]:
        channel = (1, -1) + (1,) * (x.ndim - 2)
        factor = scale / np.sqrt(variance + epsilon)
        y = (x - mean.reshape(channel)) * factor.reshape(channel) + bias.reshape(channel)
        return (y.astype(x.dtype),)


OPERATORS: Final = (Conv, MaxPool, AveragePool, LRN, BatchNormalization)


def to_float64(model: ModelProto) -> ModelProto:
    """A copy of ``model`` with every float32 input, output, weight, constant and cast wide."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    tensors = list(wide.graph.initializer)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = (
                    TensorProto.DOUBLE if attribute.i == TensorProto.FLOAT else attribute.i
                )
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return wide
