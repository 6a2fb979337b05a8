"""The other side of a parity check: the ONNX bytes of an artifact, and who runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import Manifest, sha256_bytes
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.kinds import Feed

Outputs = dict[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Reference:
    """A function from inputs to outputs, by name, that knows who computes it."""

    name: str
    run: Callable[[Feed], Outputs]

    @property
    def short(self) -> str:
        """The name without the version."""
        return self.name.split(maxsplit=1)[0]

    def __call__(self, feed: Feed) -> Outputs:
        """The model's outputs for one set of inputs."""
        return self.run(feed)


def reference_onnx(
    manifest: Manifest, onnx: Path | None = None, *, option: str = "--onnx"
) -> bytes:
    """The ONNX model that an artifact was made from, proven by its digest, as bytes.

    The file ``onnx`` where it is given, else the zoo's model built again, else the file that
    the manifest remembers. External data comes inside the bytes. ``option`` is what a user gives
    ``onnx`` with, as errors name it.

    Raises:
        UsageError: the file is gone, or is not the one the artifact was made from.
    """
    model, name = manifest.model, manifest.name
    if onnx is None and model.zoo is not None:
        from mobilenet_tvm import zoo

        data = zoo.build(**model.zoo).SerializeToString()
        if sha256_bytes(data) != model.digest:
            raise UsageError(
                f"{model.name} as this version builds it is not the model that {name} was made "
                f"from: compile it again, or pass the old file with {option}"
            )
        return bytes(data)

    from mobilenet_tvm import frontend

    if onnx is not None:
        found = frontend.read(onnx)
        complaint = f"{onnx} is not the model that {name} was made from: pass that file"
    elif model.path is not None:
        try:
            found = frontend.read(Path(model.path))
        except UsageError as error:
            raise UsageError(f"the model of {name} is needed (or pass {option}): {error}") from None
        complaint = (
            f"{model.path} changed since {name} was made: pass the old file with {option}, "
            "or compile again"
        )
    else:
        raise UsageError(f"the manifest of {name} does not say where its model is: pass {option}")
    if found.digest != model.digest:
        raise UsageError(complaint)
    return bytes(found.proto.SerializeToString())


def onnxruntime_runner(onnx_bytes: bytes, shapes: Shapes) -> Reference:
    """ONNX Runtime on the CPU: one thread, all its optimisations, quiet.

    ``shapes`` fixes the dynamic dimensions of the inputs.

    Raises:
        UsageError: ONNX Runtime does not load the model; when called, that it does not run it.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(_ORT_FATAL)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ORT_FATAL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    model = with_shapes(onnx_bytes, shapes)
    title = f"onnxruntime {onnxruntime.__version__}"
    session = _call(
        title,
        lambda: onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        ),
    )
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feed) -> Outputs:
        values = _call(title, lambda: session.run(names, feed))
        return dict(zip(names, map(np.asarray, values), strict=True))

    return Reference(title, run)


# ONNX Runtime's severity for fatal errors: others come as exceptions, told in one line.
_ORT_FATAL: Final = 4


def onnx_runner(onnx_bytes: bytes, shapes: Shapes) -> Reference:
    """ONNX's own reference evaluator, in float64: slow, plain, and nothing optimised.

    Outputs come back in the dtypes that the model declares.

    Raises:
        UsageError: the evaluator does not load the model; when called, that it does not run it.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    from mobilenet_tvm.parity.evaluator import OPERATORS, to_float64

    model = with_shapes(onnx_bytes, shapes)
    declared = {
        output.name: onnx.helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
        for output in model.graph.output
    }
    title = f"onnx {onnx.__version__}"
    wide = to_float64(model)
    evaluator = _call(
        title, lambda: ReferenceEvaluator(wide, new_ops=list(OPERATORS), optimized=False)
    )

    def run(feed: Feed) -> Outputs:
        inputs = {
            name: value.astype(np.float64) if value.dtype == np.float32 else value
            for name, value in feed.items()
        }
        values = _call(title, lambda: evaluator.run(list(declared), inputs))
        return {
            name: np.asarray(value).astype(dtype)
            for (name, dtype), value in zip(declared.items(), values, strict=True)
        }

    return Reference(title, run)


RUNNERS: Final[dict[str, Callable[[bytes, Shapes], Reference]]] = {
    "onnxruntime": onnxruntime_runner,
    "onnx": onnx_runner,
}


def _call(title: str, function: Callable[[], Any]) -> Any:
    """``function()``, with whatever the reference raises told in one line."""
    try:
        return function()
    # Both references raise a zoo of exceptions of their own, some straight from C++.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        others = " or ".join(name for name in RUNNERS if not title.startswith(f"{name} "))
        raise UsageError(
            f"the reference {title} does not run this model ({reason}): try the reference {others}"
        ) from None


def with_shapes(onnx_bytes: bytes, shapes: Shapes) -> Any:
    """The ``onnx.ModelProto`` with its inputs' shapes fixed.

    Inner and output shapes that were stored for another batch are left: both references infer
    their own.

    Raises:
        UsageError: the model has another set of inputs.
    """
    import onnx

    model = onnx.load_model_from_string(onnx_bytes)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if {value.name for value in inputs} != set(shapes):
        raise UsageError(
            f"the reference model takes {', '.join(value.name for value in inputs)}, the "
            f"artifact {', '.join(shapes)}: pass the model that it was made from"
        )
    for value in inputs:
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in shapes[value.name]:
            shape.dim.add().dim_value = size
    return model
