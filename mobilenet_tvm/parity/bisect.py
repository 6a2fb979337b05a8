"""Which layer of an artifact is wrong: the first whose kernel does not compute its ONNX nodes.

The artifact itself is run, kernel by kernel, in the memory that it has when deployed: nothing is
built anew, and no fusion changes. What each kernel leaves is compared with the ONNX tensor that it
stands for (the manifest's ``layers`` say which), and with what the reference makes of the very
inputs that the kernel was given. So an error is told from its consequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import LayerInfo
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.parity.comparison import compare, finite_or_none
from mobilenet_tvm.parity.inputs import shapes_of
from mobilenet_tvm.parity.kinds import Feed
from mobilenet_tvm.parity.references import RUNNERS, reference_onnx
from mobilenet_tvm.parity.taps import Tapped, plain_layout
from mobilenet_tvm.parity.tolerances import tolerance_for
from mobilenet_tvm.parity.where import describe

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import BoardSession

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerCheck:
    """One kernel, or several in a row of which only the last leaves an ONNX tensor.

    Errors are shares of max |reference| of a tensor, as in ``OutputComparison``.

    Attributes:
        kernels: names in TVM's graph; the last one makes ``tensor``.
        info: of the last one, from the manifest.
        tensor: the ONNX tensor.
        nodes: the ONNX nodes computed, ``Conv conv_dw_7``; none where only a layout changes.
        before: the largest error of what it reads.
        after: the error of what it makes.
        own: the error against the reference on the very inputs that it was given: what it adds.
        tolerance: that it may add.
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
    tolerance: float
    poisoned: bool = False

    @property
    def title(self) -> str:
        """For people: the ONNX nodes."""
        return " + ".join(self.nodes) or f"layout change of {self.tensor}"

    @property
    def is_wrong(self) -> bool:
        """Whether it is wrong by itself, and its result is."""
        return self.own > self.tolerance and self.after > self.tolerance


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
        kernels: how many the artifact has. Those that make no tensor of their own that is known
            are compared together with the next one that does.
        reference: who computes the right answers.
    """

    layers: tuple[LayerCheck, ...]
    culprit: LayerCheck | None
    where: tuple[str, ...]
    records: tuple[str, ...]
    reproducer: Reproducer | None
    kernels: int
    reference: str

    @property
    def compared(self) -> int:
        """How many kernels were compared, alone or with others."""
        return len({kernel for layer in self.layers for kernel in layer.kernels})

    @property
    def worst(self) -> tuple[LayerCheck, ...]:
        """The layers by what they add themselves, most first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.own))

    def summary(self) -> str:
        """One line: who is wrong."""
        one = self.culprit
        if one is not None:
            return (
                f"{one.title} is the first layer that is wrong: error {one.before:.1e} before, "
                f"{one.after:.1e} after, {one.own:.1e} of its own (tolerance {one.tolerance:.1e})"
            )
        if not self.layers:
            return "no layer can be compared: nothing of the model is known by name in the artifact"
        what = "every layer"
        if self.compared < self.kernels:
            what = f"all that can be compared ({self.compared} of {self.kernels} kernels)"
        if all(layer.after <= layer.tolerance for layer in self.layers):
            largest = max(layer.after for layer in self.layers)
            return (
                f"{what} agrees with {self.reference}: the largest error is {largest:.1e} of scale"
            )
        most = self.worst[0]
        return (
            f"no layer is wrong by itself: errors add up, {most.title} adds the most "
            f"({most.own:.1e} of scale)"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite error is None."""
        return {
            "summary": self.summary(),
            "reference": self.reference,
            "kernels": self.kernels,
            "compared": self.compared,
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
    session: BoardSession | None = None,
) -> Bisection:
    """Find the first layer of the artifact at ``path`` that is wrong on one set of inputs.

    Args:
        path: the ``.so``, with its manifest.
        feed: an array for every input.
        onnx: the model's file, where the manifest's own source cannot be read.
        reference: a key of ``RUNNERS``.
        tolerance: that a layer may add, as a share of the scale of what it makes; that of the
            tensor's dtype where it is not given.
        session: with the board that runs the kernels; None is this machine.

    Raises:
        UsageError: the artifact or its model cannot be used.
        DeviceError: a kernel raised an error, or the board was lost.
    """
    from mobilenet_tvm.runtime.steps import open_steps

    steps = open_steps(path, session)
    manifest = steps.manifest
    tapped = Tapped(reference_onnx(manifest, onnx), shapes_of(manifest))
    layers = list(manifest.layers)
    if [layer.kernel for layer in layers] != [node.name for node in steps.nodes]:
        raise UsageError(f"the manifest of {path} does not list its kernels: compile it again")
    # What leaves the network is known, whatever was recognised on the way.
    for head, spec in zip(steps.heads, manifest.outputs, strict=True):
        if head is not None:
            layers[head] = msgspec.structs.replace(layers[head], output=spec.name, layout="")
    outputs = [layer.output if tapped.has(layer.output) else None for layer in layers]

    # What a kernel forgets to write is right by luck where the run before left it.
    clean = [_digest(value) for value in steps.run(feed, poison=False)]
    dirty = list(steps.run(feed))
    poisoned = [_digest(value) != before for value, before in zip(dirty, clean, strict=True)]

    names = [name for name in outputs if name is not None]
    whole = RUNNERS[reference](tapped.with_outputs(names), shapes_of(manifest))
    expected = whole(feed)

    actual: dict[int | str, Array] = dict(feed.items())
    errors: dict[int | str, float] = dict.fromkeys(feed, 0.0)
    checks: list[LayerCheck] = []
    culprit: tuple[LayerCheck, Reproducer] | None = None
    for index, (layer, tensor) in enumerate(zip(layers, outputs, strict=True)):
        if tensor is None:
            continue
        sources, inside = _sources(index, steps.nodes, outputs)
        given: dict[str, Array] = {}
        for source in sources:
            name = source if isinstance(source, str) else str(outputs[source])
            given |= tapped.aliases(name, actual[source])
        try:
            result = plain_layout(dirty[index], layer.layout, expected[tensor].shape)
            part, used, titles = tapped.part(given, tensor)
            shapes = {name: value.shape for name, value in used.items()}
            alone = RUNNERS[reference](part, shapes)(used)[tensor]
        except UsageError:
            outputs[index] = None  # it cannot be cut out: it goes with the next one
            continue
        allowed = tolerance
        if allowed is None:
            allowed = tolerance_for([tapped.dtype(tensor)])
        actual[index], errors[index] = result, _error(result, expected[tensor], allowed)
        check = LayerCheck(
            kernels=tuple(layers[kernel].kernel for kernel in sorted(inside)),
            info=layer,
            tensor=tensor,
            nodes=titles,
            before=max((errors[source] for source in sources), default=0.0),
            after=errors[index],
            own=_error(result, alone, allowed),
            tolerance=allowed,
            poisoned=any(poisoned[kernel] for kernel in inside)
            and not any(poisoned[source] for source in sources if isinstance(source, int)),
        )
        checks.append(check)
        if culprit is None and check.is_wrong:
            culprit = check, Reproducer(part, used, alone, result)
    first, found = culprit or (None, None)
    return Bisection(
        layers=tuple(checks),
        culprit=first,
        where=describe(found.actual, found.expected, first.tolerance) if first and found else (),
        records=tuple(manifest.tuning.records[i] for i in (first.info.records if first else ())),
        reproducer=found,
        kernels=len(layers),
        reference=whole.name,
    )


def _digest(value: Array) -> bytes:
    return hashlib.sha256(value.tobytes()).digest()


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
    return {
        "nodes": list(layer.nodes),
        "title": layer.title,
        "tolerance": layer.tolerance,
        "tensor": layer.tensor,
        "kernels": list(layer.kernels),
        "task": layer.info.task,
        "searcher": layer.info.searcher,
        "template": layer.info.template,
        "tuned": bool(layer.info.records),
        "error_before": finite_or_none(layer.before),
        "error_after": finite_or_none(layer.after),
        "own_error": finite_or_none(layer.own),
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
        for searcher in ("autotvm", "ansor"):  # of another layer, from the run before
            (folder / f"layer.{searcher}.jsonl").unlink(missing_ok=True)
        if result.records:
            files.append(folder / f"layer.{culprit.info.searcher}.jsonl")
            files[-1].write_text("".join(f"{line}\n" for line in result.records))
        np.savez(folder / "outputs.npz", actual=found.actual, expected=found.expected)
    except OSError as error:
        raise DeviceError(f"cannot write {folder}: {error.strerror or error}") from None
    return tuple(files)
