"""A classifier over one pixel is a pointwise convolution: say so, and it is tuned as one.

``[N, C, 1, 1] -> Flatten -> Gemm`` becomes ``Conv 1x1 -> Flatten``: the same products in the
same order of channels, in the layout that the layers before it already have.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mobilenet_tvm.frontend.shapes import known_shapes

_FLATTENERS = ("Flatten", "Reshape", "Squeeze")


def dense_to_pointwise(graph: onnx.GraphProto) -> None:
    """Replace every dense layer over a single pixel by a 1x1 convolution.

    Left alone: a dense layer over anything else, one with computed weights, and one with an
    ``alpha``, ``beta`` or ``transA`` of its own. Shapes must have been inferred.
    """
    shapes = known_shapes(graph)
    constants = {t.name: t for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for name in [n for node in graph.node for n in node.input] + [o.name for o in graph.output]:
        readers[name] = readers.get(name, 0) + 1

    nodes: list[onnx.NodeProto] = []
    dead: set[str] = set()
    for node in graph.node:
        flatten = makers.get(node.input[0]) if node.input else None
        weight = _weight(node, constants)
        if flatten is None or weight is None or flatten.op_type not in _FLATTENERS:
            nodes.append(node)
            continue
        pixel, flat = shapes.get(flatten.input[0], ()), shapes.get(flatten.output[0], ())
        single = len(pixel) == 4 and tuple(pixel[2:]) == (1, 1) and tuple(flat) == tuple(pixel[:2])
        bias = _bias(node, constants, weight.shape[0])
        if not single or pixel[1] != weight.shape[1] or (len(node.input) > 2 and bias is None):
            nodes.append(node)
            continue
        name = node.name or node.output[0]
        inputs = [flatten.input[0], f"{name}.pointwise_weight"]
        graph.initializer.append(numpy_helper.from_array(weight[:, :, None, None], inputs[1]))
        if bias is not None:
            inputs.append(f"{name}.pointwise_bias")
            graph.initializer.append(numpy_helper.from_array(bias, inputs[2]))
        pixels = f"{name}.pixels"
        nodes.append(helper.make_node("Conv", inputs, [pixels], name, kernel_shape=[1, 1]))
        nodes.append(helper.make_node("Flatten", [pixels], [node.output[0]], f"{name}/flatten"))
        if readers[flatten.output[0]] == 1:
            dead.add(flatten.output[0])
    kept = [node for node in nodes if not (node.output and node.output[0] in dead)]
    del graph.node[:]
    graph.node.extend(kept)


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
