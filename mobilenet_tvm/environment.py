"""What this machine and this Python environment have, looked at piece by piece for ``doctor``.

Nothing that may be broken is imported before it is looked at.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.devices import qemu
from mobilenet_tvm.errors import MobilenetTvmError
from mobilenet_tvm.targets import presets, probe
from mobilenet_tvm.targets.presets import Preset
from mobilenet_tvm.toolchain import Problem

PACKAGE = "mobilenet_tvm"
PROBE_TIMEOUT_S = 30.0
# Building the CUDA plug-in takes 10 s, more on a machine that is busy or slow.
CUDA_TIMEOUT_S = 300.0

# Any of these says that the extra `cuda` was asked for.
_CUDA_PACKAGES = ("cuda-bindings", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12")

# Other distributions of what a dependency provides, under the same import name.
_ALTERNATIVES = {"xgboost-cpu": "xgboost", "onnxruntime": "onnxruntime-gpu"}


@dataclass(frozen=True)
class Package:
    """A dependency: ``installed`` version or None, ``wanted`` as the metadata pins it."""

    name: str
    installed: str | None
    wanted: str
    ok: bool


@dataclass(frozen=True)
class Answer:
    """Whether something works here, and if not, why."""

    ok: bool
    why: str = ""

    def __str__(self) -> str:
        return "yes" if self.ok else f"no: {self.why}"


@dataclass(frozen=True)
class TargetRow:
    """What can be done here with one preset."""

    preset: str
    compile: Answer
    run: Answer
    emulate: Answer


def packages(troubles: list[Problem]) -> list[Package]:
    """Every dependency, and Python itself, against this package's own metadata."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        metadata = importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        troubles.append(
            Problem(
                f"{PACKAGE} is not installed, only found as a folder, so its pins are not known",
                "python -m pip install --editable . in its repository",
            )
        )
        return []
    python = SpecifierSet(metadata["Requires-Python"] or "")
    version = platform.python_version()
    found = [Package("python", version, str(python), python.contains(version, prereleases=True))]
    for line in importlib.metadata.requires(PACKAGE) or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = wanted.name
        installed = _version(name)
        if installed is None and name in _ALTERNATIVES:
            installed = _version(_ALTERNATIVES[name])
            name = name if installed is None else _ALTERNATIVES[name]
        ok = installed is not None and wanted.specifier.contains(installed, prereleases=True)
        found.append(Package(name, installed, str(wanted.specifier), ok))
    for package in found:
        # TVM's own absence is toolchain's to report, with the mend for a shadowed one.
        if not package.ok and (package.name, package.installed) != (toolchain.TVM_PACKAGE, None):
            is_there = f"is {package.installed}" if package.installed else "is missing"
            mend = (
                f"make a virtual environment with Python {package.wanted}"
                if package.name == "python"
                else f'python -m pip install "{package.name}{package.wanted}"'
            )
            troubles.append(Problem(f"{package.name} {is_there}, wanted {package.wanted}", mend))
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tvm() -> dict[str, str] | None:
    """Versions of the TVM that is there; None when it cannot be used (``problems`` says why)."""
    try:
        toolchain.activate()
    except Exception:  # whatever a damaged TVM raises when it is imported
        return None
    import tvm

    return {
        "package": toolchain.TVM_PACKAGE,
        "package_version": _version(toolchain.TVM_PACKAGE) or "unknown",
        "version": tvm.__version__,
        "llvm": toolchain.llvm_version(),
    }


def cpu() -> dict[str, Any]:
    """Name, cores that may be used, and every feature."""
    return {
        "name": targets.cpu_name(),
        "arch": platform.machine(),
        "cores": targets.physical_cores(),
        "logical_cores": psutil.cpu_count(),
        "features": sorted(targets.cpu_features()),
    }


def memory_gb() -> dict[str, float]:
    """Total and available, in units of 10^9 bytes."""
    memory = psutil.virtual_memory()
    return {"total": round(memory.total / 1e9, 1), "available": round(memory.available / 1e9, 1)}


def cache(troubles: list[Problem]) -> dict[str, Any]:
    """Whether compiled helpers can be kept: a file is written there and removed."""
    folder = toolchain.cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = f"the cache folder {folder} cannot be written ({error.strerror})"
        mend = f"make it writable, or set {toolchain.CACHE_VARIABLE} to a folder that is"
        troubles.append(Problem(what, mend))
        return {"path": str(folder), "writable": False}
    return {"path": str(folder), "writable": True}


def target_rows(tvm_usable: bool) -> list[TargetRow]:
    """Compile a tiny kernel for every preset, and run it where this machine can."""
    if not tvm_usable:
        unusable = Answer(False, "the pinned TVM is not usable")
        return [TargetRow(preset.name, unusable, unusable, unusable) for preset in presets.PRESETS]
    rows = []
    worker = toolchain.Worker()
    try:
        with tempfile.TemporaryDirectory(prefix="mobilenet_tvm-") as folder:
            for preset in presets.PRESETS:
                path = str(Path(folder, f"{preset.name}.so"))
                compiled = _try(worker, probe.compile_kernel, preset.target, preset.linker, path)
                rows.append(
                    TargetRow(
                        preset.name,
                        compiled,
                        _run(preset, compiled, worker, path),
                        _emulate(preset, compiled, path),
                    )
                )
    finally:
        worker.close()
    return rows


def _run(preset: Preset, compiled: Answer, worker: toolchain.Worker, path: str) -> Answer:
    if platform.machine() != preset.arch:
        return Answer(False, f"it is for {preset.arch}, this machine is {platform.machine()}")
    missing = targets.missing_features(preset.cpu_features)
    if missing:
        return Answer(False, f"this CPU lacks {', '.join(missing)}")
    if not compiled.ok:
        return Answer(False, "it does not compile")
    return _try(worker, probe.run_kernel, path)


def _emulate(preset: Preset, compiled: Answer, path: str) -> Answer:
    if preset.arch != "aarch64" or preset.qemu is None:
        return Answer(False, "the emulated board is an aarch64 Linux")
    if not qemu.is_set_up():
        return Answer(False, f"it is {qemu.why_not()}")
    if not compiled.ok:
        return Answer(False, "it does not compile")
    code = f"from mobilenet_tvm.targets import probe; probe.run_kernel({path!r})"
    try:
        done = qemu.runtime(set_up=False).run_python(
            ["-c", code], cpu=preset.qemu, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return Answer(False, f"it took more than {PROBE_TIMEOUT_S:.0f} s")
    except MobilenetTvmError as error:
        return Answer(False, str(error))
    return (
        Answer(True) if done.returncode == 0 else Answer(False, last_line(Exception(done.stderr)))
    )


def emulated_board() -> dict[str, Any]:
    """Whether there is one (``devices.qemu``), what it is, and if not, why."""
    if not qemu.is_set_up():
        return {"set_up": False, "why": qemu.why_not()}
    board = qemu.runtime(set_up=False)
    emulators = {arch: str(path) for arch, path in board.emulators.items()}
    return {
        "set_up": True,
        "root": str(board.root),
        "python": board.python_version,
        "emulators": emulators,
    }


def cuda(tvm_usable: bool) -> dict[str, Any]:
    """Whether this machine compiles for NVIDIA GPUs, with what, and which GPU it has.

    No trouble where it does not: only ``--target cuda`` needs it, and the answer says what to do.
    """
    from mobilenet_tvm.cuda import gpu, probe

    found = gpu.find_gpu()
    answer: dict[str, Any] = {
        "installed": any(map(_version, _CUDA_PACKAGES)),
        "compile": asdict(Answer(False, "it is not installed: pip install 'mobilenet-tvm[cuda]'")),
        "compiler": None,
        "nvrtc": None,
        "plugin": None,
        "gpu": None if found is None else str(found),
        "why_no_gpu": gpu.why_none(),
    }
    if not answer["installed"]:
        return answer
    if not tvm_usable:
        return answer | {"compile": asdict(Answer(False, "the pinned TVM is not usable"))}
    worker = toolchain.Worker()
    try:
        made = worker.call(probe.loaded, timeout_s=CUDA_TIMEOUT_S)
        answer |= {
            "compile": asdict(Answer(True)),
            "compiler": made.compiler,
            "nvrtc": made.nvrtc,
            "plugin": made.path,
        }
    except TimeoutError:
        answer["compile"] = asdict(Answer(False, f"it took more than {CUDA_TIMEOUT_S:.0f} s"))
    except ChildProcessError:
        answer["compile"] = asdict(Answer(False, "the process crashed"))
    except Exception as error:  # whatever was raised in the child
        why = last_line(error).rpartition("CudaError: ")[2]
        answer["compile"] = asdict(Answer(False, why))
    finally:
        worker.close()
    return answer


def _try(worker: toolchain.Worker, function: Callable[..., None], *arguments: Any) -> Answer:
    """Call ``function`` in the worker, which may die of it."""
    try:
        worker.call(function, *arguments, timeout_s=PROBE_TIMEOUT_S)
    except TimeoutError:
        return Answer(False, f"it took more than {PROBE_TIMEOUT_S:.0f} s")
    except ChildProcessError:
        return Answer(False, "the process crashed")
    except Exception as error:  # whatever TVM or LLVM raised in the child
        return Answer(False, last_line(error))
    return Answer(True)


def last_line(error: Exception) -> str:
    """What an error says in one line: of a child's traceback the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
