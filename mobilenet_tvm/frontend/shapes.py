"""Fix the shapes of a model's inputs, and work out all others from them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper, shape_inference

from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError

_DATA_DEPENDENT = {"NonMaxSuppression", "NonZero", "Unique", "Compress"}


def fix_input_shapes(
    proto: onnx.ModelProto, shape: tuple[int, ...] | None, batch: int | None
) -> None:
    """Give every input of ``proto`` a static shape, and forget all shapes that follow from it.

    A dynamic first dimension is the batch: ``batch``, or 1. ``shape`` sets all dimensions of
    the only input. Initializers that are listed as inputs (ONNX IR 3) stop being inputs.

    Raises:
        UsageError: a dimension stays dynamic, or ``shape`` or ``batch`` contradicts the model.
    """
    graph = proto.graph
    weights = {t.name for t in graph.initializer} | {
        t.values.name for t in graph.sparse_initializer
    }
    inputs = [i for i in graph.input if i.name not in weights]
    if not inputs:
        raise UsageError("the model has no input: export it with its image as an input")
    if shape is not None and len(inputs) > 1:
        names = ", ".join(i.name for i in inputs)
        raise UsageError(f"--shape sets one input, the model has {len(inputs)} ({names})")
    for value in inputs:
        tensor = value.type.tensor_type
        if not tensor.elem_type:
            raise UsageError(
                f"input {value.name!r} is no tensor: export the model with tensors only"
            )
        dims = _dims(value) if tensor.HasField("shape") else None
        fixed = _fixed(value.name, dims, shape, batch)
        tensor.shape.CopyFrom(onnx.TensorShapeProto())
        for size in fixed:
            tensor.shape.dim.add().dim_value = size
    del graph.input[:]
    graph.input.extend(inputs)
    # What was inferred or declared for other shapes would contradict the new ones.
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` with the shape of every tensor that can be known.

    Raises:
        UsageError: the operators contradict the shapes that go into them.
    """
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:
        line = " ".join(str(error).split())
        raise UsageError(f"the model's shapes do not fit together: {line}") from None


def known_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Static shapes by tensor name; a tensor with a dynamic dimension is left out."""
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = _dims(value) if value.type.tensor_type.HasField("shape") else [""]
        sizes = tuple(size for size in dims if isinstance(size, int))
        if len(sizes) == len(dims):
            shapes[value.name] = sizes
    return shapes


def why_dynamic(graph: onnx.GraphProto) -> str:
    """Names of operators whose outputs are as long as the data has it, or ""."""
    found = sorted({node.op_type for node in graph.node} & _DATA_DEPENDENT)
    return f" ({', '.join(found)})" if found else ""


def tensor_specs(
    values: Iterable[onnx.ValueInfoProto], what: str, reason: str = ""
) -> tuple[TensorSpec, ...]:
    """Names, shapes and dtypes of inputs or outputs (``what`` says which).

    ``reason`` follows "it depends on the data" in the error.

    Raises:
        UsageError: one of them has no static shape.
    """
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        dims = _dims(value) if tensor.HasField("shape") else ["?"]
        sizes = tuple(size for size in dims if isinstance(size, int))
        if len(sizes) != len(dims):
            raise UsageError(
                f"the shape of {what} {value.name!r} cannot be fixed (found {_text(dims)}): it "
                f"depends on the data{reason}; export the model without its post-processing"
            )
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        specs.append(TensorSpec(value.name, sizes, str(dtype)))
    return tuple(specs)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    # Exporters write a dynamic dimension as a name, as -1, as 0 or as nothing at all.
    return [
        dim.dim_value if dim.dim_value > 0 else (dim.dim_param or "?")
        for dim in value.type.tensor_type.shape.dim
    ]


def _fixed(
    name: str, dims: list[int | str] | None, shape: tuple[int, ...] | None, batch: int | None
) -> tuple[int, ...]:
    found = "of unknown shape" if dims is None else f"of shape {_text(dims)}"
    if shape is None:
        if dims is None:
            raise UsageError(f"input {name!r} is {found}: pass --shape, e.g. --shape 1,3,224,224")
        wanted: list[int | str] = list(dims)
        if wanted and isinstance(wanted[0], str):
            wanted[0] = 1 if batch is None else batch
        if any(isinstance(size, str) for size in wanted):
            raise UsageError(
                f"input {name!r} is {found}, which leaves more than the batch open: pass --shape "
                f"with {len(dims)} numbers, e.g. --shape "
                + ",".join(str(s) if isinstance(s, int) else "224" for s in wanted)
            )
    else:
        wanted = list(shape)
    sizes = tuple(size for size in wanted if isinstance(size, int))
    if any(size < 1 for size in sizes):
        raise UsageError(f"{_text(wanted)} is no shape for input {name!r}: all must be 1 or more")
    if dims is not None:
        fits = len(dims) == len(sizes) and all(
            isinstance(old, str) or old == new for old, new in zip(dims, sizes, strict=True)
        )
        if not fits:
            raise UsageError(
                f"--shape {','.join(map(str, sizes))} does not fit input {name!r}, {found}: "
                "numbers there are fixed by the model"
            )
    if batch is not None and sizes and sizes[0] != batch:
        where = "the model" if shape is None else "--shape"
        raise UsageError(
            f"--batch {batch} contradicts the batch of {sizes[0]} that {where} gives input "
            f"{name!r}: "
            + ("export it with a dynamic batch" if shape is None else "leave --batch out")
        )
    return sizes


def _text(dims: Iterable[int | str]) -> str:
    return "[" + ", ".join(map(str, dims)) + "]"
