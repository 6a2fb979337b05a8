"""One session of a server: a forked child that runs whatever the client says, and its watch.

The child may crash, hang, or eat the machine's memory; the parent sees it and says why. It is
forked, not started anew: under qemu-user the interpreter cannot be executed, and TVM is imported
already.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from mobilenet_tvm.errors import last_line
from mobilenet_tvm.toolchain import die_with_parent

How = Literal["done", "crash", "memory", "timeout", "gone", "error"]

# What the client is told of a lost session begins with this (see ``lost_reason``). A time-out
# has TVM's own name, which stock clients know.
LOST: Final = "BoardSessionLost"
TIMED_OUT: Final = "RPCSessionTimeoutError"

_TICK_S: Final = 0.1
# A child whose client has gone may take this long to see it by itself.
_GONE_GRACE_S: Final = 2.0
_CRASHES: Final = tuple(
    getattr(signal, name) for name in ("SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "SIGFPE")
)


@dataclass(frozen=True)
class Ended:
    """How a session ended, and in words why."""

    how: How
    why: str = ""


@dataclass(frozen=True)
class Limits:
    """Of one session: resident memory in bytes, and seconds (None: as long as it takes)."""

    memory_bytes: int
    seconds: float | None


class Session:
    """A child that serves one client over ``connection``, in a new folder under ``parent``.

    ``close_in_child`` are the parent's sockets: held by the child they would outlive the parent.
    With ``gpu`` the child makes this machine's usable.
    """

    def __init__(
        self,
        connection: socket.socket,
        parent: Path,
        limits: Limits,
        close_in_child: Sequence[Any],
        *,
        gpu: bool = False,
        verbose: bool = False,
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._folder = Path(tempfile.mkdtemp(dir=parent))
        self._end, writing = os.pipe()
        ours = os.getpid()
        # No signal between the fork and the moment that both sides know who they are.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._pid = os.fork()
            if self._pid == 0:
                os.close(self._end)
                _serve(connection, self._folder, ours, writing, close_in_child, gpu, verbose)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.close(writing)
        self._status: int | None = None

    def watch(self, meanwhile: Callable[[], None]) -> Ended:
        """Wait until the session is over, or end it where it breaks a limit.

        ``meanwhile`` is called some ten times a second.
        """
        start = time.monotonic()
        gone_since: float | None = None
        process = psutil.Process(self._pid)
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        poll.register(self._connection, select.POLLRDHUP)
        ended: Ended | None = None
        while not self._over():
            for descriptor, _ in poll.poll(_TICK_S * 1000):
                if descriptor == self._connection.fileno():
                    poll.unregister(descriptor)
                    gone_since = time.monotonic()
            now = time.monotonic()
            with contextlib.suppress(psutil.Error):
                if process.memory_info().rss > self._limits.memory_bytes:
                    limit = self._limits.memory_bytes / 1e6
                    ended = Ended("memory", f"it took more than {limit:.0f} MB of memory")
            if self._limits.seconds is not None and now - start > self._limits.seconds:
                ended = Ended("timeout", f"its {self._limits.seconds:g} s are over")
            if gone_since is not None and now - gone_since > _GONE_GRACE_S:
                ended = Ended("gone", "its client went away while it ran something")
            if ended is not None:
                self._kill()
                break
            meanwhile()
        ended = ended or self._verdict()
        if ended.how not in ("done", "gone"):
            self._tell(ended)
        return ended

    def close(self) -> None:
        """End the child if it still runs, and remove its folder."""
        self._kill()
        os.close(self._end)
        self._connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _over(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def _kill(self) -> None:
        if self._over():
            return
        # It leads a group of its own; what it started goes with it.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self._pid, signal.SIGKILL)
        _, self._status = os.waitpid(self._pid, 0)

    def _verdict(self) -> Ended:
        assert self._status is not None
        if os.WIFSIGNALED(self._status):
            number = os.WTERMSIG(self._status)
            name = signal.Signals(number).name
            if number in _CRASHES:
                return Ended("crash", f"it crashed ({name})")
            if number == signal.SIGKILL:
                return Ended("memory", "the system killed it (out of memory?)")
            return Ended("crash", f"it was killed ({name})")
        if os.WEXITSTATUS(self._status) == 0:
            return Ended("done")
        said = _read_all(self._end)
        return Ended("error", said or f"it ended with status {os.WEXITSTATUS(self._status)}")

    def _tell(self, ended: Ended) -> None:
        """Answer the client's call under way with the reason, as far as it still listens."""
        name = TIMED_OUT if ended.how == "timeout" else f"{LOST}[{ended.how}]"
        with contextlib.suppress(OSError):
            self._connection.send(_exception_packet(f"{name}: {ended.why}"), socket.MSG_DONTWAIT)


def _exception_packet(message: str) -> bytes:
    """TVM's own packet that says that a remote call failed (RPCReference::ReturnException)."""
    exception_code, one_argument, string_type = 5, 1, 11
    text = message.encode()
    body = struct.pack("<iiiQ", exception_code, one_argument, string_type, len(text)) + text
    return struct.pack("<Q", len(body)) + body


def _read_all(descriptor: int) -> str:
    parts = []
    while part := os.read(descriptor, 4096):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


class _WorkFolder:
    """What TVM's server takes for a folder: ``relpath`` is where a client's file lies."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def relpath(self, name: str) -> str:
        return str(self._path / name)


def _serve(
    connection: socket.socket,
    folder: Path,
    parent: int,
    writing: int,
    close_first: Sequence[Any],
    gpu: bool,
    verbose: bool,
) -> None:
    """In the child; never returns."""
    status = 1
    try:
        die_with_parent(parent)
        os.setsid()  # out of the terminal's reach; killed as a group
        for number in (signal.SIGINT, signal.SIGTERM, *_CRASHES):
            signal.signal(number, signal.SIG_DFL)  # TVM prints a long story on a SIGSEGV
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        for held in close_first:
            held.close()
        # Should the system run out of memory it is this process that goes, not the server.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        os.chdir(folder)
        if not verbose:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
        if gpu:
            from mobilenet_tvm.devices import cuda

            cuda.load()
        from tvm.rpc import _ffi_api, server

        server._server_env(None, _WorkFolder(folder))
        _ffi_api.ServerLoop(connection.fileno())
        status = 0
    except BaseException as error:
        if verbose:
            traceback.print_exc()
        with contextlib.suppress(OSError):
            os.write(writing, last_line(error).encode()[:500])
    finally:
        os._exit(status)
