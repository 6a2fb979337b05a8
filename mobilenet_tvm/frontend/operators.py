"""Which ONNX operators Relay can import, and what its importer gets wrong.

Relay's importer (``tvm/relay/frontend/onnx.py``, 0.19) ignores what newer operator sets moved
or added, without a word. ``for_importer`` writes those nodes in the form that it reads right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from mobilenet_tvm import toolchain
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.frontend.model import opset
from mobilenet_tvm.frontend.shapes import known_shapes

_NAMED_NODES = 3  # of each unsupported operator; the operators are named all


def reject_unsupported(proto: onnx.ModelProto) -> None:
    """Refuse a model with operators that Relay cannot import.

    Raises:
        UsageError: names every such operator, in subgraphs too, and its first nodes.
    """
    toolchain.activate()
    from tvm.relay.frontend import onnx as importer

    known = {*importer._get_convert_map(opset(proto)), *importer._identity_list, "Constant"}
    where: dict[str, list[str]] = {}
    for node in _nodes(proto.graph):
        standard = node.domain in ("", "ai.onnx")
        # The importer looks at names alone: a custom Relu would pass for the standard one.
        if node.op_type in known and (standard or node.domain == "com.microsoft"):
            continue
        operator = node.op_type if standard else f"{node.domain}::{node.op_type}"
        where.setdefault(operator, []).append(node.name or next(iter(node.output), "unnamed"))
    if where:
        parts = []
        for operator, names in sorted(where.items()):
            more = len(names) - _NAMED_NODES
            parts.append(
                f"{operator} ({', '.join(names[:_NAMED_NODES])}"
                + (f" and {more} more)" if more > 0 else ")")
            )
        raise UsageError(
            f"unsupported operators: {', '.join(parts)}: export the model without them"
        )


def for_importer(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``proto`` that Relay's importer reads right; no valid ONNX any more.

    - Reduce* with axes as an input (opset 13 and 18): it takes the first axis alone.
    - Clip with one bound as an input (opset 11): it drops that bound.
    - Pad with axes (opset 18): it takes the pads for those of the first axes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    constants = {t.name: t for t in graph.initializer}
    shapes = known_shapes(graph)
    dtypes = {
        v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type.startswith("Reduce"):
            _axes_to_attribute(node, constants)
        elif node.op_type == "Pad":
            _pad_all_axes(node, graph, constants, shapes)
        elif node.op_type == "Clip" and len(node.input) > 1:
            nodes += _clip_both(node, graph, constants, dtypes)
            continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _axes_to_attribute(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    if len(node.input) < 2 or node.input[1] not in constants:
        return
    axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
    if not axes:
        return
    del node.input[1:]
    kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("axes", axes)])


def _pad_all_axes(
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    constants: dict[str, onnx.TensorProto],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    if len(node.input) < 4 or not node.input[3]:
        return
    if not {node.input[1], node.input[3]} <= constants.keys() or node.input[0] not in shapes:
        raise UsageError(f"the padding of {node.name or node.output[0]!r} is no constant")
    rank = len(shapes[node.input[0]])
    pads = numpy_helper.to_array(constants[node.input[1]]).tolist()
    axes = numpy_helper.to_array(constants[node.input[3]]).tolist()
    full = np.zeros(2 * rank, np.int64)
    for place, axis in enumerate(axes):
        full[axis % rank] = pads[place]
        full[axis % rank + rank] = pads[place + len(axes)]
    node.input[1] = _add_constant(graph, constants, f"{node.output[0]}_all_pads", full)
    del node.input[3:]


def _clip_both(
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    constants: dict[str, onnx.TensorProto],
    dtypes: dict[str, np.dtype[Any]],
) -> list[onnx.NodeProto]:
    bounds = [*node.input[1:], "", ""][:2]
    if all(name in constants for name in bounds if name):
        dtype = dtypes.get(node.output[0], np.dtype(np.float32))
        limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
        for place, limit in enumerate((limits.min, limits.max)):
            if not bounds[place]:
                name = f"{node.output[0]}_bound_{place}"
                value = np.asarray(limit, dtype)
                bounds[place] = _add_constant(graph, constants, name, value)
        del node.input[1:]
        node.input.extend(bounds)
        return [node]
    # Bounds that are computed: the importer mixes up which is which.
    source, made = node.input[0], []
    for operator, bound in zip(("Max", "Min"), bounds, strict=True):
        if bound:
            result = f"{node.output[0]}_{operator}"
            made.append(helper.make_node(operator, [source, bound], [result]))
            source = result
    made[-1].output[0] = node.output[0]
    return made


def _add_constant(
    graph: onnx.GraphProto,
    constants: dict[str, onnx.TensorProto],
    name: str,
    value: npt.NDArray[np.generic],
) -> str:
    while name in constants:
        name += "_"
    constants[name] = numpy_helper.from_array(value, name)
    graph.initializer.append(constants[name])
    return name


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
