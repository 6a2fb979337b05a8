"""Read an ONNX file, and refuse in one line whatever is not one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from mobilenet_tvm.build.manifest import sha256_bytes
from mobilenet_tvm.errors import UsageError

# Two elements a byte.
_PACKED = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)


@dataclass(frozen=True)
class Model:
    """An ONNX model as it was read: never changed afterwards.

    ``digest`` is ``sha256:<hex>`` of the file's bytes, or of the serialised proto of a model
    that was made in memory (``path`` is None then). External data is loaded into ``proto``.
    """

    proto: onnx.ModelProto = field(repr=False)
    digest: str
    name: str
    path: Path | None = None


def read(path: Path) -> Model:
    """Read an ONNX file and the external data beside it.

    Raises:
        UsageError: there is no such file, it is no ONNX model, it is cut short, or a file of
            its external data is missing.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the .onnx file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    if not data:
        raise UsageError(f"{path} is empty: export or download it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, whose package has no types
        raise UsageError(
            f"{path} is no ONNX model, or is cut short: export or download it again"
        ) from None
    _check(proto, str(path))
    _load_external_data(proto, path)
    return Model(proto, sha256_bytes(data), path.stem, path)


def from_proto(proto: onnx.ModelProto, name: str) -> Model:
    """A model made in memory, by the zoo for instance.

    Raises:
        UsageError: it is no complete model.
    """
    _check(proto, name)
    return Model(proto, sha256_bytes(proto.SerializeToString()), name)


def opset(proto: onnx.ModelProto) -> int:
    """Version of the default operator set, 0 when the model names none."""
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    return max(versions, default=0)


def _check(proto: onnx.ModelProto, source: str) -> None:
    # Protobuf reads many foreign files without complaint and keeps what it does not know
    # aside, and a file cut between two fields too: what a model must have tells them apart.
    if not proto.graph.node and not proto.opset_import:
        raise UsageError(f"{source} is no ONNX model: convert it to ONNX first")
    missing = [
        what
        for what, there in (
            ("IR version", proto.ir_version),
            ("operator set", opset(proto)),
            ("nodes", proto.graph.node),
            ("outputs", proto.graph.output),
        )
        if not there
    ]
    if missing:
        raise UsageError(f"{source} is damaged, it has no {missing[0]}: export it again")
    known = {""}
    known.update(i.name for i in proto.graph.input)
    known.update(t.name for t in proto.graph.initializer)
    known.update(t.values.name for t in proto.graph.sparse_initializer)
    known.update(name for node in proto.graph.node for name in node.output)
    wanted = [(node.name or node.op_type, name) for node in proto.graph.node for name in node.input]
    wanted += [("the model's output", o.name) for o in proto.graph.output]
    for reader, name in wanted:
        if name not in known:
            raise UsageError(
                f"{source} is damaged, nothing makes {name!r} that {reader} reads: export it again"
            )


def _load_external_data(proto: onnx.ModelProto, path: Path) -> None:
    # The default machinery's message runs over several lines; look for the files ourselves.
    for tensor in proto.graph.initializer:
        if not uses_external_data(tensor):
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if not (path.parent / location).is_file():
            raise UsageError(
                f"{path} keeps its weights in {location!r}, which is not beside it: "
                "copy that file to the same folder"
            )
    try:
        load_external_data_for_model(proto, str(path.parent))
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the external data of {path} cannot be read: {line}") from None
    for tensor in proto.graph.initializer:
        # A short file is read without complaint.
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        short = len(tensor.raw_data) < math.prod(tensor.dims) * item
        if tensor.HasField("raw_data") and short and tensor.data_type not in _PACKED:
            raise UsageError(
                f"{path} is damaged, or the file of its external data is: the weight "
                f"{tensor.name!r} is cut short; copy both again"
            )
