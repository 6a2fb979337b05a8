"""One form for what exporters write in several: means over the image, and divisions."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mobilenet_tvm.frontend.graph import drop_unused_nodes
from mobilenet_tvm.frontend.shapes import known_shapes

_IMAGE_RANK = 4
# Pixels that TVM's pooling may add up one after the other. 3136 (56x56) equal ones cost five
# digits of seven, which squeeze-excite multiplies into all that follows; in two steps it is one.
_MOST_IN_A_SUM = 16 * 16


def means_to_global_pools(graph: onnx.GraphProto) -> None:
    """Make every mean over the whole image a GlobalAveragePool, of which the layouts know.

    Those are ReduceMean over height and width, with or without ``keepdims``, axes as an attribute
    or an input; ReduceMean over the last axis of ``[N, C, H * W]``; and AveragePool as large as
    the image. Where the result is not ``[N, C, 1, 1]``, a Reshape follows. Shapes must have been
    inferred.
    """
    shapes = known_shapes(graph)
    constants = {t.name: t for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        image = _image_averaged(node, shapes, constants, makers)
        wanted = shapes.get(node.output[0]) if node.output else None
        if image is None or wanted is None:
            nodes.append(node)
            continue
        name, result = node.name or node.output[0], node.output[0]
        pooled = (*shapes[image][:2], 1, 1)
        if wanted == pooled:
            nodes.append(helper.make_node("GlobalAveragePool", [image], [result], name))
            continue
        target = numpy_helper.from_array(np.array(wanted, np.int64), f"{result}.shape")
        graph.initializer.append(target)
        pool = f"{result}.pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [image], [pool], name))
        nodes.append(helper.make_node("Reshape", [pool, target.name], [result], f"{name}/reshape"))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused_nodes(graph)


def pool_large_images_in_two_steps(graph: onnx.GraphProto) -> None:
    """Pool rows first, then the means of the rows, where an image is larger than 16x16.

    Shapes must have been inferred.
    """
    shapes = known_shapes(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        shape = shapes.get(node.input[0], ()) if node.op_type == "GlobalAveragePool" else ()
        if len(shape) == _IMAGE_RANK and shape[2] * shape[3] > _MOST_IN_A_SUM:
            rows, window = f"{node.output[0]}.rows", [1, shape[3]]
            name = f"{node.name or node.output[0]}/rows"
            nodes.append(
                helper.make_node("AveragePool", [node.input[0]], [rows], name, kernel_shape=window)
            )
            node.input[0] = rows
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _image_averaged(
    node: onnx.NodeProto,
    shapes: dict[str, tuple[int, ...]],
    constants: dict[str, onnx.TensorProto],
    makers: dict[str, onnx.NodeProto],
) -> str | None:
    """The tensor ``[N, C, H, W]`` whose mean over H and W ``node`` is, or None."""
    if node.domain not in ("", "ai.onnx") or not node.input:
        return None
    source: str = node.input[0]
    shape = shapes.get(source)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if shape is None:
        return None
    if node.op_type == "AveragePool":
        whole = len(shape) == _IMAGE_RANK and tuple(attributes["kernel_shape"]) == shape[2:]
        plain = not any(attributes.get("pads", ())) and attributes.get("auto_pad") in (
            None,
            b"NOTSET",
            b"VALID",
        )
        undilated = set(attributes.get("dilations", [1])) == {1}
        return source if whole and plain and undilated else None
    if node.op_type != "ReduceMean":
        return None
    axes = attributes.get("axes")
    if len(node.input) > 1 and node.input[1]:
        given = constants.get(node.input[1])
        axes = None if given is None else numpy_helper.to_array(given).tolist()
    if not axes:
        return None
    reduced = sorted(axis % len(shape) for axis in axes)
    if len(shape) == _IMAGE_RANK and reduced == [2, 3]:
        return source
    flat = makers.get(source)
    if len(shape) != _IMAGE_RANK - 1 or reduced != [2] or flat is None:
        return None
    if flat.op_type not in ("Reshape", "Flatten"):
        return None
    image = shapes.get(flat.input[0], ())
    unfolded = len(image) == _IMAGE_RANK and (*image[:2], math.prod(image[2:])) == shape
    source = flat.input[0]
    return source if unfolded else None


def divisions_to_products(graph: onnx.GraphProto) -> None:
    """Multiply by the reciprocal where a float tensor is divided by a constant.

    A division costs a vector unit as much as ten additions, in the epilogue of the layer that it
    is fused into (hard-swish's ``/ 6``). The result differs by one rounding.
    """
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type != "Div" or node.input[1] not in constants or node.input[0] in constants:
            continue
        divisor = numpy_helper.to_array(constants[node.input[1]])
        if divisor.dtype != np.float32 or not np.isfinite(divisor).all():
            continue
        # A reciprocal must be a normal number, or it loses digits.
        tiny = float(np.finfo(np.float32).tiny)
        if not ((np.abs(divisor) > 1e-30) & (np.abs(divisor) < 1 / tiny)).all():
            continue
        name = f"{node.output[0]}.reciprocal"
        reciprocal = (1 / divisor.astype(np.float64)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(reciprocal, name))
        node.op_type, node.input[1] = "Mul", name
