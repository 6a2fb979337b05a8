"""Run one kernel under qemu-user, and count what it executes and which cache serves it."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from elftools.elf.elffile import ELFFile

from mobilenet_tvm import toolchain
from mobilenet_tvm.devices.estimate.cores import LINE_BYTES, Core
from mobilenet_tvm.devices.estimate.native import harness, plugin, qemu_of
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.targets import Preset

# As harness.c has them. Ansor lays weights out in a dozen dimensions.
_MAGIC = 0x45564D54
_MAX_DIMENSIONS = 16
_MAX_ARRAYS = 16
_LINKERS = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux"}


class EmulationError(Exception):
    """The kernel failed under the emulator: one line that says how."""


@dataclass(frozen=True)
class Arguments:
    """What a kernel is called with: float32 arrays only.

    Attributes:
        shapes: in the kernel's order.
        result: which of them is written.
        weights: which of them was last used an inference ago, None if none.
    """

    shapes: tuple[tuple[int, ...], ...]
    result: int
    weights: int | None = None

    def random(self) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """The same data each time; NaN for the result, that what is left unwritten shows."""
        draw = np.random.default_rng(0).uniform
        data = [draw(-1, 1, shape).astype(np.float32) for shape in self.shapes]
        data[self.result][:] = np.nan
        return data

    def _role(self, index: int) -> int:
        return 2 if index == self.result else 1 if index == self.weights else 0


# A block as qemu translated it: its address, and how many instructions it has. Two may overlap.
BlockKey = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """How often a translated block was executed, and which block came next how often."""

    executions: int
    followers: dict[BlockKey, int]


@dataclass(frozen=True)
class Traffic:
    """Lines that the kernel wanted and L1 did not have, by who had them: L2, L3, memory.

    Attributes:
        streamed: those that a prefetcher foresees.
        scattered: the others.
    """

    streamed: tuple[int, int, int]
    scattered: tuple[int, int, int]


@dataclass(frozen=True)
class Emulation:
    """One run of a kernel: on what, its blocks, its traffic, and what it computed."""

    arguments: Arguments
    blocks: dict[BlockKey, Block]
    traffic: Traffic
    result: np.ndarray[Any, np.dtype[np.float32]]


class Emulator:
    """Runs kernels as ``preset``'s machine with ``core``'s caches would.

    Args:
        preset: what they are compiled for.
        core: how its caches are organised.

    Raises:
        DeviceError: there is no qemu for it here, or none that takes plugins.
    """

    def __init__(self, preset: Preset, core: Core) -> None:
        self._preset = preset
        self._core = core
        self._qemu = qemu_of(preset)
        self._plugin = plugin(self._qemu)
        self._harness = harness(preset.arch)

    def link(self, kernel: Path, program: Path) -> None:
        """Make a program of a kernel's object.

        Raises:
            subprocess.CalledProcessError: it cannot be linked (it calls what the harness lacks).
        """
        toolchain.zig(
            *("ld.lld", "-m", _LINKERS[self._preset.arch], "-static", "-o", str(program)),
            *(str(self._harness), str(kernel)),
        )

    def run(
        self, program: Path, arguments: Arguments, *, model_bytes: int, timeout_s: float
    ) -> Emulation:
        """Run a program on ``arguments.random()``, once.

        Args:
            program: as ``link`` made it.
            arguments: of its kernel.
            model_bytes: weights of the whole model, which went by since the kernel's were used.
            timeout_s: for all of it.

        Raises:
            TimeoutError: it took longer, and was killed.
            EmulationError: it crashed, or refused its arguments.
        """
        with program.open("rb") as stream:
            text = ELFFile(stream).get_section_by_name(".text")
            start, size = text["sh_addr"], text["sh_size"]
        preset, core = self._preset, self._core
        with tempfile.NamedTemporaryFile(dir=program.parent, suffix=".counts") as counts:
            options = [
                f"out={counts.name}",
                *(f"from={start}", f"to={start + size}", f"line={LINE_BYTES}"),
                f"l1={preset.l1d_bytes}/{core.l1_ways}",
                f"l2={preset.l2_bytes}/{core.l2.ways}",
                f"l3={preset.l3_bytes}/{core.l3.ways}",
            ]
            # A -cpu of None (nothing is known to fit) is an error of the caller's: why_not.
            command = [str(self._qemu), "-cpu", str(preset.qemu)]
            command += ["-plugin", ",".join([str(self._plugin), *options]), str(program)]
            try:
                done = subprocess.run(
                    command,
                    input=_standard_input(arguments, model_bytes),
                    capture_output=True,
                    timeout=timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise TimeoutError from None
            except OSError as error:
                raise DeviceError(f"cannot run {self._qemu}: {error.strerror or error}") from None
            if done.returncode:
                raise EmulationError(_reason(done))
            blocks, traffic = parse_counts(Path(counts.name).read_text())
        shape = arguments.shapes[arguments.result]
        result = np.frombuffer(done.stdout, np.float32).reshape(shape)
        return Emulation(arguments, blocks, traffic, result)


def _standard_input(arguments: Arguments, model_bytes: int) -> bytes:
    """What harness.c reads."""
    dimensions = max(len(shape) for shape in arguments.shapes)
    if dimensions > _MAX_DIMENSIONS or len(arguments.shapes) > _MAX_ARRAYS:
        raise EmulationError(
            f"{len(arguments.shapes)} arrays of up to {dimensions} dimensions are more than the "
            f"emulated program takes ({_MAX_ARRAYS} of {_MAX_DIMENSIONS})"
        )
    head = struct.pack("<3q", _MAGIC, model_bytes, len(arguments.shapes))
    for index, shape in enumerate(arguments.shapes):
        padded = (*shape, *[0] * (_MAX_DIMENSIONS - len(shape)))
        head += struct.pack(f"<{2 + _MAX_DIMENSIONS}q", arguments._role(index), len(shape), *padded)
    return head + b"".join(data.tobytes() for data in arguments.random())


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        # Of an illegal instruction the core promised to the compiler is not the emulator's.
        return f"killed by signal {-done.returncode}" + (f" ({said[0]})" if said else "")
    return said[-1] if said else f"exit status {done.returncode}"


def parse_counts(text: str) -> tuple[dict[BlockKey, Block], Traffic]:
    """What plugin.c wrote.

    Raises:
        EmulationError: it is not whole.
    """
    blocks: dict[BlockKey, Block] = {}
    lines = {0: [0, 0, 0, 0], 1: [0, 0, 0, 0]}
    words: Sequence[str] = ()
    for words in map(str.split, text.splitlines()):
        if words[0] == "block":
            address, instructions, executions = map(int, words[1:4])
            followers = {}
            for follower in words[4:]:
                to, length, taken = map(int, follower.split(":"))
                followers[to, length] = taken
            if executions:
                blocks[address, instructions] = Block(executions, followers)
        elif words[0] in ("loads", "stores"):
            streamed, level, count = map(int, words[1:])
            lines[streamed][level] += count
    if words != ["end"]:
        raise EmulationError("the emulator's counts are cut short")
    (_, *streamed_lines), (_, *scattered_lines) = lines[1], lines[0]
    return blocks, Traffic(tuple(streamed_lines), tuple(scattered_lines))  # type: ignore[arg-type]
