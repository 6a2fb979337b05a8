"""Emulated boards that a verb starts for itself: a tracker on loopback, and servers under qemu."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.targets import Preset
from mobilenet_tvm.toolchain import die_with_parent

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import RpcDevice

_SERVE = ("-m", "mobilenet_tvm.serve")
# The first free one, beside whatever trackers there are.
_TRACKER_PORTS = ("9190", "--port-end", "9389")
# The tracker is this machine's Python; a board's imports take seconds each under qemu.
_TRACKER_S = 60.0
_BOARD_S = 180.0
_END_S = 5.0


@contextlib.contextmanager
def emulated_boards(preset: Preset, count: int, out: Output) -> Iterator[RpcDevice]:
    """So many emulated boards of a preset, while the block runs; they end with this process.

    Raises:
        DeviceError: the emulated board is not set up and cannot be, or one does not start.
    """
    from mobilenet_tvm.devices import qemu
    from mobilenet_tvm.devices.rpc import RpcDevice

    with contextlib.ExitStack() as stack:
        with out.working("setting the emulated board up"):
            runtime = qemu.runtime(out.line)
        emulated = runtime.emulated_cpu(preset.cpu, preset.arch)
        if emulated.note:
            out.line(f"emulated  {emulated.note}")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mobilenet_tvm-")))
        with out.working(f"starting {count} emulated board{'' if count == 1 else 's'}"):
            track = [sys.executable, *_SERVE, "--tracker-only", "--port", *_TRACKER_PORTS]
            tracker = stack.enter_context(
                _served("the tracker", folder, functools.partial(subprocess.Popen, track))
            )
            device = RpcDevice(*tracker.address(_TRACKER_S), preset.name, "emulated")
            serve = [*_SERVE, "--tracker", f"{device.host}:{device.port}", "--key", device.key]
            start = functools.partial(
                runtime.popen, [*serve, "--emulated", emulated.name], cpu=emulated.name
            )
            boards = [
                stack.enter_context(_served(f"board {n}", folder, start))
                for n in range(1, count + 1)
            ]
            for board in boards:
                board.address(_BOARD_S)
        yield device


@dataclass(frozen=True)
class _Server:
    """A server that has been started; what it says goes to ``said``."""

    name: str
    process: subprocess.Popen[Any]
    said: Path

    def address(self, wait_s: float) -> tuple[str, int]:
        """Where it serves, as soon as it says so.

        Raises:
            DeviceError: it ended, or says nothing for so long.
        """
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            text = self.said.read_text(errors="replace")
            if found := re.search(r"^(?:tracker|serving \S+) at (\S+):(\d+)", text, re.MULTILINE):
                return found[1], int(found[2])
            if self.process.poll() is not None:
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                why = lines[-1] if lines else f"exit status {self.process.returncode}"
                raise DeviceError(f"{self.name} of the emulated boards does not start: {why}")
            time.sleep(0.05)
        raise DeviceError(f"{self.name} of the emulated boards did not start in {wait_s:.0f} s")


@contextlib.contextmanager
def _served(
    name: str, folder: Path, start: Callable[..., subprocess.Popen[Any]]
) -> Iterator[_Server]:
    """A server while the block runs. It dies with this process, even of ``kill -9``."""
    said = folder / name.replace(" ", "-")
    with said.open("wb") as stream:
        process = start(
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for this process to answer
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
    try:
        yield _Server(name, process, said)
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
