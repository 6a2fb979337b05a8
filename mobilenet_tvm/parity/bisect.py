"""Which layer of an artifact is wrong: the first whose kernel does not compute its ONNX nodes.

The artifact itself is run, kernel by kernel, in the memory that it has when deployed: nothing is
built anew, and no fusion changes. What each kernel leaves is compared with the ONNX tensor that it
stands for (the manifest's ``layers`` say which), and with what the reference makes of the very
inputs that the kernel was given. So an error is told from its consequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import LayerInfo
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.parity.comparison import compare
from mobilenet_tvm.parity.inputs import shapes_of
from mobilenet_tvm.parity.kinds import Feed
from mobilenet_tvm.parity.references import RUNNERS, reference_onnx
from mobilenet_tvm.parity.taps import Tapped, plain_layout
from mobilenet_tvm.parity.tolerances import tolerance_for
from mobilenet_tvm.parity.where import describe

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerCheck:
    """One kernel, or several in a row of which only the last leaves an ONNX tensor.

    Errors are shares of max |reference| of a tensor, as in ``OutputComparison``.

    Attributes:
        kernels: names in TVM's graph; the last one makes ``tensor``.
        info: of the last one, from the manifest.
        tensor: the ONNX tensor.
        nodes: the ONNX nodes computed, ``Conv conv_dw_7``.
        before: the largest error of what it reads.
        after: the error of what it makes.
        own: the error against the reference on the very inputs that it was given: what it adds.
        poisoned: whether it leaves other bits in a buffer that was filled with NaN before: it
            does not write all of its result, or reads it before.
    """

    kernels: tuple[str, ...]
    info: LayerInfo
    tensor: str
    nodes: tuple[str, ...]
    before: float
    after: float
    own: float
    poisoned: bool = False


@dataclass(frozen=True)
class Reproducer:
    """A layer on its own: its ONNX nodes as a model, and what its kernel was given and made."""

    onnx: bytes
    inputs: Mapping[str, Array]
    expected: Array
    actual: Array


@dataclass(frozen=True)
class Bisection:
    """Outcome of ``bisect``.

    Attributes:
        layers: all that could be compared, in the order in which they run.
        culprit: the first one that is wrong by itself; None where none is.
        where: what its wrong elements have in common, in words.
        records: the schedule records of its task, TVM's own lines.
        reproducer: of the culprit, or None.
        tolerance: that a layer may add.
        reference: who computes the right answers.
    """

    layers: tuple[LayerCheck, ...]
    culprit: LayerCheck | None
    where: tuple[str, ...]
    records: tuple[str, ...]
    reproducer: Reproducer | None
    tolerance: float
    reference: str

    @property
    def worst(self) -> tuple[LayerCheck, ...]:
        """The layers by what they add themselves, most first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.own))

    def summary(self) -> str:
        """One line: who is wrong."""
        if self.culprit is None:
            if not self.layers:
                return "no layer can be compared: the artifact does not say what its kernels make"
            most = self.worst[0]
            if all(layer.after <= self.tolerance for layer in self.layers):
                return (
                    f"every layer agrees with {self.reference}: the largest error is "
                    f"{max(layer.after for layer in self.layers):.1e} of scale"
                )
            return (
                f"no layer is wrong by itself: errors add up, {most.nodes[-1]} adds the most "
                f"({most.own:.1e} of scale)"
            )
        one = self.culprit
        return (
            f"{' + '.join(one.nodes)} is the first layer that is wrong: error {one.before:.1e} "
            f"before, {one.after:.1e} after, {one.own:.1e} of its own (tolerance "
            f"{self.tolerance:.1e})"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite error is None."""
        return {
            "summary": self.summary(),
            "reference": self.reference,
            "tolerance": self.tolerance,
            "culprit": self.culprit and _layer_as_dict(self.culprit),
            "where": list(self.where),
            "records": list(self.records),
            "layers": [_layer_as_dict(layer) for layer in self.layers],
        }


def bisect(
    path: Path,
    feed: Feed,
    *,
    onnx: Path | None = None,
    reference: str = "onnxruntime",
    tolerance: float | None = None,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Bisection:
    """Find the first layer of the artifact at ``path`` that is wrong on one set of inputs.

    Args:
        path: the ``.so``, with its manifest.
        feed: an array for every input.
        onnx: the model's file, where the manifest's own source cannot be read.
        reference: a key of ``RUNNERS``.
        tolerance: that a layer may add, as a share of the scale of what it makes; that of the
            outputs' dtypes where it is not given.
        step: is told how many layers of how many are done.

    Raises:
        UsageError: the artifact or its model cannot be used.
        DeviceError: a kernel raised an error.
    """
    from mobilenet_tvm.runtime.steps import open_steps

    steps = open_steps(path)
    manifest = steps.manifest
    if tolerance is None:
        tolerance = tolerance_for(spec.dtype for spec in manifest.outputs)
    tapped = Tapped(reference_onnx(manifest, onnx), shapes_of(manifest))
    layers = manifest.layers
    if len(layers) != len(steps.nodes) or any(
        layer.kernel != node.name for layer, node in zip(layers, steps.nodes, strict=False)
    ):
        raise UsageError(f"the manifest of {path} does not list its kernels: compile it again")
    outputs = [layer.output if tapped.has(layer.output) else None for layer in layers]

    # What a kernel forgets to write is right by luck where the run before left it.
    plain = list(steps.run(feed, poison=False))
    dirty = list(steps.run(feed))
    poisoned = [a.tobytes() != b.tobytes() for a, b in zip(plain, dirty, strict=True)]

    names = [name for name in outputs if name is not None]
    whole = RUNNERS[reference](tapped.with_outputs(names), shapes_of(manifest))
    expected = whole(feed)

    actual: dict[int | str, Array] = dict(feed.items())
    errors: dict[int | str, float] = dict.fromkeys(feed, 0.0)
    checks: list[LayerCheck] = []
    culprit: LayerCheck | None = None
    found: Reproducer | None = None
    where: tuple[str, ...] = ()
    for index, (layer, tensor) in enumerate(zip(layers, outputs, strict=True)):
        step(index, len(layers))
        if tensor is None:
            continue
        actual[index] = plain_layout(dirty[index], layer.layout, expected[tensor].shape)
        errors[index] = _error(actual[index], expected[tensor], tolerance)
        sources, inside = _sources(index, steps.nodes, outputs)
        given = {
            source if isinstance(source, str) else str(outputs[source]): actual[source]
            for source in sources
        }
        part = tapped.part({name: value.shape for name, value in given.items()}, tensor)
        shapes = {name: value.shape for name, value in given.items()}
        alone = RUNNERS[reference](part, shapes)(given)[tensor]
        check = LayerCheck(
            kernels=tuple(layers[kernel].kernel for kernel in sorted(inside)),
            info=layer,
            tensor=tensor,
            nodes=tapped.nodes(given, tensor),
            before=max((errors[source] for source in sources), default=0.0),
            after=errors[index],
            own=_error(actual[index], alone, tolerance),
            poisoned=any(poisoned[kernel] for kernel in inside)
            and not any(poisoned[source] for source in sources if isinstance(source, int)),
        )
        checks.append(check)
        if culprit is None and check.own > tolerance and check.after > tolerance:
            culprit = check
            found = Reproducer(part, given, alone, actual[index])
            where = describe(actual[index], alone, tolerance)
    records = culprit.info.records if culprit else ()
    return Bisection(
        layers=tuple(checks),
        culprit=culprit,
        where=where,
        records=tuple(manifest.tuning.records[index] for index in records),
        reproducer=found,
        tolerance=tolerance,
        reference=whole.name,
    )


def _sources(
    index: int, nodes: Any, outputs: list[str | None]
) -> tuple[tuple[int | str, ...], set[int]]:
    """The nearest kernels (or inputs) before one that leave an ONNX tensor, and what is between."""
    sources: dict[int | str, None] = {}
    inside, waiting = {index}, [index]
    while waiting:
        for source in nodes[waiting.pop()].inputs:
            if isinstance(source, str) or outputs[source] is not None:
                sources[source] = None
            elif source not in inside:
                inside.add(source)
                waiting.append(source)
    return tuple(sources), inside


def _error(actual: Array, reference: Array, tolerance: float) -> float:
    """Max |error| of scale; infinite where a NaN or an infinity is the actual side's alone."""
    comparison = compare({"": actual.astype(reference.dtype)}, {"": reference}, tolerance)
    return comparison.would_pass_at


def _layer_as_dict(layer: LayerCheck) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "nodes": list(layer.nodes),
        "tensor": layer.tensor,
        "kernels": list(layer.kernels),
        "task": layer.info.task,
        "searcher": layer.info.searcher,
        "template": layer.info.template,
        "tuned": bool(layer.info.records),
        "error_before": number(layer.before),
        "error_after": number(layer.after),
        "own_error": number(layer.own),
        "poisoned": layer.poisoned,
    }


def write_reproducer(folder: Path, result: Bisection) -> tuple[Path, ...]:
    """Write the culprit on its own into ``folder``: ``layer.onnx``, ``inputs.npz``, its records.

    ``layer.<searcher>.jsonl`` holds the records of its task, ``outputs.npz`` what the artifact
    made (``actual``) and what the reference makes (``expected``) of those inputs.

    Returns:
        The files, the model first, then the inputs, then the log if there is one.

    Raises:
        UsageError: nothing is wrong.
        DeviceError: the folder cannot be written.
    """
    found, culprit = result.reproducer, result.culprit
    if found is None or culprit is None:
        raise UsageError("no layer is wrong: there is nothing to reproduce")
    files = [folder / "layer.onnx", folder / "inputs.npz"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files[0].write_bytes(found.onnx)
        np.savez(files[1], **found.inputs)  # type: ignore[arg-type]  # not allow_pickle
        for old in folder.glob("layer.*.jsonl"):  # of another layer, from the run before
            old.unlink()
        if result.records:
            files.append(folder / f"layer.{culprit.info.searcher}.jsonl")
            files[-1].write_text("".join(f"{line}\n" for line in result.records))
        np.savez(folder / "outputs.npz", actual=found.actual, expected=found.expected)
    except OSError as error:
        raise DeviceError(f"cannot write {folder}: {error.strerror or error}") from None
    return tuple(files)
