"""ONNX's reference evaluator made fit to be a reference: in float64, and two operators mended.

Imported only where the evaluator is used: ``onnx.reference`` takes a while to load.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference.op_run import OpRun
from onnx.reference.ops_optimized.op_conv_optimized import Conv as _Conv

Array = NDArray[Any]


class Conv(_Conv):  # type: ignore[misc]
    """Convolution with ``auto_pad`` resolved here.

    onnx 1.18 computes the pads of ``SAME_UPPER`` and ``SAME_LOWER`` from the batch and channel
    counts in place of height and width.
    """

    def _run(  # type: ignore[no-untyped-def]
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
        **others,
    ) -> tuple[Array]:
        spatial = x.ndim - 2
        kernel_shape = list(kernel_shape or w.shape[2:])
        strides = list(strides or [1] * spatial)
        dilations = list(dilations or [1] * spatial)
        if auto_pad == "VALID":
            pads = [0] * 2 * spatial
        elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            before, after = [], []
            for size, kernel, stride, dilation in zip(
                x.shape[2:], kernel_shape, strides, dilations, strict=True
            ):
                steps = -(-size // stride) - 1
                total = max(steps * stride + (kernel - 1) * dilation + 1 - size, 0)
                smaller, larger = total // 2, total - total // 2
                upper = auto_pad == "SAME_UPPER"
                before.append(smaller if upper else larger)
                after.append(larger if upper else smaller)
            pads = before + after
        result: tuple[Array] = super()._run(
            x,
            w,
            b,
            auto_pad="NOTSET",
            dilations=dilations,
            kernel_shape=kernel_shape,
            pads=pads,
            strides=strides,
            **others,
        )
        return result


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


OPERATORS: Final = (Conv, BatchNormalization)


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
