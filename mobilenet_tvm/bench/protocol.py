"""What the parent and its workers say to each other: one JSON object a line."""

from __future__ import annotations

from typing import Literal

import msgspec

# "layers" is an artifact whose kernels can be timed one by one. Those from ``cuda-artifact`` on
# run on this machine's GPU (``gpu_runners``).
ContenderKind = Literal[
    "artifact",
    "onnxruntime",
    "layers",
    "openvino",
    "openvino-default",
    "litert",
    "ncnn",
    "ncnn-default",
    "mnn",
    "cpu-torch",
    "cpu-torch-compiled",
    "cuda-artifact",
    "cuda-artifact-graph",
    "cuda-onnxruntime",
    "cuda-onnxruntime-graph",
    "tensorrt",
    "tensorrt-graph",
    "tensorrt-tf32",
    "torch",
    "torch-compiled",
]


class InputSpec(msgspec.Struct, frozen=True):
    """One input of a model; a dimension that the model leaves open is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Array(msgspec.Struct, frozen=True):
    """An array's bytes in C order (base64 on the wire)."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load a model; answered by ``Loaded``."""

    kind: ContenderKind
    path: str
    threads: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The model's inputs, in the model's order."""

    inputs: tuple[InputSpec, ...]


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Make seeded random inputs of these shapes, run them once; answered by ``Prepared``."""

    shapes: tuple[tuple[int, ...], ...]
    seed: int


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The outputs for those inputs, in the model's order, and a first idea of the latency:
    ``round_trip_ms`` with copies from and to this machine's memory, None where it is all there."""

    outputs: tuple[Array, ...]
    inference_ms: float
    round_trip_ms: float | None = None


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Run ``warmup`` inferences, then ``inferences`` timed ones; answered by ``Measured``.

    With ``copies`` each begins with its input in this machine's memory and ends with its output
    there; only what runs on a GPU makes a difference."""

    inferences: int
    warmup: int
    copies: bool = False


class Measured(msgspec.Struct, frozen=True, tag=True):
    """The latency of every timed inference."""

    times_ms: tuple[float, ...]


class Walk(msgspec.Struct, frozen=True, tag=True):
    """Run ``warmup`` inferences, then ``inferences`` timed ones, both ways: as the executor does,
    and kernel by kernel, which comes first with ``kernels_first``, or this alone with
    ``kernels_only``. Answered by ``Walked``."""

    inferences: int
    warmup: int
    kernels_first: bool = False
    kernels_only: bool = False


class Walked(msgspec.Struct, frozen=True, tag=True):
    """Microseconds: ``kernels_us`` is ``[inferences, kernels]``, ``inference_us``
    ``[inferences]`` (none with ``kernels_only``), ``launch_us`` of threads that do nothing, None
    where that is not known."""

    kernels_us: Array
    inference_us: Array
    launch_us: float | None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The request failed; ``usage`` when the user can mend it (a damaged artifact, say)."""

    message: str
    usage: bool


Request = Load | Prepare | Measure | Walk
Reply = Loaded | Prepared | Measured | Walked | Failed
