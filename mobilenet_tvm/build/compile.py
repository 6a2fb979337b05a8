"""Records + Relay -> one self-contained ``.so``, or a static C library, and its manifest."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilenet_tvm import cuda, toolchain
from mobilenet_tvm.build.aot import lower
from mobilenet_tvm.build.cuda_kernels import only_image, write_kernels
from mobilenet_tvm.build.dispatch import AnsorRecords, UnusablePlanError, autotvm_records
from mobilenet_tvm.build.folding import optimized
from mobilenet_tvm.build.layers import FusedModule, kernel_names, layer_infos, safe_kernels_of
from mobilenet_tvm.build.layouts import mixed
from mobilenet_tvm.build.link import link
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
from mobilenet_tvm.build.plans import Plan, plan_tasks
from mobilenet_tvm.build.static import write_library
from mobilenet_tvm.cuda import codegen
from mobilenet_tvm.errors import DeviceError, carries_interrupt, last_line
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.records import Record, Task
from mobilenet_tvm.records.log import log_digest_text
from mobilenet_tvm.records.tasks import Schedules
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
    transferred: Collection[str] = (),
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    schedules: Schedules = "ours",
    plan: Plan | None = None,
    linker: Sequence[str] | None = None,
    c_prefix: str | None = None,
) -> Manifest:
    """Compile a model with the best records and write ``path`` and its manifest.

    For a GPU the CUDA C of its kernels is written beside them, ``<name>.cu``.

    Args:
        model: as ``frontend.to_relay`` made it.
        preset: what to compile for.
        path: the ``.so`` to write.
        info: where the model came from.
        tasks: the model's tasks, for the coverage and to leave foreign records out; for a
            plan with Ansor's layers also its.
        best: the best record of each task, by key; none compiles the untuned defaults.
        transferred: keys of those that the nearest shape lent (``records.serving``): they are
            built with, and are not counted as tuned.
        preprocessing: how a photo becomes the input, if it is known.
        labels: of the classes, if they are known.
        schedules: ``ours`` or ``stock``.
        plan: which convolutions are Ansor's (``build.plans``); none are by default.
        linker: a command to link with in place of the preset's (``build.link``).
        c_prefix: write a static C library with its header (``build.static``) in place of a
            ``.so``: an identifier that all its names begin with.

    Returns:
        The manifest as written.

    Raises:
        UnusablePlanError: a layer that is Ansor's has no record that fits, or TVM cannot apply it.
        DeviceError: the linker failed, what it made would not load on the target, the folder
            cannot be written, or for a GPU there is no compiler.
    """
    toolchain.activate()
    if preset.gpu is not None:
        cuda.activate()
    import tvm
    from tvm import autotvm, relay

    import mobilenet_tvm.schedules

    target = preset.tvm_target()
    best = best or {}
    ansor = bool(plan is not None and plan.positions)
    planned = plan_tasks(model.module, tasks, plan)
    given = [best[task.key] for task in planned if task.key in best]
    config = mobilenet_tvm.schedules.pass_config(toolchain.pass_config())
    if ansor:
        config = {**config, "relay.backend.use_auto_scheduler": True}
        # Pooling and the like may have records too.
        given += [
            best[task.key]
            for task in tasks
            if task.searcher == "ansor" and task.key in best and task not in planned
        ]
    missed: list[str] = []
    fused = FusedModule()
    used: set[str] = set()
    mobilenet_tvm.schedules.use(schedules)
    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        module = mixed(model.module, plan.positions) if plan is not None and ansor else model.module
        autotvm_context = autotvm_records((r for r in given if r.searcher == "autotvm"), used)
        ansor_context = AnsorRecords((r for r in given if r.searcher == "ansor"), missed)
        off = list(toolchain.DISABLED_PASSES)
        with autotvm_context, ansor_context, codegen.collecting() as compiled:
            with tvm.transform.PassContext(opt_level=3, config=config, disabled_pass=off):
                module, done = optimized(module, target, model.params)
            with tvm.transform.PassContext(
                opt_level=3,
                config=config,
                disabled_pass=[*off, *done],
                instruments=[fused.instrument],
            ):
                if c_prefix is None:
                    library = relay.build(module, target=target, mod_name="default")
                else:
                    lowered = lower(module, preset.target, c_prefix)
    except Exception as error:
        reason = missed or [last_line(error)]
        # No plan is to blame for a Ctrl-C.
        blamed = isinstance(error, tvm.TVMError) and not carries_interrupt(error)
        if plan is None or not (missed or (ansor and blamed)):
            raise
        raise UnusablePlanError(f"plan {plan.name} cannot be built: {reason[0]}") from error
    finally:
        autotvm.GLOBAL_SCOPE.silent = silent
        mobilenet_tvm.schedules.use("ours")
    used |= ansor_context.used
    applied = [record for record in given if record.key in used]
    lent = tuple(index for index, record in enumerate(applied) if record.key in transferred)
    c_library = kernels = None
    if c_prefix is None:
        image = only_image(library, compiled)
        link(library, path, preset, linker=linker)
        kernels = None if image is None else write_kernels(path, preset, image)
        graph = library.get_graph_json()
        names, transforms = kernel_names(graph), layout_transforms(graph)
    else:
        c_library = write_library(
            lowered,
            path,
            preset,
            c_prefix,
            model=info.name,
            inputs=model.inputs,
            outputs=model.outputs,
            preprocessing=preprocessing,
        )
        names = tuple(call.symbol for call in lowered.calls)
        transforms = sum("layout_transform" in name for name in names)

    # A layer that misses Ansor's record ends the build; but one label may stand for several of
    # its tasks, of which a plan needs one.
    counted = (r for r in given if r.searcher == "ansor" or r.key in used)
    covered = coverage(planned, {r.key: r for r in counted if r.key not in transferred})
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=path.name.removesuffix(path.suffix),
        model=info,
        inputs=model.inputs,
        outputs=model.outputs,
        target=TargetInfo(
            preset.name,
            preset.target,
            preset.arch,
            preset.cpu_features,
            None if preset.gpu is None else preset.gpu.arch,
        ),
        toolchain=ToolchainInfo(
            mobilenet_tvm.__version__, tvm.__version__, toolchain.llvm_version()
        ),
        tuning=TuningInfo(
            tasks=covered.tasks,
            tuned=covered.tuned,
            log_digest=sha256_bytes(log_digest_text(applied)) if applied else None,
            searchers=tuple(sorted({record.searcher for record in applied})),
            layout_transforms=transforms,
            records=tuple(record.line for record in applied),
            transferred=lent,
            schedules=schedules,
        ),
        so_sha256=sha256_file(path),
        preprocessing=preprocessing,
        labels=tuple(labels) if labels else None,
        layers=layer_infos(
            safe_kernels_of(model.module, fused.module, reshapes=c_prefix is None),
            names,
            plan=plan,
            tasks=planned,
            used=applied,
            transferred=lent,
        ),
        c_library=c_library,
        cuda=kernels,
    )
    try:
        write_manifest(path, manifest)
    except OSError as error:
        raise DeviceError(f"cannot write the manifest of {path}: {error.strerror}") from None
    return manifest


def layout_transforms(graph_json: str) -> int:
    """How many kernels of one inference change a layout (fused ones too), from TVM's graph.

    Those of constant weights are not among them: they were done while compiling.
    """
    names = (node.get("attrs", {}).get("func_name", "") for node in json.loads(graph_json)["nodes"])
    return sum("layout_transform" in name for name in names)
