"""Make convolutions plain: explicit pads, BatchNorm folded into weights and bias."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.frontend.graph import drop_unused_initializers, tensors_read
from mobilenet_tvm.frontend.shapes import known_shapes

_PADDED = ("Conv", "MaxPool", "AveragePool", "LpPool")


def resolve_auto_pad(graph: onnx.GraphProto) -> None:
    """Replace ``auto_pad`` of convolutions and pools by the explicit pads it stands for.

    SAME_UPPER and SAME_LOWER pad to ``ceil(size / stride)`` outputs, the odd element at the
    end or at the start (ONNX operator Conv-11, attribute ``auto_pad``). Shapes must have been
    inferred.

    Raises:
        UsageError: the size of a padded tensor is not known.
    """
    shapes = known_shapes(graph)
    for node in graph.node:
        if node.op_type not in _PADDED:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        mode = attributes.get("auto_pad", b"NOTSET").decode()
        if "auto_pad" in attributes:
            _drop_attribute(node, "auto_pad")
        if mode == "NOTSET":
            continue
        sizes = shapes.get(node.input[0])
        if sizes is None:
            raise UsageError(
                f"the size of {node.input[0]!r} is not known, so the padding of "
                f"{node.name or node.output[0]!r} cannot be: export the model with static shapes"
            )
        kernel = attributes.get("kernel_shape") or shapes[node.input[1]][2:]
        strides = attributes.get("strides") or [1] * len(kernel)
        dilations = attributes.get("dilations") or [1] * len(kernel)
        begins, ends = [], []
        for size, k, stride, dilation in zip(sizes[2:], kernel, strides, dilations, strict=True):
            reach = (k - 1) * dilation + 1
            total = 0
            if mode != "VALID":
                total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            small, large = total // 2, total - total // 2
            begins.append(large if mode == "SAME_LOWER" else small)
            ends.append(small if mode == "SAME_LOWER" else large)
        _drop_attribute(node, "pads")
        node.attribute.append(helper.make_attribute("pads", begins + ends))


def fold_batch_norm(graph: onnx.GraphProto) -> None:
    """Fold every BatchNormalization that follows a convolution into its weights and bias.

    It stays where it cannot be folded: the convolution's result is used elsewhere too, or
    weights or statistics are no constants. Computed in float64, rounded once.
    """
    constants = {t.name: t for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses: dict[str, int] = {}
    for name in [n for node in graph.node for n in tensors_read(node)] + [
        o.name for o in graph.output
    ]:
        uses[name] = uses.get(name, 0) + 1

    kept = []
    for norm in graph.node:
        conv = makers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if (
            conv is None
            or conv.op_type != "Conv"
            or uses[norm.input[0]] > 1
            or any(norm.output[1:])
            or not all(name in constants for name in norm.input[1:])
            or not all(name in constants for name in conv.input[1:] if name)
        ):
            kept.append(norm)
            continue
        folded = _folded(conv, norm, constants)
        if folded is None:
            kept.append(norm)
            continue
        # Weights may be shared with another convolution: new ones, the old are swept later.
        for kind, array in zip(("weight", "bias"), folded, strict=True):
            name = _fresh(f"{norm.output[0]}_folded_{kind}", constants)
            constants[name] = numpy_helper.from_array(array, name)
            graph.initializer.append(constants[name])
            del conv.input[1 if kind == "weight" else 2 :]
            conv.input.append(name)
        makers[norm.output[0]] = conv
        conv.output[0] = norm.output[0]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused_initializers(graph)


def _folded(
    conv: onnx.NodeProto, norm: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]] | None:
    """Weights and bias of ``conv`` with ``norm`` in them; None where that cannot be."""
    attributes = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
    if attributes.get("training_mode", 0) or not attributes.get("spatial", 1):
        return None
    weight = numpy_helper.to_array(constants[conv.input[1]])
    gamma, beta, mean, variance = (
        numpy_helper.to_array(constants[name]).astype(np.float64) for name in norm.input[1:5]
    )
    bias = np.zeros_like(mean)
    if len(conv.input) > 2 and conv.input[2]:
        bias = numpy_helper.to_array(constants[conv.input[2]]).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    if not np.isfinite(scale).all():
        return None
    new_weight = weight.astype(np.float64) * scale.reshape(-1, *[1] * (weight.ndim - 1))
    new_bias = (bias - mean) * scale + beta
    return new_weight.astype(weight.dtype), new_bias.astype(weight.dtype)


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _fresh(name: str, taken: dict[str, onnx.TensorProto]) -> str:
    while name in taken:
        name += "_"
    return name
