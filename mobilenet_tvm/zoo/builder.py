"""A layer table becomes an ONNX model: one generic builder for every family.

The graph is what exporters write: NCHW, explicit pads, convolutions without bias followed by
an unfolded BatchNormalization (or with a bias where the network has none), ReLU6 as Clip with
its bounds as inputs, hard-swish as HardSwish, then GlobalAveragePool, Flatten and Gemm. Nodes
carry the names of the paper's layers.

``outline`` makes the graph with weights that have a shape and no values, which is all that
counting needs; ``filling`` gives them values.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from mobilenet_tvm.zoo.graph import IMAGE_CHANNELS, Graph
from mobilenet_tvm.zoo.rows import (
    CLASSES,
    Bottleneck,
    Branches,
    Classifier,
    Conv,
    Dense,
    Detector,
    Family,
    Features,
    Flatten,
    Fused,
    GlobalPool,
    Lrn,
    Pool,
    Row,
    Separable,
    make_divisible,
)

OPSET = 13
# HardSwish is an operator of its own from opset 14 on, and so exporters write it. In its parts
# (opset 13: HardSigmoid, Mul) it would be the same arithmetic in Relay, whose importer knows
# both, and one node more to read.
HARD_SWISH_OPSET = 14
IR_VERSION = 7  # the one that came with opsets 12 to 14: every later reader takes it
SQUEEZE = 4  # V3's squeeze has a quarter of the channels
BOX = 4  # numbers a box


class GraphBuilder(Graph):
    """A family's graph being written, row by row.

    ``features`` are a detector's feature maps so far.
    """

    def __init__(
        self, family: Family, *, alpha: float, resolution: int, batch: int, classes: int
    ) -> None:
        super().__init__(resolution)
        self.family = family
        self.alpha, self.batch, self.classes = alpha, batch, classes
        self.number = 0  # of layers with weights so far
        self.features: list[tuple[str, int, int, int]] = []  # tensor, channels, size, anchors

    def row(self, row: Row) -> None:
        """Append one row of a table."""
        if isinstance(row, Conv | Separable | Bottleneck | Fused | Dense):
            self.number += 1
        number = self.number
        if isinstance(row, Conv):
            self.conv_row(row.name or f"conv{number}", row)
        elif isinstance(row, Separable):
            channels = self.family.scaled(row.channels, self.alpha)
            self.conv(f"conv_dw_{number}", self.channels, row.kernel, row.stride, depthwise=True)
            self.conv(f"conv_pw_{number}", channels, kernel=1)
        elif isinstance(row, Bottleneck):
            self.bottleneck(f"block{number}", row)
        elif isinstance(row, Fused):
            expanded, channels = self.expanded(row.expand), self.scaled(row.channels)
            self.conv(f"block{number}/fused", expanded, row.kernel, row.stride, act=row.act)
            self.conv(f"block{number}/project", channels, kernel=1, act="none")
        elif isinstance(row, Branches):
            self.branches(row)
        elif isinstance(row, Dense):
            self.dense(f"fc{number}", row.units)
            self.node("Relu", f"fc{number}/relu")
        elif isinstance(row, Features):
            self.features.append((self.end, self.channels, self.size, row.anchors))
        elif isinstance(row, Detector):
            self.detector(row)
        else:
            self.plain(row)

    def plain(self, row: Pool | Lrn | GlobalPool | Flatten | Classifier, name: str = "") -> None:
        """Append a row that is one node (a classifier may flatten first)."""
        if isinstance(row, Pool):
            self.pool(name or self.numbered("pool"), row)
        elif isinstance(row, Lrn):
            name = self.numbered("lrn")
            self.node("LRN", name, alpha=row.alpha, beta=row.beta, bias=row.bias, size=row.size)
        elif isinstance(row, GlobalPool):
            self.node("GlobalAveragePool", "avg_pool")
            self.size = 1
        elif isinstance(row, Flatten):
            self.flatten()
        else:
            self.dense("fc", self.classes)

    def scaled(self, channels: int) -> int:
        """``channels`` at this alpha; for ``CLASSES`` the number of classes."""
        if channels == CLASSES:
            return self.classes
        return self.family.scaled(channels, self.alpha)

    def expanded(self, expand: float) -> int:
        """``expand`` times the channels of ``end``."""
        return make_divisible(self.channels * expand)

    def conv_row(self, name: str, row: Conv) -> None:
        """Append a ``Conv`` row."""
        scales = row.width == "always" or (row.width == "widen" and self.alpha > 1)
        self.conv(
            name,
            self.scaled(row.channels) if scales or row.channels == CLASSES else row.channels,
            row.kernel,
            row.stride,
            act=row.act,
            norm=row.norm,
            pad=row.pad,
            groups=row.groups,
        )

    def bottleneck(self, name: str, row: Bottleneck) -> None:
        """Append an inverted bottleneck, universal ones included; see ``Bottleneck``."""
        start, entered = self.end, (self.channels, self.size)
        expanded, channels = self.expanded(row.expand), self.scaled(row.channels)
        if row.start:
            stride = 1 if row.kernel else row.stride
            self.conv(f"{name}/start", self.channels, row.start, stride, depthwise=True, act="none")
        if row.expand != 1:
            self.conv(f"{name}/expand", expanded, kernel=1, act=row.act)
        if row.anchors:
            self.row(Features(row.anchors))
        if row.kernel:
            self.conv(f"{name}/dw", expanded, row.kernel, row.stride, depthwise=True, act=row.act)
        if row.squeeze:
            self.squeeze(f"{name}/se")
        self.conv(f"{name}/project", channels, kernel=1, act="none")
        if (self.channels, self.size) == entered:
            self.node("Add", f"{name}/add", [start])

    def squeeze(self, name: str) -> None:
        """Append squeeze and excitation: each channel times a gate made from all their means."""
        tensor, channels, size = self.end, self.channels, self.size
        self.node("GlobalAveragePool", f"{name}/pool")
        self.size = 1
        self.conv(f"{name}/reduce", make_divisible(channels / SQUEEZE), 1, act="relu", norm=False)
        self.conv(f"{name}/expand", channels, 1, act="none", norm=False)
        # The authors' gate is relu6(x + 3) / 6.
        self.node("HardSigmoid", f"{name}/gate", alpha=1 / 6, beta=0.5)
        gate, self.end, self.size = self.end, tensor, size
        self.node("Mul", f"{name}/scale", [gate])

    def branches(self, row: Branches) -> None:
        """Append rows side by side and their concatenation."""
        tensor, channels, size = self.end, self.channels, self.size
        ends, total = [], 0
        for branch in row.branches:
            self.end, self.channels, self.size = tensor, channels, size
            for part in branch:
                if isinstance(part, Conv):
                    self.conv_row(f"{row.name}/{part.name}", part)
                else:
                    self.plain(part, f"{row.name}/pool")
            ends.append(self.end)
            total += self.channels
        self.end, self.channels = ends[0], total
        self.node("Concat", f"{row.name}/concat", ends[1:], axis=1)

    def detector(self, row: Detector) -> None:
        """Append the heads: ``boxes [N, anchors, 4]`` and ``scores [N, anchors, classes]``."""
        for output, numbers in (("boxes", BOX), ("scores", self.classes)):
            ends = []
            for index, (tensor, channels, size, anchors) in enumerate(self.features, start=1):
                name = f"{output}{index}"
                self.end, self.channels, self.size = tensor, channels, size
                if row.separable:
                    self.conv(f"{name}/dw", channels, row.kernel, depthwise=True)
                kernel = 1 if row.separable else row.kernel
                self.conv(name, anchors * numbers, kernel, act="none", norm=False)
                self.node("Transpose", f"{name}/nhwc", perm=[0, 2, 3, 1])
                shape = np.array([self.batch, size**2 * anchors, numbers], np.int64)
                self.node("Reshape", f"{name}/flat", [self.constant(f"{name}/shape", shape)])
                ends.append(self.end)
            self.end = ends[0]
            self.node("Concat", output, ends[1:], axis=1)

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """Name the last nodes' outputs as the model's, and describe them."""
        float32 = onnx.TensorProto.FLOAT
        if not self.features:
            self.nodes[-1].output[0] = "logits"
            shape = [self.batch, self.classes]
            return [helper.make_tensor_value_info("logits", float32, shape)]
        boxes = sum(size**2 * anchors for _, _, size, anchors in self.features)
        found = []
        for output, numbers in (("boxes", BOX), ("scores", self.classes)):
            next(n for n in self.nodes if n.name == output).output[0] = output
            shape = [self.batch, boxes, numbers]
            found.append(helper.make_tensor_value_info(output, float32, shape))
        return found


def outline(
    family: Family, *, alpha: float, resolution: int, batch: int, classes: int
) -> onnx.ModelProto:
    """The graph of ``family``, its weights without values; the arguments are valid here."""
    graph = GraphBuilder(family, alpha=alpha, resolution=resolution, batch=batch, classes=classes)
    for row in (*family.rows, *family.head):
        graph.row(row)
    outputs = graph.outputs()

    opset = HARD_SWISH_OPSET if any(n.op_type == "HardSwish" for n in graph.nodes) else OPSET
    shape_in = [batch, IMAGE_CHANNELS, resolution, resolution]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"{family.name}_{alpha:g}_{resolution}",
            [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape_in)],
            outputs,
            [*graph.constants.values(), *graph.weights],
        ),
        producer_name="mobilenet_tvm",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", opset)],
    )
