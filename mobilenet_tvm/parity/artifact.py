"""Check an artifact on disk and mark its manifest with the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from mobilenet_tvm.build.manifest import read_manifest, write_manifest
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.gate import ParityResult, check
from mobilenet_tvm.parity.inputs import shapes_of
from mobilenet_tvm.parity.references import RUNNERS, reference_onnx


def check_artifact(
    path: Path,
    *,
    reference: str = "onnxruntime",
    onnx: Path | None = None,
    inputs: int = 5,
    images: Sequence[Path] = (),
    tolerance: float | None = None,
    top_k: int = 5,
    seed: int = 0,
    warn: Callable[[str], None] = warnings.warn,
) -> ParityResult:
    """``check`` the artifact at ``path`` against its ONNX model; the manifest keeps the result.

    ``reference`` is a key of ``RUNNERS``; ``onnx`` is the model's file where the manifest's own
    source cannot be read. A manifest that cannot be written is told to ``warn``.

    Raises:
        UsageError: the artifact, its model or a photo cannot be used.
    """
    from mobilenet_tvm.runtime import load

    if reference not in RUNNERS:
        raise UsageError(f"no reference {reference}: take one of {', '.join(RUNNERS)}")
    module = load(path)
    manifest = module.manifest
    runner = RUNNERS[reference](reference_onnx(manifest, onnx), shapes_of(manifest))
    result = check(
        module.run,
        manifest,
        runner,
        inputs=inputs,
        images=images,
        tolerance=tolerance,
        top_k=top_k,
        seed=seed,
    )
    try:
        write_manifest(path, msgspec.structs.replace(read_manifest(path), parity=result.info()))
    except OSError as error:
        warn(f"the manifest of {path} does not say so: it cannot be written ({error})")
    return result
