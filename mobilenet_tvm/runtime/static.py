"""A static C library, run from Python: linked into a small program that is fed through pipes.

On another machine's libraries the program runs under qemu-user, where that is installed.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.build.manifest import CLibrary, Manifest
from mobilenet_tvm.build.static import c_type, zig_target
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.runtime.module import Array, ForeignArtifactError, Module, check_inputs
from mobilenet_tvm.targets import Preset

_PIPE: Final = Path(__file__).with_name("pipe.c")
_EMULATORS: Final = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm", "x86_64": "qemu-x86_64"}


def emulator(preset: Preset) -> tuple[str, ...] | None:
    """The command that a preset's static programs run under here: none, or qemu-user's.

    None where they do not run here (``why_not`` says why).
    """
    if preset.runs_here():
        return ()
    names = _emulators(preset)
    found = next(filter(None, map(shutil.which, names)), None)
    return None if found is None else (found, "-cpu", str(preset.qemu))


def _emulators(preset: Preset) -> tuple[str, ...]:
    if preset.qemu is None or preset.kind != "so":
        return ()
    name = _EMULATORS[preset.arch]
    return name, f"{name}-static"


def why_not(preset: Preset) -> str:
    """Why ``emulator`` is None, and what to do about it."""
    names = _emulators(preset)
    if not names:
        return f"{preset.name} does not run on this machine, nor under qemu"
    return (
        f"{preset.name} does not run on this machine, and there is no {names[0]} on PATH "
        "(Debian: apt-get install qemu-user)"
    )


class StaticModule(Module):
    """A static library in a process of its own. Made by ``load``."""

    def __init__(self, path: Path, manifest: Manifest, library: CLibrary) -> None:
        super().__init__(None, manifest)
        preset = targets.resolve(manifest.target.preset)
        command = emulator(preset)
        if command is None:
            raise ForeignArtifactError(f"{path} cannot be run: {why_not(preset)}")
        self._name, self._cpu = path.name, preset.cpu
        self._inputs: dict[str, Array] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="mobilenet_tvm-")
        program = Path(self._folder.name, "program")
        _link(path, manifest, library, preset, program, emulated=bool(command))
        self._process = subprocess.Popen(
            [*command, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.close: Callable[[], Any] = weakref.finalize(self, _end, self._process, self._folder)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As ``Module.run``.

        Raises:
            UsageError: as there.
            DeviceError: the program died.
        """
        self.set_inputs(inputs)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            for spec in self.manifest.inputs:
                self._process.stdin.write(self._inputs[spec.name].tobytes())
            self._process.stdin.flush()
            status = int.from_bytes(_read(self._process.stdout, 4), "little", signed=True)
            outputs = {}
            for output in self.manifest.outputs:
                dtype = np.dtype(output.dtype)
                size = int(np.prod(output.shape, dtype=np.int64)) * dtype.itemsize
                data = np.frombuffer(_read(self._process.stdout, size), dtype)
                outputs[output.name] = data.reshape(output.shape)
        except (BrokenPipeError, EOFError):
            raise DeviceError(f"{self._name}: {self._death()}") from None
        if status != 0:
            raise DeviceError(f"{self._name}: run returned {status}")
        return outputs

    def set_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Check and keep the inputs."""
        self._inputs = check_inputs(self.manifest, inputs)

    def timer(self) -> Callable[[], None]:
        """There is none: the time of the pipes would be in it.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self._name} is a static library, which is not timed here: bench a .so that is "
            "compiled with the same records"
        )

    def _death(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"the program ended with status {code}"
        if -code == signal.SIGILL:
            return f"illegal instruction: it has some that {self._cpu} lacks"
        return f"the program died of {signal.Signals(-code).name}"


def open_static(path: Path, manifest: Manifest) -> StaticModule:
    """Link the library at ``path`` into a program and start that.

    Raises:
        ForeignArtifactError: it runs neither here nor under an installed qemu.
        UsageError: its header is missing.
        DeviceError: it cannot be linked.
    """
    if manifest.c_library is None:
        raise UsageError(f"the manifest of {path} is not of a static library: compile it again")
    if not path.with_name(manifest.c_library.header).is_file():
        raise UsageError(
            f"{path} has no header {manifest.c_library.header} beside it: ship them together"
        )
    return StaticModule(path, manifest, manifest.c_library)


def _link(
    path: Path,
    manifest: Manifest,
    library: CLibrary,
    preset: Preset,
    program: Path,
    *,
    emulated: bool,
) -> None:
    """The program. It needs nothing of the system under an emulator, where there is none."""
    specs = {f"input_{index}": spec for index, spec in enumerate(manifest.inputs)}
    inputs = list(specs)
    outputs = {f"output_{index}": spec for index, spec in enumerate(manifest.outputs)}
    specs |= outputs
    upper = library.prefix.upper()
    source = _PIPE.read_text(encoding="utf-8")
    for word, text in {
        "HEADER": f'"{library.header}"',
        "BUFFERS": "\n".join(
            f"static {c_type(spec)} {name}[{upper}_{name.upper()}_SIZE];"
            for name, spec in specs.items()
        ),
        "READ": " && ".join(f"fread({name}, sizeof {name}, 1, stdin) == 1" for name in inputs),
        "RUN": f"{library.prefix}_run({', '.join(specs)})",
        "WRITE": " && ".join(f"fwrite({name}, sizeof {name}, 1, stdout) == 1" for name in outputs),
    }.items():
        source = source.replace(word, text, 1)
    written = program.with_suffix(".c")
    written.write_text(source, encoding="utf-8")
    how = ("-static",) if emulated else ()
    try:
        toolchain.zig(
            "cc",
            *zig_target(preset, libc="musl" if emulated else "gnu"),
            *how,
            *("-std=c99", "-O1", "-s", f"-I{path.parent}", "-o", str(program)),
            *(str(written), str(path), "-lm"),
        )
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines() or [str(error)]
        raise DeviceError(f"{path} cannot be linked into a program: {reason[0]}") from None
    except ModuleNotFoundError as error:  # ziglang
        raise DeviceError(f"{path} cannot be linked into a program: {error}") from None


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _end(process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    folder.cleanup()
