"""TVM's tracker, asked over one connection, with a time limit on every answer.

The protocol is TVM's own (tvm/rpc/tracker.py): a magic number both ways, then JSON messages,
each with its length before it.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from mobilenet_tvm.errors import DeviceError

DEFAULT_PORT: Final = 9190

Address = tuple[str, int]

# No honest message of a tracker is longer: a summary names each server in some 60 bytes.
_LONGEST: Final = 1 << 24


class TrackerError(DeviceError):
    """No tracker answers at the address, or what answers is none."""


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """``host:port``, ``[::1]:port`` or a host alone.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):  # a bare name or IPv6 address
        host, port = text.strip(), str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def show(address: Address) -> str:
    """``host:port``, an IPv6 address in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TrackerLink:
    """One connection to a tracker. Any failure closes it: make a new one.

    Raises:
        TrackerError: nothing answers within ``timeout_s`` seconds, or no tracker does.
    """

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        from tvm.rpc import base

        self._address = address
        self._timeout_s = timeout_s
        try:
            self._socket = socket.create_connection(address, timeout_s)
        except OSError as error:
            raise self._unreachable(error) from None
        try:
            self._socket.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            (magic,) = struct.unpack("<i", base.recvall(self._socket, 4))
        except OSError as error:
            self.close()
            raise self._unreachable(error) from None
        if magic != base.RPC_TRACKER_MAGIC:
            self.close()
            raise TrackerError(f"what answers at {show(address)} is no TVM RPC tracker")

    def ask(self, *message: Any, timeout_s: float | None = None) -> Any:
        """The tracker's answer to one message.

        Raises:
            TrackerError: none came in time (``timeout_s`` seconds for each part of it, default
                as for the connection), or it makes no sense.
        """
        from tvm.rpc import base

        try:
            self._socket.settimeout(self._timeout_s if timeout_s is None else timeout_s)
            base.sendjson(self._socket, list(message))
            size = self._socket.recv(4, socket.MSG_PEEK)
            if len(size) == 4 and not 0 < struct.unpack("<i", size)[0] < _LONGEST:
                raise ValueError("a message of a length that none has")
            return base.recvjson(self._socket)
        except (OSError, ValueError) as error:
            self.close()
            raise self._unreachable(error) from None
        except BaseException:  # Ctrl-C: half an answer may be on its way
            self.close()
            raise

    def fileno(self) -> int:
        """Readable between two questions when the tracker hung up; -1 once closed."""
        return self._socket.fileno()

    def local_address(self) -> str:
        """This end's IP address."""
        return str(self._socket.getsockname()[0])

    def close(self) -> None:
        """Hang up: the tracker forgets what this connection offered or asked for."""
        self._socket.close()

    def _unreachable(self, error: Exception) -> TrackerError:
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        if isinstance(error, OSError) and error.strerror:
            why = error.strerror
        return TrackerError(
            f"no tracker answers at {show(self._address)} ({why}): start one there with "
            "python -m mobilenet_tvm.serve --tracker-only"
        )
