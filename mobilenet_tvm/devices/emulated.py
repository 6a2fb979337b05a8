"""Emulated boards with a tracker of their own, for as long as a block runs.

They are served to this machine alone, by ``mobilenet_tvm.serve`` as any board is.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, Final

from mobilenet_tvm.devices.rpc import RpcDevice
from mobilenet_tvm.devices.tracker import Address, parse_address
from mobilenet_tvm.errors import DeviceError

# An interpreter under qemu takes some seconds to import TVM, more where the cores are busy.
_START_S: Final = 120.0
_STOP_S: Final = 10.0


@contextlib.contextmanager
def emulated_boards(cpu: str, count: int = 1) -> Iterator[RpcDevice]:
    """``count`` emulated boards with the CPU that LLVM calls ``cpu``, or the nearest to it.

    Raises:
        DeviceError: the emulator is not set up, or a board does not start.
    """
    from mobilenet_tvm.devices import qemu

    machine = qemu.runtime(set_up=False)
    emulated = machine.emulated_cpu(cpu)
    key = f"qemu-{secrets.token_hex(4)}"
    with tracker() as (host, port), contextlib.ExitStack() as boards:
        serve = ["-m", "mobilenet_tvm.serve", "--tracker", f"{host}:{port}", "--key", key]
        serve += ["--emulated", emulated.name, "--port", "0"]
        serve += _with_us()
        for _ in range(count):
            said = boards.enter_context(tempfile.TemporaryFile())
            process = machine.popen(
                serve,
                cpu=emulated.name,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # a Ctrl-C is for us to answer
            )
            boards.enter_context(_stopped(process))
            _address(process, said, "an emulated board")
        yield RpcDevice(host, port, key, timing="emulated")


@contextlib.contextmanager
def tracker() -> Iterator[Address]:
    """A tracker of this process's own, on a loopback port that was free.

    Raises:
        DeviceError: it does not start.
    """
    command = [sys.executable, "-m", "mobilenet_tvm.serve", "--tracker-only", "--port", "0"]
    command += _with_us()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        with _stopped(process):
            yield _address(process, said, "a tracker")


def _with_us() -> list[str]:
    """That the server dies with this process, of which Linux counts the thread that starts it."""
    return ["--parent", str(os.getpid())]


@contextlib.contextmanager
def _stopped(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End ``process`` after the block."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _address(process: subprocess.Popen[Any], said: IO[bytes], what: str) -> Address:
    """Where ``process`` listens, by the line that ``serve`` prints."""
    assert process.stdout is not None
    line = _first_line(process.stdout)
    found = re.search(r" at (\S+?)[,;]", line)
    if found is None:
        said.seek(0)
        why = said.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise DeviceError(f"{what} does not start: {why[-1]}")
    return parse_address(found[1])


def _first_line(stream: IO[bytes]) -> str:
    deadline = time.monotonic() + _START_S
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while b"\n" not in data and selector.select(max(0.0, deadline - time.monotonic())):
            part = stream.read1(4096)  # type: ignore[attr-defined]
            if not part:
                break
            data += part
    return data.decode(errors="replace").partition("\n")[0]
