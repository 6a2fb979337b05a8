"""Dense layers over one pixel are pointwise convolutions: say so, and they are tuned as such.

``[N, C, 1, 1] -> Flatten -> Gemm`` becomes ``Conv 1x1 -> Flatten``: the same products in the
same order of channels, in the layout that the layers before it already have. The flattening
moves down, past what works on each number alone (an activation, a bias of its own), so that a
head of several layers and squeeze-excite written with dense layers are convolutions throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from mobilenet_tvm.frontend.graph import drop_unused_nodes
from mobilenet_tvm.frontend.shapes import known_shapes

_RESHAPERS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity")
# By the number of inputs that may be activations; what else they read must be one number.
_ELEMENTWISE = {
    **dict.fromkeys(("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh"), 1),
    **dict.fromkeys(("LeakyRelu", "Elu", "Gelu", "Erf", "Softplus", "Neg", "Abs", "Exp"), 1),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Min", "Max"), 2),
}
_NORM_INPUTS = 5

# A tensor ``x`` of the model, as the pixels that hold its numbers, is ``x.pixels``.
PIXELS = ".pixels"


def dense_to_pointwise(graph: onnx.GraphProto) -> None:
    """Replace every dense layer over a single pixel by a 1x1 convolution.

    Left alone: a dense layer over anything else, one with computed weights, and one with an
    ``alpha``, ``beta`` or ``transA`` of its own. Shapes must have been inferred.
    """
    _Pixels(graph).run()


class _Pixels:
    """One walk over a graph.

    ``pixel_of`` gives for a tensor ``[N, C]`` (or with ones behind) the tensor ``[N, C, 1, 1]``
    that holds the same numbers.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.shapes = known_shapes(graph)
        self.constants = {t.name: t for t in graph.initializer}
        self.pixel_of: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in self.graph.node:
            for place, name in enumerate(node.input):
                # What was a pixel, was flattened and is one again: read the first.
                if len(self.shapes.get(name, ())) == 4 and name in self.pixel_of:
                    node.input[place] = self.pixel_of[name]
            if not (self._reshape(node) or self._dense(node) or self._elementwise(node)):
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        drop_unused_nodes(self.graph)

    def pixel(self, name: str) -> str | None:
        """The tensor ``[N, C, 1, 1]`` with the numbers of ``name``, or None."""
        shape = self.shapes.get(name, ())
        single = len(shape) == 4 and shape[2:] == (1, 1) and name not in self.constants
        return self.pixel_of.get(name, name if single else None)

    def _reshape(self, node: onnx.NodeProto) -> bool:
        """Note a node that only appends or removes dimensions of size 1."""
        if node.op_type not in _RESHAPERS or not node.input:
            return False
        pixel, shape = self.pixel(node.input[0]), self.shapes.get(node.output[0], ())
        if pixel is None or not 2 <= len(shape) <= 4:
            return False
        if shape != self.shapes[pixel][: len(shape)]:
            return False
        self.pixel_of[node.output[0]] = pixel
        self.nodes.append(node)
        return True

    def _dense(self, node: onnx.NodeProto) -> bool:
        weight = _weight(node, self.constants)
        if weight is None or len(self.shapes.get(node.input[0], ())) != 2:
            return False
        pixel = self.pixel(node.input[0])
        if pixel is None or self.shapes[pixel][1] != weight.shape[1]:
            return False
        bias = _bias(node, self.constants, weight.shape[0])
        if bias is None and len(node.input) > 2 and node.input[2]:
            return False
        # Named by the output: names of nodes need not differ.
        name = node.output[0]
        inputs = [pixel, self._constant(f"{name}.pointwise_weight", weight[:, :, None, None])]
        if bias is not None:
            inputs.append(self._constant(f"{name}.pointwise_bias", bias))
        made, label = f"{name}{PIXELS}", node.name or name
        self.nodes.append(helper.make_node("Conv", inputs, [made], label, kernel_shape=[1, 1]))
        self._flatten_later(node, made, (self.shapes[pixel][0], weight.shape[0], 1, 1))
        return True

    def _elementwise(self, node: onnx.NodeProto) -> bool:
        """Work on the pixel where ``node`` works on its flattened numbers."""
        count = _ELEMENTWISE.get(node.op_type, 0)
        norm = node.op_type == "BatchNormalization" and len(node.input) == _NORM_INPUTS
        if not (count or norm) or not any(name in self.pixel_of for name in node.input):
            return False
        shape = self.shapes.get(node.output[0], ())
        if norm:
            if not all(name in self.constants for name in node.input[1:]) or node.output[1:]:
                return False
            inputs: list[str | None] = [self.pixel(node.input[0]), *node.input[1:]]
        else:
            inputs = [self._operand(name, len(shape)) for name in node.input[:count]]
            inputs += [n if not n or self._is_scalar(n) else None for n in node.input[count:]]
        if any(name is None for name in inputs) or not 2 <= len(shape) <= 3:
            return False
        pixels = (*shape, 1, 1)[:4]
        if len(shape) == 3 and shape[2] != 1:
            return False
        made = f"{node.output[0]}{PIXELS}"
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        copy.output[:] = [made]
        self.nodes.append(copy)
        self._flatten_later(node, made, pixels)
        return True

    def _operand(self, name: str, rank: int) -> str | None:
        """An operand of an elementwise node as it is beside ``[N, C, 1, 1]``; None if it cannot."""
        if name not in self.constants:
            return self.pixel(name) if len(self.shapes.get(name, ())) == rank else None
        value = numpy_helper.to_array(self.constants[name])
        if value.size == 1:
            return self._constant(f"{name}.scalar", value.reshape(()))
        aligned = (1,) * (rank - value.ndim) + value.shape
        if len(aligned) != rank or aligned[0] != 1 or set(aligned[2:]) - {1}:
            return None
        return self._constant(f"{name}{PIXELS}", value.reshape(1, -1, 1, 1))

    def _is_scalar(self, name: str) -> bool:
        return name in self.constants and numpy_helper.to_array(self.constants[name]).size == 1

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
            self.graph.initializer.append(self.constants[name])
        return name

    def _flatten_later(self, node: onnx.NodeProto, pixel: str, shape: tuple[int, ...]) -> None:
        """Give ``node``'s output its numbers from ``pixel`` of ``shape`` ``[N, C, 1, 1]``."""
        output = node.output[0]
        self.shapes[pixel] = shape
        self.pixel_of[output] = pixel
        name = f"{node.name or output}/flatten"
        wanted = self.shapes.get(output, shape[:2])
        if len(wanted) == 2:
            self.nodes.append(helper.make_node("Flatten", [pixel], [output], name))
            return
        target = self._constant(f"{output}.shape", np.array(wanted, np.int64))
        self.nodes.append(helper.make_node("Reshape", [pixel, target], [output], name))


def _weight(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Weights of a dense layer as ``[K, C]``, or None when it is none that can be replaced."""
    if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in constants:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    if attributes.get("transA", 0):
        return None
    weight = numpy_helper.to_array(constants[node.input[1]])
    if weight.ndim != 2 or weight.dtype != np.float32:
        return None
    return weight if attributes.get("transB", 0) else np.ascontiguousarray(weight.T)


def _bias(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], filters: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Bias of a Gemm as ``[K]``, or None when it has none or one that is not a row of K."""
    if len(node.input) < 3 or node.input[2] not in constants:
        return None
    bias = numpy_helper.to_array(constants[node.input[2]])
    return bias.reshape(-1) if bias.size == filters and bias.shape[-1] == filters else None
