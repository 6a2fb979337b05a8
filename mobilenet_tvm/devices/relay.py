"""The way from TVM's client to a board, on which nothing waits for ever.

TVM's client waits for a board without a time limit, in C++, where no signal reaches it. So it
talks to a thread of ours over a loopback connection, and that thread to the board: it hangs up
when a limit has passed, and whatever waits in TVM then fails at once.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import struct
import threading
import time
import weakref
from typing import Final

from mobilenet_tvm.devices.server import keep_alive
from mobilenet_tvm.devices.tracker import Address

_TICK_S: Final = 0.2
_BLOCK: Final = 1 << 18
_LAST_WORDS: Final = 1000
# TVM connects from this very process.
_CONNECT_S: Final = 20.0
_MAGIC: Final = 0xFF271  # tvm.rpc.base.RPC_MAGIC, which is the code for success too
_MISMATCH: Final = _MAGIC + 2


# Those that were not thrown away yet.
_living: weakref.WeakSet[Relay] = weakref.WeakSet()


class RefusedError(OSError):
    """The board does not know the key: it gave it up, or serves another client."""


def greet(address: Address, key: str, *, timeout_s: float) -> tuple[socket.socket, bytes]:
    """A connection to the server at ``address`` that took ``client:<key>``, and its answer.

    Raises:
        RefusedError: it has another key.
        OSError: it cannot be reached, or says nothing in time.
    """
    board = socket.create_connection(address, timeout_s)
    try:
        said = f"client:{key}".encode()
        board.sendall(struct.pack("<ii", _MAGIC, len(said)) + said)
        code = _receive(board, 4)
        if struct.unpack("<i", code)[0] == _MISMATCH:
            raise RefusedError("it has another key")
        if struct.unpack("<i", code)[0] != _MAGIC:
            raise OSError("what answers is no TVM RPC server")
        length = _receive(board, 4)
        name = _receive(board, min(4096, max(0, struct.unpack("<i", length)[0])))
        board.setblocking(False)
        keep_alive(board)
    except BaseException:
        board.close()
        raise
    return board, code + length + name


class Relay:
    """A thread that carries bytes between TVM's client, which connects to it, and ``board``.

    Attributes:
        address, key: what TVM's client must be told to connect to.
        lost: why the connection is over, None while it is not.
        timed_out: whether it is a limit that ended it.
    """

    def __init__(self, board: socket.socket, answer: bytes) -> None:
        self.lost: str | None = None
        self.timed_out = False
        # Any program on this machine could connect first; only TVM's client knows this.
        self.key = secrets.token_hex(16)
        self._board = board
        self._answer = answer
        self._limits: dict[object, float] = {}
        self._last_words = b""
        self._closing = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        _living.add(self)
        self.address: Address = self._listening.getsockname()[:2]
        self._thread = threading.Thread(target=self._run, name="rpc-relay", daemon=True)
        self._thread.start()

    def limit(self, name: object, seconds: float | None) -> None:
        """Hang up ``seconds`` from now, or with None: take that limit back."""
        if seconds is None:
            self._limits.pop(name, None)
        else:
            self._limits[name] = time.monotonic() + seconds

    def last_words(self) -> str:
        """The last that the board said, where it may have told why it hangs up unasked."""
        return self._last_words.decode(errors="replace")

    def hang_up(self) -> None:
        """End the connection soon. Whatever waits in TVM fails."""
        self._closing = True

    def close(self) -> None:
        """``hang_up``, and wait until it is done."""
        self.hang_up()
        self._thread.join()

    def wait_lost(self, seconds: float) -> bool:
        """Whether the connection is over, or ends within ``seconds``."""
        self._thread.join(seconds)
        return self.lost is not None

    def _run(self) -> None:
        try:
            client = self._accept()
        except OSError as error:
            self.lost = f"TVM did not connect ({error})"
            self._board.close()
            return
        finally:
            self._listening.close()
        with client, self._board:
            try:
                self._carry(client)
            except OSError as error:
                self.lost = error.strerror or str(error)

    def _accept(self) -> socket.socket:
        deadline = time.monotonic() + _CONNECT_S
        while True:
            self._listening.settimeout(max(0.001, deadline - time.monotonic()))
            client, _ = self._listening.accept()
            said = b""
            with contextlib.suppress(OSError):
                client.settimeout(_CONNECT_S)
                _, length = struct.unpack("<ii", _receive(client, 8))
                said = _receive(client, min(4096, max(0, length)))
            if said == f"client:{self.key}".encode():
                break
            client.close()
        client.sendall(self._answer)
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def _carry(self, client: socket.socket) -> None:
        other = {client: self._board, self._board: client}
        waiting: dict[socket.socket, memoryview] = {}  # for whom, what
        while not self._closing:
            # Nothing more is taken from one while the other is behind.
            reading = [one for one in other if other[one] not in waiting]
            readable, writable, _ = select.select(reading, list(waiting), [], _TICK_S)
            for one in readable:
                data = one.recv(_BLOCK)
                if not data:
                    self.lost = "closed" if one is client else "it hung up"
                    return
                waiting[other[one]] = memoryview(data)
                if one is self._board:
                    self._last_words = data[-_LAST_WORDS:]
            for one in {*writable, *(other[one] for one in readable)}:
                with contextlib.suppress(BlockingIOError):
                    rest = waiting[one][one.send(waiting[one]) :]
                    waiting[one] = rest
                    if not rest:
                        del waiting[one]
            now = time.monotonic()
            if any(now > end for end in list(self._limits.values())):
                self.timed_out = True
                self.lost = "it did not answer in time"
                return
        self.lost = "closed"


def hang_up_all() -> None:
    """End every connection soon, for a Ctrl-C.

    TVM lets the signal through, and then frees what it held on the board, one question each to a
    board that may still be busy.
    """
    for relay in list(_living):
        relay.hang_up()


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("it hung up")
        data += part
    return data
