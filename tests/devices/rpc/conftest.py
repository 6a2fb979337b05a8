"""Real trackers and real ``serve`` processes on this machine, and a library that misbehaves."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mobilenet_tvm import toolchain
from mobilenet_tvm.devices.rpc import BoardSession, RpcDevice
from mobilenet_tvm.devices.tracker import Address, parse_address

# A server imports TVM first, with the machine's other work beside it.
START_S = 60.0

# What a candidate may do to a board. Called as TVM calls a compiled kernel.
BAD_SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define F(name) int name(void *args, int *codes, int n, void *ret, int *ret_code, void *handle)
static volatile int forever = 1;
static char *volatile kept;
F(fine) { *(long long *)ret = 7; *ret_code = 0; return 0; }
F(crash) { *(volatile int *)0 = 1; return 0; }
F(illegal) { __builtin_trap(); return 0; }
F(give_up) { abort(); return 0; }
F(leave) { exit(7); return 0; }
F(hang) { while (forever) {} return 0; }
F(nap) { sleep(600); return 0; }
F(eat) {
  for (;;) {
    kept = malloc(20 << 20);
    if (kept) memset(kept, 1, 20 << 20);
    usleep(10000);
  }
  return 0;
}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@dataclass
class Serve:
    """A ``python -m mobilenet_tvm.serve`` of its own, and the lines that it prints."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()
        self.address: Address = parse_address(self.wait_line(r" at (\S+?)[,;]")[1])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def wait_line(self, pattern: str, seconds: float = START_S) -> re.Match[str]:
        """The first line so far, or to come, in which ``pattern`` is found."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            if self.process.poll() is not None and not any(
                re.search(pattern, line) for line in self.lines
            ):
                time.sleep(0.2)  # the reader may be behind
                if not any(re.search(pattern, line) for line in self.lines):
                    break
            time.sleep(0.02)
        raise AssertionError(f"no line {pattern!r} among {self.lines}")

    def children(self) -> list[int]:
        """Process ids of the sessions."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            return [one.pid for one in psutil.Process(self.process.pid).children()]
        return []

    def end(self, number: int = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.wait(START_S)


StartServe = Callable[..., Serve]


def start_serve(*arguments: str, folder: Path) -> Serve:
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mobilenet_tvm.serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        return Serve(process)
    except BaseException:
        process.kill()
        raise


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[StartServe]:
    """A function that starts a server with arguments; what it uploads lies under ``tmp_path``."""
    started: list[Serve] = []

    def start(*arguments: str) -> Serve:
        started.append(start_serve(*arguments, folder=tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


class OwnTracker:
    """TVM's own tracker in a process of its own, that can be killed and started again."""

    def __init__(self) -> None:
        self.address: Address = ("127.0.0.1", free_port())
        self._tracker: object | None = None
        self.start()

    def start(self) -> None:
        toolchain.activate()
        from tvm.rpc.tracker import Tracker

        host, port = self.address
        self._tracker = Tracker(host, port, port + 1, silent=True)

    def kill(self) -> None:
        assert self._tracker is not None
        self._tracker.proc.kill()  # type: ignore[attr-defined]
        self._tracker.proc = None  # type: ignore[attr-defined]

    @property
    def text(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"


@pytest.fixture(scope="module")
def tracker() -> Iterator[OwnTracker]:
    """One tracker for a module's tests."""
    one = OwnTracker()
    yield one
    with contextlib.suppress(AttributeError):
        one.kill()


@pytest.fixture(scope="module")
def shared_board(
    tracker: OwnTracker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RpcDevice, Serve]]:
    """One server for a module's tests: each must leave it serving."""
    folder = tmp_path_factory.mktemp("board")
    one = start_serve(
        *("--tracker", tracker.text, "--key", "shared", "--port", "0", "--memory", "500"),
        folder=folder,
    )
    yield RpcDevice(*tracker.address, "shared"), one
    one.end()


@pytest.fixture(scope="session")
def bad_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library with ``crash``, ``hang``, ``eat`` ... as kernels."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad.c").write_text(BAD_SOURCE)
    toolchain.zig("cc", "-shared", "-O1", "-o", str(folder / "bad.so"), str(folder / "bad.c"))
    return folder / "bad.so"


def open_session(device: RpcDevice, timeout_s: float = 60.0, wait_s: float = 30.0) -> BoardSession:
    return device.open(session_timeout_s=timeout_s, wait_s=wait_s)


def still_serves(device: RpcDevice, library: Path) -> None:
    """A new session runs a kernel."""
    with open_session(device) as session, session.calls(limit_s=30):
        assert session.upload(library)["fine"]() == 7
