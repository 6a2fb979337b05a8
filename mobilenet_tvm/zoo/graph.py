"""An ONNX graph being written, node by node: what every kind of row is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mobilenet_tvm.zoo.rows import Act, Pad, Pool

IMAGE_CHANNELS = 3
EPSILON = 1e-3  # TF-slim's


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pads before and after one axis of ``size`` that equal TensorFlow's SAME (SAME_UPPER).

    The output has ``ceil(size / stride)`` values; an odd pad goes after:
    ``same_pads(224, 3, 2) == (0, 1)``, ``same_pads(112, 3, 1) == (1, 1)``.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Graph:
    """Nodes and initializers so far, and what is known of the tensor at their end.

    ``channels`` and ``size`` (height and width, 0 where it is flat) describe the tensor ``end``.
    Weights have a shape and no values: ``filling`` gives them some.
    """

    def __init__(self, resolution: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.end = "input"
        self.channels = IMAGE_CHANNELS
        self.size = resolution

    def weight(self, name: str, *shape: int) -> str:
        """Add a float32 initializer of ``shape`` without values; returns its name."""
        float32 = onnx.TensorProto.FLOAT
        self.weights.append(onnx.TensorProto(name=name, dims=shape, data_type=float32))
        return name

    def constant(self, name: str, value: Any) -> str:
        """Add an initializer with its value, once for all who share it; returns its name."""
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, name: str, others: Sequence[str] = (), **attributes: Any) -> None:
        """Append a node that reads ``end`` and ``others``; its output is the new ``end``."""
        output = f"{name}/output"
        inputs = [self.end, *others]
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        self.end = output

    def numbered(self, kind: str) -> str:
        """A name for the next node of ``kind``: ``pool1``, ``pool2`` ..."""
        return f"{kind}{1 + sum(n.name.startswith(kind) for n in self.nodes)}"

    def conv(
        self,
        name: str,
        channels: int,
        kernel: int,
        stride: int = 1,
        *,
        depthwise: bool = False,
        act: Act = "relu6",
        norm: bool = True,
        pad: Pad = "same",
        groups: int = 1,
    ) -> None:
        """Append Conv, BatchNormalization (or a bias), ``act``: ``[C, H, W] -> [channels, ..]``."""
        groups = channels if depthwise else groups
        before, after = self.pads(pad, kernel, stride)
        constants = [
            self.weight(f"{name}/weight", channels, self.channels // groups, kernel, kernel)
        ]
        if not norm:
            constants.append(self.weight(f"{name}/bias", channels))
        self.node(
            "Conv",
            name,
            constants,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            dilations=[1, 1],
            group=groups,
        )
        self.channels = channels
        self.size = (self.size + before + after - kernel) // stride + 1
        if norm:
            parts = ("scale", "offset", "mean", "variance")
            vectors = [self.weight(f"{name}/bn/{part}", channels) for part in parts]
            self.node("BatchNormalization", f"{name}/bn", vectors, epsilon=EPSILON)
        self.activate(name, act)

    def pads(self, pad: Pad, kernel: int, stride: int) -> tuple[int, int]:
        """What ``pad`` comes to on ``end``, before and after an axis."""
        if pad == "same":
            return same_pads(self.size, kernel, stride)
        return (0, 0) if pad == "valid" else (pad, pad)

    def activate(self, name: str, act: Act) -> None:
        """Append ``act``."""
        if act == "relu6":
            bounds = [
                self.constant("relu6/min", np.float32(0)),
                self.constant("relu6/max", np.float32(6)),
            ]
            self.node("Clip", f"{name}/relu6", bounds)
        elif act != "none":
            op = {"relu": "Relu", "hard_swish": "HardSwish"}[act]
            self.node(op, f"{name}/{act}")

    def pool(self, name: str, row: Pool) -> None:
        """Append a max pooling."""
        before, after = self.pads(row.pad, row.kernel, row.stride)
        self.node(
            "MaxPool",
            name,
            kernel_shape=[row.kernel, row.kernel],
            strides=[row.stride, row.stride],
            pads=[before, before, after, after],
        )
        self.size = (self.size + before + after - row.kernel) // row.stride + 1

    def flatten(self) -> None:
        """Append a Flatten, unless the tensor is flat."""
        if self.size:
            self.node("Flatten", "flatten", axis=1)
            self.channels, self.size = self.channels * self.size**2, 0

    def dense(self, name: str, units: int) -> None:
        """Append a Gemm with bias: ``[C] -> [units]``."""
        self.flatten()
        constants = [
            self.weight(f"{name}/weight", units, self.channels),
            self.weight(f"{name}/bias", units),
        ]
        self.node("Gemm", name, constants, alpha=1.0, beta=1.0, transB=1)
        self.channels = units
