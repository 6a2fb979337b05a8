"""What the parent and its workers say to each other: one JSON object a line."""

from __future__ import annotations

from typing import Literal

import msgspec

ContenderKind = Literal["artifact", "onnxruntime"]


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
    """The outputs for those inputs, in the model's order, and a first idea of the latency."""

    outputs: tuple[Array, ...]
    inference_ms: float


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Run ``warmup`` inferences, then ``inferences`` timed ones; answered by ``Measured``."""

    inferences: int
    warmup: int


class Measured(msgspec.Struct, frozen=True, tag=True):
    """The latency of every timed inference."""

    times_ms: tuple[float, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The request failed; ``usage`` when the user can mend it (a damaged artifact, say)."""

    message: str
    usage: bool


Request = Load | Prepare | Measure
Reply = Loaded | Prepared | Measured | Failed
