"""Inner tensors of an ONNX model: what it computes on the way, and parts of it as models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.references import Shapes, with_shapes

Array = NDArray[Any]

_RESHAPERS = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


class Tapped:
    """An ONNX model whose inner tensors can be asked for.

    Args:
        onnx_bytes: the model.
        shapes: of its inputs, by name.

    Attributes:
        model: the ``onnx.ModelProto``, shapes fixed and inferred throughout.
    """

    def __init__(self, onnx_bytes: bytes, shapes: Shapes) -> None:
        fixed = with_shapes(onnx_bytes, shapes)
        # Those that were stored may be of another batch.
        del fixed.graph.value_info[:]
        for output in fixed.graph.output:
            output.type.tensor_type.ClearField("shape")
        self.model = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
        graph = self.model.graph
        self._types = {
            value.name: value for value in (*graph.input, *graph.value_info, *graph.output)
        }
        self._order = list(graph.node)
        self._makers = {name: node for node in self._order for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}

    def has(self, tensor: str | None) -> bool:
        """Whether a tensor is computed in the model and can be asked for."""
        return tensor in self._makers and tensor in self._types

    def with_outputs(self, tensors: Iterable[str]) -> bytes:
        """The model with inner tensors as outputs, beside its own; in ONNX's wire format."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        known = {output.name for output in model.graph.output}
        for name in dict.fromkeys(tensors):
            if name not in known:
                model.graph.output.append(self._types[name])
        return bytes(model.SerializeToString())

    def dtype(self, tensor: str) -> str:
        """The data type of a tensor, as numpy names it."""
        elem_type = self._types[tensor].type.tensor_type.elem_type
        return str(helper.tensor_dtype_to_np_dtype(elem_type))

    def aliases(self, tensor: str, value: Array) -> dict[str, Array]:
        """A tensor and those that it is only another shape of, each with its numbers."""
        found = {tensor: value}
        node = self._makers.get(tensor)
        while node is not None and node.op_type in _RESHAPERS:
            source = node.input[0]
            kind = self._types.get(source)
            shape = kind and [size.dim_value for size in kind.type.tensor_type.shape.dim]
            if not shape or int(np.prod(shape)) != value.size:
                break
            found[source] = value.reshape(shape)
            node = self._makers.get(source)
        return found

    def part(
        self, given: Mapping[str, Array], output: str
    ) -> tuple[bytes, dict[str, Array], tuple[str, ...]]:
        """The nodes that make one tensor from others, as a model of their own.

        Args:
            given: the tensors that it may begin with.
            output: the tensor it ends with. Where it is given itself, the model hands it on.

        Returns:
            The model in ONNX's wire format, those of ``given`` that it reads, and its nodes by
            operator and name.

        Raises:
            UsageError: the tensor needs others than these, sparse weights among them.
        """
        if output in given:
            begin = f"{output}.laid_out"
            node = helper.make_node("Identity", [begin], [output], f"layout change of {output}")
            return self._model([node], {begin: given[output]}, output), {begin: given[output]}, ()
        nodes = self._nodes(given, output)
        read = {name for node in nodes for name in node.input if name}
        used = {name: value for name, value in given.items() if name in read}
        made = {name for node in nodes for name in node.output}
        weights = [self._weights[name] for name in sorted(read & set(self._weights))]
        missing = read - made - set(used) - {tensor.name for tensor in weights}
        if missing:
            raise UsageError(f"{output} needs {', '.join(sorted(missing))} as well")
        titles = tuple(f"{node.op_type} {node.name or node.output[0]}" for node in nodes)
        return self._model(nodes, used, output, weights), used, titles

    def _model(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Mapping[str, Array],
        output: str,
        weights: Sequence[onnx.TensorProto] = (),
    ) -> bytes:
        infos = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in inputs.items()
        ]
        graph = helper.make_graph(nodes, "layer", infos, [self._types[output]], list(weights))
        model = helper.make_model(
            graph, functions=self.model.functions, opset_imports=self.model.opset_import
        )
        # Before version 4 weights had to be inputs as well.
        model.ir_version = max(self.model.ir_version, 4)
        return bytes(model.SerializeToString())

    def _nodes(self, inputs: Iterable[str], output: str) -> list[onnx.NodeProto]:
        """The nodes that make a tensor from others, in order."""
        stop, needed, waiting = set(inputs), set(), [output]
        while waiting:
            name = waiting.pop()
            node = self._makers.get(name)
            if name in stop or node is None or id(node) in needed:
                continue
            needed.add(id(node))
            waiting += list(node.input)
        return [node for node in self._order if id(node) in needed]


def plain_layout(array: Array, layout: str, shape: Sequence[int]) -> Array:
    """An activation as ONNX has it, ``[N, C, H, W]``, from the way that a kernel laid it out.

    Args:
        array: as it lies in memory: ``NCHW16c`` is ``[N, C/16, H, W, 16]``.
        layout: ``NCHW``, ``NCHW<x>c``, ``NHWC``, or empty for any other tensor.
        shape: of the ONNX tensor, with as many elements.

    Raises:
        UsageError: it has another number of elements.
    """
    if re.fullmatch(r"NCHW\d+c", layout) and array.ndim == 5:
        array = array.transpose(0, 1, 4, 2, 3)
    elif layout == "NHWC" and array.ndim == 4:
        array = array.transpose(0, 3, 1, 2)
    if array.size != int(np.prod(shape)):
        raise UsageError(f"{list(array.shape)} {layout} is no tensor of shape {list(shape)}")
    return np.ascontiguousarray(array).reshape(tuple(shape))
