"""Records + Relay -> one self-contained ``.so`` and its manifest."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.build.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModelInfo,
    Preprocessing,
    TargetInfo,
    ToolchainInfo,
    TuningInfo,
    sha256_bytes,
    sha256_file,
    write_manifest,
)
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.records import Record, Task
from mobilenet_tvm.records.log import log_digest_text
from mobilenet_tvm.targets import Preset


@dataclass(frozen=True)
class Coverage:
    """How many of a model's tasks have a measured record."""

    tuned: int
    tasks: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.tuned} of {self.tasks} tasks tuned"

    def __bool__(self) -> bool:
        return self.tuned == self.tasks


def coverage(tasks: Sequence[Task], best: dict[str, Record]) -> Coverage:
    """Count the tasks that ``best`` has a record for."""
    missing = tuple(task.label for task in tasks if task.key not in best)
    return Coverage(len(tasks) - len(missing), len(tasks), missing)


def compile_model(
    model: RelayModel,
    preset: Preset,
    path: Path,
    *,
    info: ModelInfo,
    tasks: Sequence[Task] = (),
    best: dict[str, Record] | None = None,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    schedules: str = "ours",
) -> Manifest:
    """Compile a model with the best records and write ``path`` and its manifest.

    Args:
        model: as ``frontend.to_relay`` made it.
        preset: what to compile for.
        path: the ``.so`` to write.
        info: where the model came from.
        tasks: the model's tasks, for the coverage and to leave foreign records out.
        best: the best record of each task, by key; none compiles the untuned defaults.
        preprocessing: how a photo becomes the input, if it is known.
        labels: of the classes, if they are known.
        schedules: ``ours`` or ``stock``.

    Returns:
        The manifest as written.

    Raises:
        DeviceError: the linker failed or the folder cannot be written.
    """
    toolchain.activate()
    import tvm
    from tvm import autotvm, relay
    from tvm.autotvm.record import decode

    import mobilenet_tvm.schedules

    best = best or {}
    used = [best[task.key] for task in tasks if task.key in best]
    mobilenet_tvm.schedules.use(schedules)
    context = autotvm.task.ApplyHistoryBest([decode(record.line, "json") for record in used])
    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        with context, tvm.transform.PassContext(opt_level=3, config=toolchain.pass_config()):
            library = relay.build(
                model.module, target=preset.target, params=model.params, mod_name="default"
            )
    finally:
        autotvm.GLOBAL_SCOPE.silent = silent
        mobilenet_tvm.schedules.use("ours")
    link(library, path, preset)

    covered = coverage(tasks, best)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=path.name.removesuffix(".so"),
        model=info,
        inputs=model.inputs,
        outputs=model.outputs,
        target=TargetInfo(preset.name, preset.target, preset.arch, preset.cpu_features),
        toolchain=ToolchainInfo(
            mobilenet_tvm.__version__, tvm.__version__, toolchain.llvm_version()
        ),
        tuning=TuningInfo(
            tasks=covered.tasks,
            tuned=covered.tuned,
            log_digest=sha256_bytes(log_digest_text(used)) if used else None,
            searchers=("autotvm",) if used else (),
        ),
        so_sha256=sha256_file(path),
        preprocessing=preprocessing,
        labels=tuple(labels) if labels else None,
    )
    try:
        write_manifest(path, manifest)
    except OSError as error:
        raise DeviceError(f"cannot write the manifest of {path}: {error.strerror}") from None
    return manifest


def link(library: Any, path: Path, preset: Preset) -> None:
    """Link a Relay factory module into a shared library, with no compiler on the machine.

    Raises:
        DeviceError: the linker failed or the folder cannot be written.
    """

    def with_zig(output: str, objects: list[str], options: list[str] | None = None) -> None:
        toolchain.zig(*preset.linker, "-o", output, *objects, *(options or []))

    # TVM asks the output's file for its format before it links.
    with_zig.output_format = "so"  # type: ignore[attr-defined]
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp.so")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        library.export_library(str(temporary), fcompile=with_zig)
        temporary.replace(path)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines() or [str(error)]
        raise DeviceError(f"linking {path.name} failed: {reason[-1]}") from None
    except ModuleNotFoundError as error:  # ziglang
        raise DeviceError(f"linking {path.name} failed: {error}") from None
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # where nothing could be written, nothing is left
            temporary.unlink()
