"""An artifact, loaded: checked against its manifest and this machine, then run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from mobilenet_tvm import toolchain
from mobilenet_tvm.build.manifest import Manifest, read_manifest, sha256_file
from mobilenet_tvm.build.pool import MAX_THREADS, SET_THREADS
from mobilenet_tvm.errors import CheckFailedError, UsageError
from mobilenet_tvm.runtime import gpus
from mobilenet_tvm.targets import missing_features

Array = npt.NDArray[Any]

_ELF_MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_ARM": "armv7l"}


class ForeignArtifactError(UsageError):
    """The artifact is sound, and made for another machine than this."""


class Module:
    """A compiled model. Made by ``load``."""

    def __init__(self, executor: Any, manifest: Manifest) -> None:
        self._executor = executor
        self.manifest = manifest

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference.

        Args:
            inputs: an array for every input of ``manifest.inputs``, shape and dtype as there.

        Returns:
            An array for every output of ``manifest.outputs``.

        Raises:
            UsageError: an input is missing, unknown, or of the wrong shape or dtype.
        """
        self.set_inputs(inputs)
        self._executor.run()
        return {
            spec.name: self._executor.get_output(index).numpy()
            for index, spec in enumerate(self.manifest.outputs)
        }

    def set_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Check and copy the inputs without running. See ``run``."""
        for name, array in check_inputs(self.manifest, inputs).items():
            self._executor.set_input(name, array)

    def timer(self) -> Callable[[], None]:
        """A function that runs one inference with the inputs last set, copying nothing."""
        run: Callable[[], None] = self._executor.run
        return run


def check_inputs(manifest: Manifest, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """``inputs`` as contiguous arrays, after comparing them with the manifest.

    Raises:
        UsageError: an input is missing, unknown, or of the wrong shape or dtype.
    """
    known = [spec.name for spec in manifest.inputs]
    unknown = [str(name) for name in inputs if name not in known]
    if unknown:
        raise UsageError(
            f"no input is called {', '.join(unknown)}: the inputs are {', '.join(known)}"
        )
    arrays = {}
    for spec in manifest.inputs:
        if spec.name not in inputs:
            raise UsageError(f"input {spec.name} {list(spec.shape)} {spec.dtype} is missing")
        array = np.asarray(inputs[spec.name])
        if array.shape != spec.shape:
            raise UsageError(
                f"input {spec.name} has shape {list(array.shape)}, the artifact was compiled "
                f"for {list(spec.shape)}"
            )
        if array.dtype != np.dtype(spec.dtype):
            raise UsageError(
                f"input {spec.name} is {array.dtype}, the artifact takes {spec.dtype}: "
                f"convert it with .astype('{spec.dtype}')"
            )
        arrays[spec.name] = np.asarray(array, order="C")
    return arrays


def load(
    path: str | Path,
    *,
    device: str | None = None,
    cuda_graph: bool = False,
    threads: int | None = None,
    require_checked: bool = False,
) -> Module:
    """Load an artifact after checking it against its manifest and this machine.

    Args:
        path: the ``.so``, with its ``.manifest.json`` beside it. A static library (``.a``) is
            linked into a program of its own, which runs under qemu-user where it must; it has
            one thread.
        device: ``emulated``: kernels for a GPU run on the emulator from now on, for all artifacts
            of this process and its children (``mobilenet_tvm.cuda``). None: on the GPU.
        cuda_graph: launch all kernels of an inference for a GPU at once.
        threads: of the artifact's thread pool, wherever this process has loaded it (of TVM's, for
            all modules, where it has none of its own: docs/threads.md); None leaves it as is.
        require_checked: refuse an artifact that never passed a parity check.

    Raises:
        UsageError: the manifest is missing, damaged or of another format; the ``.so`` is not
            the one it describes; the architecture, a CPU feature or the GPU is missing here;
            ``device`` or ``cuda_graph`` is not for this artifact; it cannot have so many threads.
        CheckFailedError: ``require_checked``, and parity was not checked or did not pass.
        DeviceError: the plug-in for CUDA cannot be built, or the GPU cannot be used or is full.
    """
    path = Path(path)
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: it must be 1 or more")
    if device not in (None, "emulated"):
        raise UsageError(f"device {device!r}: it is 'emulated', or None for this machine's own")
    if device is not None or cuda_graph:
        manifest = read_manifest(path)
        if cuda_graph:
            gpus.require_gpu_artifact(path, manifest, "a CUDA graph")
        if device is not None:
            gpus.emulate_for(path, manifest)
    if path.suffix == ".a":
        from mobilenet_tvm.runtime.static import open_static

        manifest = verify_file(path)
        if require_checked:
            verify_checked(path, manifest)
        return open_static(path, manifest)
    library, manifest = open_library(path, require_checked=require_checked)
    import tvm
    from tvm.contrib import graph_executor

    if threads is not None:
        set_threads(library, threads, tvm.get_global_func("runtime.config_threadpool"))
    if manifest.target.cuda_arch is not None:
        from mobilenet_tvm.runtime.cuda import open_module

        return open_module(library, manifest, cuda_graph=cuda_graph)
    return Module(graph_executor.GraphModule(library["default"](tvm.cpu(0))), manifest)


def open_library(path: Path, *, require_checked: bool = False) -> tuple[Any, Manifest]:
    """The artifact's TVM module and its manifest, after ``load``'s checks. Raises as it does."""
    if path.suffix == ".a":
        raise UsageError(
            f"{path} is a static library, whose kernels cannot be looked at one by one: compile a "
            ".so with the same records"
        )
    manifest = verify_file(path)
    verify_machine(path, manifest)
    if require_checked:
        verify_checked(path, manifest)

    if manifest.target.cuda_arch is not None:
        from mobilenet_tvm.runtime.cuda import prepare

        prepare(path, manifest)
    toolchain.activate()
    import tvm

    return tvm.runtime.load_module(str(path.resolve())), manifest


def verify_file(path: Path) -> Manifest:
    """The manifest of the artifact at ``path``, whose digest fits the file.

    Raises:
        UsageError: the ``.so`` or its manifest is missing, damaged or of another format, or the
            ``.so`` is not the one that the manifest describes.
    """
    manifest = read_manifest(path)
    found = sha256_file(path)
    if found != manifest.so_sha256:
        raise UsageError(
            f"{path} is not the file its manifest describes (digest {found[:19]}..., expected "
            f"{manifest.so_sha256[:19]}...): copy both files again, or compile again"
        )
    return manifest


def verify_machine(path: Path, manifest: Manifest) -> None:
    """Refuse an artifact that this machine cannot run.

    Raises:
        ForeignArtifactError: it is for another architecture, for a CPU with more features, or for
            a GPU that is not here.
        UsageError: the file is no shared library.
    """
    machine, arch = machine_of(path, manifest), manifest.target.cuda_arch
    if machine != platform.machine():
        elsewhere = "or check and run it on a board (--tracker)"
        if arch is None:
            elsewhere += " or an emulated one (--device qemu)"
        raise ForeignArtifactError(
            f"{path} is for {machine} (preset {manifest.target.preset}), this machine is "
            f"{platform.machine()}: compile it with a --target for this machine, {elsewhere}"
        )
    missing = missing_features(manifest.target.cpu_features)
    if missing:
        native = "x86" if machine == "x86_64" else "native"
        native = native if arch is None else "cuda"
        raise ForeignArtifactError(
            f"{path} needs CPU features that this machine lacks: {', '.join(missing)} (preset "
            f"{manifest.target.preset}): compile it with --target {native} on this machine"
        )
    if arch is not None:
        has_ptx = manifest.cuda is not None and manifest.cuda.ptx
        why = gpus.why_not(gpus.capability_of(arch), manifest.target.preset, ptx=has_ptx)
        if why is not None:
            raise ForeignArtifactError(f"{path} {why}")


def machine_of(path: Path, manifest: Manifest, runs_on: str | None = None) -> str:
    """The architecture that an artifact is for; ``runs_on`` (default: this machine's) if it fits.

    Both as ``platform.machine()`` names them.

    Raises:
        UsageError: the file is no shared library.
    """
    # An archive of objects says nothing of itself that Python could read.
    machine = manifest.target.arch if path.suffix == ".tar" else _elf_machine(path)
    return manifest.target.arch if machine == (runs_on or platform.machine()) else machine


def verify_checked(path: Path, manifest: Manifest) -> None:
    """Refuse an artifact that never passed a parity check.

    Raises:
        CheckFailedError: parity was not checked, or did not pass.
    """
    if manifest.parity is None or not manifest.parity.passed:
        state = "was never checked" if manifest.parity is None else "failed its parity check"
        raise CheckFailedError(f"{path} {state}: run python -m mobilenet_tvm.check {path}")


def set_threads(library: Any, threads: int, of_tvm: Callable[[int, int], object]) -> None:
    """Set the threads of an artifact's own pool, or else of the runtime's.

    Args:
        library: the artifact's TVM module, here or on a board.
        threads: the caller included.
        of_tvm: ``runtime.config_threadpool`` of the runtime that holds the library.

    Raises:
        UsageError: more threads than the artifact's own pool can have.
    """
    try:
        of_its_own = library.get_function(SET_THREADS, query_imports=True)
    except AttributeError:  # a GPU's, a 32-bit board's, or one with no parallel kernel
        big_cores_first = 1
        of_tvm(big_cores_first, threads)
    else:
        if threads > MAX_THREADS:
            raise UsageError(
                f"threads is {threads}: an artifact's own pool has {MAX_THREADS} at most"
            )
        of_its_own(threads)


def _elf_machine(path: Path) -> str:
    """Architecture of a shared library, as ``platform.machine()`` would name it."""
    try:
        with path.open("rb") as stream:
            name = ELFFile(stream)["e_machine"]
    except ELFError as error:
        raise UsageError(f"{path} is no shared library ({error}): compile it again") from None
    return _ELF_MACHINES.get(name, str(name))
