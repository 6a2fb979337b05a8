"""Mult-Adds and parameters, counted from the graph of any ONNX model.

The paper's convention (arXiv 1704.04861, Tables 2 and 6): a Mult-Add is one multiplication with
its addition (two FLOPs); parameters are the weights of convolutions and dense layers. Biases
and BatchNorm's four vectors are not counted: only so does Table 2's 74.59 % of the parameters
in 1x1 convolutions come out, and folding BatchNorm changes no figure. Torch's count of all
trainable values of V1 is 0.5 % higher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx

from mobilenet_tvm.errors import UsageError

Shape = tuple[int, ...]
Kind = Literal["conv", "depthwise", "pointwise", "dense"]


@dataclass(frozen=True)
class LayerCost:
    """One convolution or dense layer: its node's name and what it costs.

    ``mult_adds`` and ``output_shape`` are for the whole batch.
    """

    node: str
    op: str
    kind: Kind
    mult_adds: int
    parameters: int
    output_shape: Shape


@dataclass(frozen=True)
class Costs:
    """Sums over a model's layers; ``mult_adds`` for the whole batch."""

    mult_adds: int
    parameters: int


def costs(model: onnx.ModelProto) -> Costs:
    """Mult-Adds and parameters of ``model``; see ``layer_costs`` for what is counted.

    Raises:
        UsageError: a layer's shape is not fixed, or shape inference fails.
    """
    layers = layer_costs(model)
    return Costs(sum(x.mult_adds for x in layers), sum(x.parameters for x in layers))


def layer_costs(model: onnx.ModelProto) -> list[LayerCost]:
    """The cost of every Conv, Gemm and MatMul of ``model``, in the graph's order.

    Not counted: all other operators, biases, and nodes inside the branches of If and Loop. A
    weight used by two layers is counted in both.

    Raises:
        UsageError: a layer's shape is not fixed, or shape inference fails.
    """
    constants = dict(_constants(model.graph))
    shapes = _Shapes(model, constants)
    layers = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            layers.append(_conv(node, shapes))
        elif node.op_type in ("Gemm", "MatMul"):
            layers.append(_dense(node, shapes, constants))
    return layers


def shapes(model: onnx.ModelProto) -> Mapping[str, Shape]:
    """The shape of every tensor of ``model`` that has a fixed one.

    Raises:
        UsageError: shape inference fails.
    """
    return _Shapes(model, dict(_constants(model.graph))).known


def _conv(node: onnx.NodeProto, shapes: _Shapes) -> LayerCost:
    weight, output = shapes.of(node, node.input[1]), shapes.of(node, node.output[0])
    groups = _attribute(node, "group", 1)
    kind: Kind = "conv"
    if groups > 1 and weight[1] == 1:
        kind = "depthwise"
    elif groups == 1 and math.prod(weight[2:]) == 1:
        kind = "pointwise"
    return LayerCost(
        node=node.name or node.output[0],
        op=node.op_type,
        kind=kind,
        # Every output value sums over its group's input channels and the kernel's taps.
        mult_adds=math.prod(output) * math.prod(weight[1:]),
        parameters=math.prod(weight),
        output_shape=output,
    )


def _dense(node: onnx.NodeProto, shapes: _Shapes, constants: Mapping[str, Shape]) -> LayerCost:
    left, output = shapes.of(node, node.input[0]), shapes.of(node, node.output[0])
    transposed = node.op_type == "Gemm" and _attribute(node, "transA", 0)
    summed = left[0] if transposed else left[-1]
    return LayerCost(
        node=node.name or node.output[0],
        op=node.op_type,
        kind="dense",
        mult_adds=math.prod(output) * summed,
        # A product of two activations (attention) has no parameters.
        parameters=sum(math.prod(constants[name]) for name in node.input[:2] if name in constants),
        output_shape=output,
    )


class _Shapes:
    """Shapes of a model's tensors, inferred."""

    def __init__(self, model: onnx.ModelProto, constants: Mapping[str, Shape]) -> None:
        try:
            graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except onnx.shape_inference.InferenceError as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"cannot infer the model's shapes: {reason}") from None
        self.known = dict(constants)
        for info in (*graph.input, *graph.value_info, *graph.output):
            tensor = info.type.tensor_type
            shape = tuple(d.dim_value for d in tensor.shape.dim)
            # A dimension left open is 0 here, or -1 as some exporters write it.
            if tensor.HasField("shape") and all(size > 0 for size in shape):
                self.known.setdefault(info.name, shape)

    def of(self, node: onnx.NodeProto, tensor: str) -> Shape:
        try:
            return self.known[tensor]
        except KeyError:
            raise UsageError(
                f"cannot count {node.op_type} {node.name or node.output[0]}: the shape of "
                f"{tensor} is not known; fix the input shapes and fold shape arithmetic (onnxslim)"
            ) from None


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)
    for node in graph.node:
        if node.op_type == "Constant":
            value = _attribute(node, "value", None)
            if value is not None:
                yield node.output[0], tuple(value.dims)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default
