"""A TVM RPC server that outlives whatever its clients run.

TVM's own (``tvm.exec.rpc_server``) starts an interpreter a session, which fails under qemu-user,
and one crash ends its listening loop. This one is a small process with one thread that speaks to
the tracker, accepts, and forks a child a session (``session.py``). It speaks TVM's protocol to
TVM's tracker and to stock clients.
"""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import psutil

from mobilenet_tvm.devices import cuda
from mobilenet_tvm.devices.board import FUNCTION, board_info
from mobilenet_tvm.devices.registration import Registration
from mobilenet_tvm.devices.session import Limits, Session
from mobilenet_tvm.devices.tracker import Address, show
from mobilenet_tvm.errors import DeviceError, UsageError, last_line
from mobilenet_tvm.toolchain import TVM_VERSION

# TVM's own range.
FIRST_PORT: Final = 9091
LAST_PORT: Final = 9199

_RUNTIME_ONLY: Final = "TVM_USE_RUNTIME_LIB"
_WAIT_S: Final = 0.5
_HANDSHAKE_S: Final = 5.0
_LONGEST_KEY: Final = 4096
# A client whose machine went away in silence is noticed after about a minute.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Memory:
    """How much of the board's memory one session may take.

    ``bytes`` where it is not None, else ``share`` of what is free when the session begins.
    """

    bytes: int | None = None
    share: float = 0.8

    def limit_bytes(self) -> int:
        """The limit of a session that begins now, in bytes."""
        if self.bytes is not None:
            return self.bytes
        return int(psutil.virtual_memory().available * self.share)


@dataclass(frozen=True)
class Serving:
    """What to serve, to whom. ``session_timeout_s`` None: as long as the client asks for.

    ``emulated`` names the CPU that an emulator plays. An emulated GPU is served where the
    environment says so (``cuda.switch``).
    """

    key: str
    host: str = "127.0.0.1"
    port: int = FIRST_PORT
    last_port: int = LAST_PORT
    tracker: Address | None = None
    memory: Memory = Memory()
    session_timeout_s: float | None = None
    emulated: str | None = None
    verbose: bool = False


def import_runtime() -> None:
    """Import TVM, its runtime alone unless the environment says otherwise: no LLVM is needed.

    Raises:
        DeviceError: it cannot be loaded, or is of another version.
    """
    # For this import alone: a process that is started from here may want the compiler.
    chosen = os.environ.get(_RUNTIME_ONLY)
    os.environ[_RUNTIME_ONLY] = chosen or "1"
    # A process that is forked must have one thread, and numpy's BLAS starts some.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    said = io.StringIO()  # "Loading runtime library ..."
    try:
        with contextlib.redirect_stderr(said):
            import tvm
            import tvm.rpc
    except (OSError, ImportError, RuntimeError) as error:
        raise DeviceError(
            f"TVM cannot be loaded here ({last_line(error)}): install the wheel that "
            "pyproject.toml pins, of this machine's kind"
        ) from None
    finally:
        if chosen is None:
            del os.environ[_RUNTIME_ONLY]
    if tvm.__version__ != TVM_VERSION:
        raise DeviceError(
            f"tvm is {tvm.__version__} here, not {TVM_VERSION}: artifacts are built for that one"
        )


def bind(host: str, first_port: int, last_port: int) -> socket.socket:
    """A listening socket at ``host``, on the first port that is free.

    Raises:
        UsageError: ``host`` is no address of this machine, or means all of them; no port is free.
    """
    try:
        found = socket.getaddrinfo(host or None, first_port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise UsageError(f"--host {host} is no address ({error.strerror})") from None
    family, _, _, _, address = found[0]
    if not host or ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified:
        raise UsageError(
            f"--host {host or repr(host)} would serve every network this machine is in, and TVM "
            "RPC trusts its clients (whoever connects runs code here): name the one address to "
            "serve, or leave 127.0.0.1 and come through an SSH tunnel"
        )
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for port in range(first_port, last_port + 1):
        try:
            listening.bind((address[0], port, *address[2:]))
            listening.listen(16)
            return listening
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                listening.close()
                raise UsageError(f"cannot listen at {host}:{port}: {error.strerror}") from None
    listening.close()
    ports = f"port {first_port}" if first_port == last_port else f"ports {first_port}-{last_port}"
    raise UsageError(f"{ports} of {host} are taken: end what listens there, or name another --port")


class Server:
    """Listens from the moment it is made. ``folder`` holds what sessions upload.

    Attributes:
        address: where clients reach it.
        ended: how many sessions ended, by how they did.
        gpu: what sessions can use beside the CPU.
    """

    def __init__(self, serving: Serving, folder: Path, say: Callable[[str], None]) -> None:
        self._serving = serving
        self._folder = folder
        self._say = say
        import_runtime()
        import tvm

        # An emulated board sees the device files of the machine that emulates it.
        self.gpu = None if serving.emulated else cuda.find_gpu(say)
        # Children inherit it.
        tvm.register_func(
            FUNCTION,
            lambda: msgspec.json.encode(board_info(serving.emulated, gpu=self.gpu)).decode(),
            override=True,
        )
        self._listening = bind(serving.host, serving.port, serving.last_port)
        self.address: Address = self._listening.getsockname()[:2]
        self.ended: Counter[str] = Counter()
        self._registration = Registration(serving.tracker, serving.key, self.address, say)

    def serve_forever(self) -> None:
        """One session after the other; ends by an exception alone (Ctrl-C)."""
        while True:
            self._registration.tend(free=True)
            connection = self._next_client()
            if connection is None:
                continue
            with contextlib.closing(connection):
                self._greet_and_serve(connection)

    def close(self) -> None:
        """Stop listening, and leave the tracker."""
        self._listening.close()
        self._registration.close()

    def _next_client(self) -> socket.socket | None:
        waited = [self._listening.fileno(), self._registration.fileno()]
        descriptors = [one for one in waited if one is not None and one >= 0]
        readable, _, _ = select.select(descriptors, [], [], _WAIT_S)
        if self._listening.fileno() not in readable:
            return None
        try:
            connection, _ = self._listening.accept()
        except OSError:  # it went away again
            return None
        return connection

    def _greet_and_serve(self, connection: socket.socket) -> None:
        peer = show(connection.getpeername()[:2]) if _connected(connection) else "?"
        try:
            options = _handshake(connection, self._registration.match_key, self._serving.key)
        except (OSError, ValueError) as error:
            self._say(f"{peer}: no session: {error or type(error).__name__}")
            return
        self._registration.used()
        keep_alive(connection)
        begin = time.monotonic()
        limits = Limits(
            self._serving.memory.limit_bytes(),
            _shorter(options.timeout_s, self._serving.session_timeout_s),
        )
        try:
            session = Session(
                connection,
                self._folder,
                limits,
                (self._listening, self._registration),
                gpu=self.gpu is not None,
                verbose=self._serving.verbose,
            )
        except OSError as error:  # no process, no room for a folder
            self.ended["error"] += 1
            self._say(f"{peer}: no session: {error.strerror or error}")
            time.sleep(_WAIT_S)
            return
        try:
            ended = session.watch(lambda: self._registration.tend(free=False))
        finally:
            session.close()
        self.ended[ended.how] += 1
        if ended.how != "done":
            seconds = time.monotonic() - begin
            self._say(f"{peer}: session lost after {seconds:.1f} s: {ended.why}; serving on")


@dataclass(frozen=True)
class _Options:
    """What a client asks for beside the key."""

    timeout_s: float | None


def _handshake(connection: socket.socket, match_key: str, key: str) -> _Options:
    """Let the client in that says ``client:<match_key>``.

    Raises:
        OSError: it hung up or did not speak.
        ValueError: it speaks another protocol or has another key.
    """
    from tvm.rpc import base

    deadline = time.monotonic() + _HANDSHAKE_S
    (magic,) = struct.unpack("<i", _receive(connection, 4, deadline))
    if magic != base.RPC_MAGIC:
        raise ValueError("it speaks no TVM RPC")
    (length,) = struct.unpack("<i", _receive(connection, 4, deadline))
    if not 0 < length <= _LONGEST_KEY:
        raise ValueError("it speaks no TVM RPC")
    words = _receive(connection, length, deadline).decode(errors="replace").split()
    if not words or words[0] != f"client:{match_key}":
        connection.sendall(struct.pack("<i", base.RPC_CODE_MISMATCH))
        raise ValueError("its key is not the one that this server waits for")
    name = f"server:{key}".encode()
    connection.sendall(struct.pack("<ii", base.RPC_CODE_SUCCESS, len(name)) + name)
    connection.settimeout(None)
    timeout_s = None
    for word in words[1:]:
        if word.startswith("-timeout="):
            timeout_s = float(word.removeprefix("-timeout=")) or None
    return _Options(timeout_s)


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("it hung up before it said its key")
        data += part
    return data


def keep_alive(connection: socket.socket) -> None:
    """Notice within about a minute that the other machine has gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):  # qemu-user does not know all of them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


def _shorter(one: float | None, other: float | None) -> float | None:
    given = [seconds for seconds in (one, other) if seconds is not None]
    return min(given, default=None)
