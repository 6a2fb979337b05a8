"""Bring any exporter's MobileNet to one plain form: static, folded, explicitly padded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import onnx
from onnx import defs, helper, inliner, version_converter

from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.frontend import convs, dense, plain, shapes
from mobilenet_tvm.frontend.model import Model, opset
from mobilenet_tvm.frontend.operators import reject_unsupported

OLDEST_OPSET = 7  # where operators got their present broadcasting; 9 to 20 are tested
NEWEST_OPSET = 20  # newer ones are converted to it, as far as the pinned onnx knows them


@dataclass(frozen=True)
class CleanModel:
    """A model with static shapes that computes the same as ``original``.

    ``proto`` is valid ONNX of the original's operator set, or of opset 20 if that was newer.
    """

    original: Model
    proto: onnx.ModelProto = field(repr=False)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def clean(
    model: Model, *, shape: tuple[int, ...] | None = None, batch: int | None = None
) -> CleanModel:
    """Fix shapes, fold constants and BatchNorm, make pads explicit, drop what does nothing.

    ``shape`` is the full shape of the only input, ``batch`` the size of a dynamic first
    dimension (1 by default). Numbers change by rounding alone: of folded BatchNorm, of divisions
    that became products, and of means that are summed in another order.

    Raises:
        UsageError: shapes cannot be fixed, or operators are not supported (all are named).
    """
    _check_opset(model)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.ir_version = max(proto.ir_version, 4)  # before, weights had to be inputs as well
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    proto = _to_known_opset(proto, model.name)
    shapes.fix_input_shapes(proto, shape, batch)
    try:
        proto = _slim(shapes.infer_shapes(proto))
    except UsageError:
        reject_unsupported(proto)  # the likelier reason, and the better message
        raise
    reject_unsupported(proto)  # now that those in shape arithmetic are gone
    _reject_training(proto.graph)
    proto = shapes.infer_shapes(proto)
    convs.resolve_auto_pad(proto.graph)
    plain.means_to_global_pools(proto.graph)
    plain.pool_large_images_in_two_steps(proto.graph)
    plain.divisions_to_products(proto.graph)
    proto = shapes.infer_shapes(proto)
    dense.dense_to_pointwise(proto.graph)
    convs.fold_batch_norm(proto.graph)
    proto = shapes.infer_shapes(proto)
    reason = shapes.why_dynamic(proto.graph)
    return CleanModel(
        original=model,
        proto=proto,
        inputs=shapes.tensor_specs(proto.graph.input, "input", reason),
        outputs=shapes.tensor_specs(proto.graph.output, "output", reason),
    )


def _check_opset(model: Model) -> None:
    version, newest = opset(model.proto), defs.onnx_opset_version()
    if version > newest:
        raise UsageError(
            f"{model.name} has opset {version}, which is newer than supported ({newest}): export "
            f"it with opset {NEWEST_OPSET} or older"
        )
    if version < OLDEST_OPSET:
        raise UsageError(
            f"{model.name} has opset {version}, which is older than supported: export it with "
            f"an opset of 9 to {NEWEST_OPSET}"
        )


def _to_known_opset(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """``proto`` at opset 20, if it was newer: most operators only learnt more data types since."""
    version = opset(proto)
    if version <= NEWEST_OPSET:
        return proto
    reject_unsupported(proto)  # the better message for operators that only newer sets have
    try:
        return version_converter.convert_version(proto, NEWEST_OPSET)
    except Exception as error:
        line = " ".join(str(error).split())
        raise UsageError(
            f"{name} has opset {version} and cannot be converted to {NEWEST_OPSET} ({line}): "
            f"export it with opset {NEWEST_OPSET} or older"
        ) from None


def _slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and shape arithmetic, drop Identity, Dropout and dead nodes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnxslim

        try:
            # Its fusions match by shape alone and some are wrong in rare cases (a spatial
            # constant as long as there are channels, Pad with axes): ours and Relay's do.
            slimmed = onnxslim.slim(proto, skip_optimizations=["graph_fusion", "weight_tying"])
        except Exception as error:
            line = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"the model cannot be simplified: {line}") from None
    if not slimmed.graph.input:
        raise UsageError("the model's outputs do not depend on its input: export it again")
    return slimmed


def _reject_training(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "BatchNormalization" and attributes.get("training_mode", 0):
            raise UsageError(
                f"{node.name or node.output[0]!r} is a BatchNormalization in training mode: "
                "export the model for inference (model.eval())"
            )
