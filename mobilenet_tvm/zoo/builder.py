"""A layer table becomes an ONNX model: one generic builder for every family.

The graph is what exporters write: NCHW, explicit pads, convolutions without bias followed by
an unfolded BatchNormalization, ReLU6 as Clip with its bounds as inputs, then
GlobalAveragePool, Flatten and Gemm. Nodes carry the names of the paper's layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mobilenet_tvm.zoo import weights
from mobilenet_tvm.zoo.tables import Conv, Family, Row, scale_channels

OPSET = 13
IR_VERSION = 7  # the one that came with opset 13: every later reader takes it
IMAGE_CHANNELS = 3


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pads before and after one axis of ``size`` that equal TensorFlow's SAME (SAME_UPPER).

    The output has ``ceil(size / stride)`` values; an odd pad goes after:
    ``same_pads(224, 3, 2) == (0, 1)``, ``same_pads(112, 3, 1) == (1, 1)``.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class GraphBuilder:
    """A graph being written, and what is known of the tensor at its end.

    ``channels``, ``size`` (height and width) and ``moments`` describe the tensor ``end``.
    """

    def __init__(self, *, alpha: float, resolution: int, seed: int) -> None:
        self.alpha = alpha
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.weights = weights.Weights(seed)
        self.end = "input"
        self.channels = IMAGE_CHANNELS
        self.size = resolution
        self.moments = weights.image_moments(IMAGE_CHANNELS)
        self.constant("relu6/min", np.float32(0))
        self.constant("relu6/max", np.float32(6))

    def constant(self, name: str, value: Any) -> str:
        """Add an initializer, as float32; returns its name."""
        array = np.asarray(value, dtype=np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, name: str, constants: Sequence[str] = (), **attributes: Any) -> None:
        """Append a node that reads ``end`` and ``constants``; its output is the new ``end``."""
        output = f"{name}/output"
        inputs = [self.end, *constants]
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        self.end = output

    def row(self, number: int, row: Row) -> None:
        """Append one row of a table, the ``number``-th, counted from 1."""
        channels = scale_channels(row.channels, self.alpha)
        if isinstance(row, Conv):
            self.conv(f"conv{number}", channels, row.kernel, row.stride)
        else:
            depthwise = f"conv_dw_{number}"
            self.conv(depthwise, self.channels, row.kernel, row.stride, depthwise=True)
            self.conv(f"conv_pw_{number}", channels, kernel=1, stride=1)

    def conv(
        self, name: str, channels: int, kernel: int, stride: int, *, depthwise: bool = False
    ) -> None:
        """Append Conv, BatchNormalization and ReLU6: ``[C, H, W] -> [channels, H', W']``."""
        inputs = 1 if depthwise else self.channels
        integers, scale = self.weights.filters(channels, inputs, kernel, kernel)
        before, after = same_pads(self.size, kernel, stride)
        self.node(
            "Conv",
            name,
            [self.constant(f"{name}/weight", integers * scale)],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            dilations=[1, 1],
            group=channels if depthwise else 1,
        )
        seen = weights.taps_seen(self.size, kernel, stride, before)
        self.moments = weights.conv_moments(
            integers, scale, self.moments, seen, depthwise=depthwise
        )
        self.channels, self.size = channels, -(-self.size // stride)
        self.batch_norm(f"{name}/bn")
        self.node("Clip", f"{name}/relu6", ["relu6/min", "relu6/max"])

    def batch_norm(self, name: str) -> None:
        """Append a BatchNormalization in its inference form."""
        norm = self.weights.batch_norm(self.moments.mean, self.moments.variance)
        constants = [
            self.constant(f"{name}/scale", norm.scale),
            self.constant(f"{name}/offset", norm.offset),
            self.constant(f"{name}/mean", norm.mean),
            self.constant(f"{name}/variance", norm.variance),
        ]
        self.node("BatchNormalization", name, constants, epsilon=weights.EPSILON)
        self.moments = weights.relu6_moments(norm)

    def head(self, classes: int) -> None:
        """Append global average pooling and the classifier: ``[C, H, W] -> [classes]``."""
        self.node("GlobalAveragePool", "avg_pool")
        self.node("Flatten", "flatten", axis=1)
        weight, bias = self.weights.dense(classes, self.moments, pooled=self.size**2)
        constants = [self.constant("fc/weight", weight), self.constant("fc/bias", bias)]
        self.node("Gemm", "fc", constants, alpha=1.0, beta=1.0, transB=1)


def build_family(
    family: Family, *, alpha: float, resolution: int, batch: int, classes: int, seed: int
) -> onnx.ModelProto:
    """The model of ``family``; see ``zoo.build`` for the arguments, which are valid here."""
    graph = GraphBuilder(alpha=alpha, resolution=resolution, seed=seed)
    for number, row in enumerate(family.rows, start=1):
        graph.row(number, row)
    graph.head(classes)
    graph.nodes[-1].output[0] = "logits"

    shape_in = [batch, IMAGE_CHANNELS, resolution, resolution]
    float32 = onnx.TensorProto.FLOAT
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"{family.name}_{alpha:g}_{resolution}",
            [helper.make_tensor_value_info("input", float32, shape_in)],
            [helper.make_tensor_value_info("logits", float32, [batch, classes])],
            graph.initializers,
        ),
        producer_name="mobilenet_tvm",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
