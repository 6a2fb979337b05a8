"""What an artifact would be without its records: the model compiled again, by whose defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mobilenet_tvm import frontend, targets
from mobilenet_tvm.build.compile import compile_model
from mobilenet_tvm.build.manifest import Manifest
from mobilenet_tvm.records.tasks import Schedules

# In the order in which tables show them.
LABELS: dict[Schedules, str] = {
    "stock": "untuned (TVM's schedules)",
    "ours": "untuned (our schedules)",
}


def build_untuned(
    manifest: Manifest,
    onnx: Path,
    folder: Path,
    on_build: Callable[[str], None] | None = None,
) -> list[tuple[str, Path]]:
    """Labels and ``.so`` files of the untuned builds of an artifact's model, for its preset.

    Args:
        manifest: the artifact's.
        onnx: the model's file.
        folder: where the builds go.
        on_build: called with the label of each before it is built.

    Raises:
        UsageError: the model cannot be used.
        DeviceError: it cannot be built.
    """
    info = manifest.model
    model = frontend.to_relay(
        frontend.clean(frontend.read(onnx), shape=info.shape, batch=info.batch)
    )
    preset = targets.resolve(manifest.target.preset)
    built = []
    for schedules, label in LABELS.items():
        if on_build is not None:
            on_build(label)
        path = folder / f"{schedules}.so"
        compile_model(model, preset, path, info=info, schedules=schedules)
        built.append((label, path))
    return built
