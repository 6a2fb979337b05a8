"""Inner tensors of an ONNX model: what it computes on the way, and parts of it as models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.utils import Extractor

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.references import with_shapes

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]


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
        self._makers = {name: node for node in graph.node for name in node.output if name}
        whole = onnx.ModelProto()
        whole.CopyFrom(self.model)
        # An output may be read inside, too, and then is where a part may begin.
        whole.graph.value_info.extend(graph.output)
        self._extractor = Extractor(whole)

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

    def part(self, inputs: Mapping[str, Sequence[int]], output: str) -> bytes:
        """The nodes that make one tensor from others, as a model of their own.

        Args:
            inputs: the tensors it begins with, and their shapes.
            output: the tensor it ends with.

        Raises:
            UsageError: the tensor needs others than these.
        """
        dtype = {name: self._types[name].type.tensor_type.elem_type for name in inputs}
        model = self._extractor.extract_model(list(inputs), [output])
        model.ir_version = max(model.ir_version, 4)  # before, weights had to be inputs as well
        made = {name for node in model.graph.node for name in node.output}
        made |= set(inputs) | {tensor.name for tensor in model.graph.initializer} | {""}
        missing = {name for node in model.graph.node for name in node.input} - made
        if missing:
            raise UsageError(f"{output} needs {', '.join(sorted(missing))} as well")
        del model.graph.input[:]
        for name, shape in inputs.items():
            model.graph.input.append(helper.make_tensor_value_info(name, dtype[name], list(shape)))
        # One node's inner tensors are of no use to anyone, and their shapes may be in the way.
        del model.graph.value_info[:]
        return bytes(model.SerializeToString())

    def nodes(self, inputs: Iterable[str], output: str) -> tuple[str, ...]:
        """``Conv conv_dw_7``, ... : the nodes that make a tensor from others, in order."""
        stop, needed, waiting = set(inputs), set(), [output]
        while waiting:
            node = self._makers.get(name := waiting.pop())
            if name in stop or node is None or id(node) in needed:
                continue
            needed.add(id(node))
            waiting += list(node.input)
        return tuple(
            f"{node.op_type} {node.name or node.output[0]}"
            for node in self.model.graph.node
            if id(self._makers.get(next(n for n in node.output if n))) in needed
        )


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
