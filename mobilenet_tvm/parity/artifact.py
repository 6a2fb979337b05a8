"""Check an artifact on disk and mark its manifest with the result."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from mobilenet_tvm.build.manifest import DeviceInfo, Manifest, read_manifest, write_manifest
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.case import again_of
from mobilenet_tvm.parity.folder import FolderCheck, Progress, compare_folder
from mobilenet_tvm.parity.gate import check, tolerance_of
from mobilenet_tvm.parity.inputs import shapes_of
from mobilenet_tvm.parity.kinds import DEFAULT_KINDS, resolve
from mobilenet_tvm.parity.references import RUNNERS, Reference, reference_onnx
from mobilenet_tvm.parity.result import ParityResult

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import BoardSession

# With more photos than this they are compared on all cores and summed up, not listed.
MANY_PHOTOS: Final = 50


def check_artifact(
    path: Path,
    *,
    reference: str | Sequence[str] = "onnxruntime",
    onnx: Path | None = None,
    inputs: int | None = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
    npz: Sequence[Path] = (),
    images: Sequence[Path] = (),
    agreement: bool | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    tolerance: float | None = None,
    top_k: int = 5,
    seed: int = 0,
    warn: Callable[[str], None] = warnings.warn,
    session: BoardSession | None = None,
    cuda_graph: bool = False,
) -> ParityResult:
    """``check`` the artifact at ``path`` against its ONNX model; the manifest keeps the result.

    ``reference`` is a key of ``RUNNERS``, or several: the first decides, the others tell who
    stands alone. ``onnx`` is the model's file where the manifest's own source cannot be read.
    With ``agreement`` (None: for more than ``MANY_PHOTOS`` photos) the photos are compared by
    ``jobs`` processes, which report to ``progress``, and summed up in ``result.folder``. A
    manifest that cannot be written is told to ``warn``. With ``session`` the artifact runs on that
    board, all photos one after the other, and the references here. ``cuda_graph`` is ``load``'s.

    Raises:
        UsageError: the artifact, its model or an input cannot be used, or the artifact was
            replaced meanwhile.
        DeviceError: a process that compares photos died or hung, or the board was lost.
    """
    from mobilenet_tvm.runtime import load, load_remote
    from mobilenet_tvm.runtime.gpus import device_info

    names = (reference,) if isinstance(reference, str) else tuple(dict.fromkeys(reference))
    for name in names:
        if name not in RUNNERS:
            raise UsageError(f"no reference {name}: take one of {', '.join(RUNNERS)}")
    kinds = resolve(kinds)
    module = load(path, cuda_graph=cuda_graph) if session is None else load_remote(session, path)
    manifest = module.manifest
    data, shapes = reference_onnx(manifest, onnx), shapes_of(manifest)
    first, *others = (RUNNERS[name](data, shapes) for name in names)
    if agreement is None:
        agreement = len(images) > MANY_PHOTOS
    in_gate = () if agreement else images
    options: dict[str, Any] = {"tolerance": tolerance, "top_k": top_k, "seed": seed}
    if agreement and images and inputs == 0 and not npz:
        result = _nothing_yet(manifest, first, others, tolerance)
    else:
        result = check(
            module.run,
            manifest,
            first,
            others=others,
            inputs=inputs,
            kinds=kinds,
            npz=npz,
            images=in_gate,
            again=again_of(module),
            **options,
        )
    if agreement and images:
        what = FolderCheck(
            path.resolve(), names, onnx and onnx.resolve(), tolerance, top_k, cuda_graph
        )
        remote = None if session is None else module
        folder = compare_folder(what, manifest, images, jobs=jobs, progress=progress, module=remote)
        result = dataclasses.replace(
            result, folder=folder, warnings=(*result.warnings, *folder.warnings)
        )
    device = device_info(manifest) if session is None else _device(session)
    result = dataclasses.replace(result, device=device)
    latest = read_manifest(path)
    if latest.so_sha256 != manifest.so_sha256:
        raise UsageError(f"{path} was replaced while it was checked: check it again")
    try:
        write_manifest(path, msgspec.structs.replace(latest, parity=result.info()))
    except OSError as error:
        warn(f"the manifest of {path} does not say so: it cannot be written ({error})")
    return result


def _device(session: BoardSession) -> DeviceInfo:
    return DeviceInfo(session.board, session.cpu_name(), session.timing == "emulated")


def _nothing_yet(
    manifest: Manifest, first: Reference, others: Sequence[Reference], tolerance: float | None
) -> ParityResult:
    """A result that photos are still to be added to."""
    return ParityResult(
        first.name,
        tolerance_of(manifest, tolerance),
        (),
        references=(first.name, *(other.name for other in others)),
        labels=manifest.labels,
    )
