"""The kernels for a GPU that a build made: found, described, and their source written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet_tvm.build.cuda_info import CudaInfo, source_digest, source_name, write_source
from mobilenet_tvm.cuda.codegen import Compiled
from mobilenet_tvm.cuda.kernel import KernelInfo
from mobilenet_tvm.cuda.report import kernel_reports
from mobilenet_tvm.cuda.sources import digest
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.targets import Preset
from mobilenet_tvm.targets.gpus import Gpu


def only_image(library: Any, compiled: Sequence[Compiled]) -> Compiled | None:
    """The image that a Relay factory module holds, of those that were compiled; None where all
    runs on the CPU.

    Raises:
        DeviceError: it holds several, of which there is one for each GPU target.
    """
    modules = [one for one in _modules(library.lib) if one.type_key == "cuda"]
    if not modules:
        return None
    if len(modules) > 1:
        raise DeviceError(f"the model was compiled into {len(modules)} images, not one")
    source = modules[0].get_source()
    return next(one for one in compiled if one.source == source)


def _modules(module: Any) -> list[Any]:
    return [module, *(inner for one in module.imported_modules for inner in _modules(one))]


def write_kernels(path: Path, preset: Preset, image: Compiled) -> CudaInfo:
    """Write the source beside the artifact at ``path``; what the manifest says of the image.

    Raises:
        DeviceError: the folder cannot be written.
    """
    assert preset.gpu is not None
    name = source_name(path)
    try:
        write_source(path.with_name(name), image.source)
    except OSError as error:
        raise DeviceError(f"cannot write {path.with_name(name)}: {error.strerror}") from None
    major, minor = preset.gpu.compute_capability
    return CudaInfo(
        arch=preset.gpu.arch,
        compute_capability=f"{major}.{minor}",
        ptx=image.image != image.cubin,
        image_digest=f"sha256:{digest(image.image)}",
        source=name,
        source_digest=source_digest(image.source),
        kernels=_reports(image, preset.gpu),
    )


def _reports(image: Compiled, gpu: Gpu) -> tuple[KernelInfo, ...]:
    try:
        return kernel_reports(image, gpu)
    except ValueError:  # launched by shapes that are known at run time only
        return ()
