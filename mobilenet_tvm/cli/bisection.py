"""``check --bisect``: the first wrong layer, told and written out to be run alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilenet_tvm import cuda
from mobilenet_tvm.build.manifest import Manifest, read_manifest
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.parity import ParityResult
from mobilenet_tvm.parity.bisect import Bisection, LayerCheck, bisect, write_reproducer
from mobilenet_tvm.parity.inputs import photo_feed, photo_names
from mobilenet_tvm.parity.kinds import Feed, plan
from mobilenet_tvm.parity.npz import read_npz

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import BoardSession

# Layers that the table of a sound artifact shows.
_SHOWN: Final = 8


def bisect_result(
    result: ParityResult,
    artifact: Path,
    feed_of: Callable[[Manifest, str], Feed],
    out: Output,
    *,
    onnx: Path | None,
    tolerance: float | None,
    folder: Path,
    session: BoardSession | None = None,
) -> dict[str, Any]:
    """Bisect on the input that the artifact is furthest off on, print what comes of it.

    Args:
        result: of the parity check.
        artifact: the ``.so``.
        feed_of: makes an input again, by its name in the result.
        onnx: the model's file, where it is not found by itself.
        tolerance: as the check was asked for.
        folder: for the reproducer.
        session: with the board that runs the kernels; None is this machine.

    Returns:
        The bisection for ``--json``.
    """
    name = _worst_input(result)
    out.line(f"bisecting {artifact} on {name}, kernel by kernel")
    manifest = read_manifest(artifact)
    with out.working("running each kernel and its ONNX nodes"):
        found = bisect(
            artifact,
            feed_of(manifest, name),
            onnx=onnx,
            reference=result.decided_by,
            tolerance=tolerance,
            session=session,
        )
    payload = {"input": name, **found.as_dict(), "reproducer": None}
    if found.culprit is None:
        out.console.print(_table(found.worst[:_SHOWN]))
        out.line(f"bisect    {found.summary()}")
        return payload
    _print_culprit(found, out)
    try:
        command = _reproduce(found, manifest, folder, _asked(result, tolerance))
    except DeviceError as error:
        out.warn(f"the layer is not written out: {error} (--bisect-output names another folder)")
        return payload
    out.line(f"alone     {command}")
    return {**payload, "reproducer": {"folder": str(folder), "command": command}}


def _asked(result: ParityResult, tolerance: float | None) -> list[str]:
    """The options that the layer alone must be judged by, too."""
    asked = [] if tolerance is None else ["--rtol", f"{tolerance:g}"]
    if result.decided_by != "onnxruntime":
        asked += ["--reference", result.decided_by]
    return asked


def feed_again(
    *,
    kinds: Sequence[str],
    inputs: int | None,
    seed: int,
    npz: Sequence[Path],
    images: Sequence[Path],
) -> Callable[[Manifest, str], Feed]:
    """A function that makes one input of a check again, by its name in the result."""

    def make(manifest: Manifest, name: str) -> Feed:
        for one in plan(kinds, inputs):
            if one.name == name:
                return one.feed(manifest.inputs, seed)
        files = dict(zip(photo_names(npz), npz, strict=True))
        if name in files:
            return read_npz(files[name], manifest.inputs)
        photos = dict(zip(photo_names(images), images, strict=True))
        if name in photos:
            return photo_feed(photos[name], manifest)
        raise UsageError(f"no input is called {name}: check it again")

    return make


def _worst_input(result: ParityResult) -> str:
    """The failing input with the largest error; of a sound artifact just that."""
    failing = [case for case in result.cases if not case]
    if result.folder is not None and result.folder.worst is not None and not result.folder.worst:
        failing.append(result.folder.worst)
    if failing:
        return max(failing, key=lambda case: case.comparison.would_pass_at).name
    if result.worst is None:
        raise UsageError("there is no input to bisect on: ask for random inputs or give photos")
    return result.worst[0].name


def _print_culprit(found: Bisection, out: Output) -> None:
    one = found.culprit
    assert one is not None
    place = found.layers.index(one) + 1
    out.line(f"wrong     {one.title} (layer {place} of {len(found.layers)}), tensor {one.tensor}")
    out.line(
        f"error     before it {one.before:.1e} of scale, after it {one.after:.1e}, its own "
        f"{one.own:.1e} (tolerance {one.tolerance:.1e}, {found.reference})"
    )
    for fact in found.where:
        out.line(f"where     {fact}")
    if one.poisoned:
        out.line(
            "where     its result depends on what lay in its buffer before: some of it is never "
            "written, or read before it is"
        )
    out.line(f"kernel    {', '.join(one.kernels)}")
    out.line(f"schedule  {_schedule(one)}")
    for line in found.records:
        out.line(f"record    {line}")


def _schedule(one: LayerCheck) -> str:
    info = one.info
    if info.searcher is None:
        return f"of no known task ({info.task})" if info.task else "TVM's own: nothing to tune"
    tuned = f"{len(info.records)} record{'s' if len(info.records) > 1 else ''}"
    whose = " ".join(filter(None, (info.searcher, info.template)))
    return f"{whose} for {info.task}: {tuned if info.records else 'the untuned default'}"


def _reproduce(found: Bisection, manifest: Manifest, folder: Path, asked: Sequence[str]) -> str:
    """Write the culprit on its own; the command that checks it, by the options ``asked`` too."""
    model, inputs, *logs = write_reproducer(folder, found)
    command = ["python", "-m", "mobilenet_tvm.check", "--onnx", str(model), "--npz", str(inputs)]
    command += ["--inputs", "0", "--target", manifest.target.preset]
    if manifest.target.cuda_arch is not None and cuda.emulated():
        command += ["--device", "emulated"]
    if logs:
        command += ["--logs", *map(str, logs)]
    return shlex.join([*command, *asked])


def _table(layers: Sequence[LayerCheck]) -> Table:
    """The layers that add the most to the error of a sound artifact."""
    view = Table(box=box.SIMPLE)
    view.add_column("layer", overflow="fold")
    for heading in ("before", "after", "its own"):
        view.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        errors = (layer.before, layer.after, layer.own)
        view.add_row(escape(layer.title), *(f"{error:.1e}" for error in errors))
    return view
