"""A board over TVM's RPC, asked for at TVM's tracker: one session, one process of its own there.

Nothing here waits for ever: see ``relay.py``.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from mobilenet_tvm import toolchain
from mobilenet_tvm.devices.board import FUNCTION, BoardInfo
from mobilenet_tvm.devices.cuda import ADD_SOURCE
from mobilenet_tvm.devices.relay import RefusedError, Relay, greet
from mobilenet_tvm.devices.session import LOST, TIMED_OUT
from mobilenet_tvm.devices.tracker import Address, TrackerError, TrackerLink, show
from mobilenet_tvm.errors import DeviceError, last_line

if TYPE_CHECKING:
    import tvm

Timing = Literal["measured", "emulated"]

# Why a session was lost. ``crash``, ``memory`` and ``timeout`` are the doing of what ran in it;
# ``connection`` says nothing about it: the board was switched off, its server ended, the network.
Reason = Literal["crash", "memory", "timeout", "connection"]

# How long a tracker may take, and a board to be connected to. They are in the next room.
_TRACKER_S: Final = 5.0
_GREETING_S: Final = 10.0
_RETRY_S: Final = 0.3
# The board ends a session at its time-out and says so; a board that hangs gets this much longer.
_GRACE_S: Final = 5.0
# How long a message about a lost session may come before the end of its connection.
_NEWS_S: Final = 1.0


class BoardLostError(DeviceError):
    """A session died: nothing can be asked of it any more, and another may be opened.

    Attributes:
        board: its address.
        reason: whose doing it was, see ``Reason``.
    """

    def __init__(self, board: str, reason: Reason, why: str) -> None:
        super().__init__(f"the session on {board} is lost: {why}")
        self.board = board
        self.reason: Reason = reason


@dataclass(frozen=True)
class RpcDevice:
    """Boards of one ``key`` at the tracker ``host:port``, and whether their times mean anything.

    With ``gpu`` it is their GPUs that things run on.
    """

    host: str
    port: int
    key: str
    timing: Timing = "measured"
    gpu: bool = False

    @property
    def tracker(self) -> Address:
        """Where the tracker listens."""
        return self.host, self.port

    def boards(self) -> int:
        """Servers with this key that the tracker knows, busy ones too.

        Raises:
            TrackerError: no tracker answers.
        """
        return self._summary().get(f"server:{self.key}", 0)

    def require_boards(self) -> int:
        """``boards()``, of which there must be one.

        Raises:
            DeviceError: no tracker answers, or it knows no such board.
        """
        count = self.boards()
        if not count:
            raise DeviceError(self._none_known())
        return count

    def open(self, *, session_timeout_s: float, wait_s: float) -> BoardSession:
        """A session on a board that is free, or comes free within ``wait_s`` seconds.

        Args:
            session_timeout_s: how long the session may last, whatever runs in it.
            wait_s: how long to wait for a board; a board that just lost a session is there
                again at once, one that reboots when it has booted.

        Raises:
            DeviceError: no board comes free in time, or no tracker answers for so long. To be told
                at once that there is none, call ``require_boards`` first.
        """
        _activate()
        deadline = time.monotonic() + wait_s
        trouble = ""
        while True:
            try:
                address, match_key = self._request(deadline, trouble)
            except TrackerError:  # it may be started again just now
                if time.monotonic() + _RETRY_S > deadline:
                    raise
                time.sleep(_RETRY_S)
                continue
            options = f" -timeout={session_timeout_s:g}"
            try:
                board, answer = greet(address, match_key + options, timeout_s=_GREETING_S)
                return BoardSession(
                    board, answer, show(address), self.timing, session_timeout_s, gpu=self.gpu
                )
            except RefusedError:  # somebody was too slow: the tracker has its next key
                pass
            except OSError as error:
                trouble = f"{show(address)}, which the tracker names, does not answer ({error})"
            except BoardLostError as error:
                trouble = str(error)
            if time.monotonic() + _RETRY_S > deadline:
                raise DeviceError(f"no board {self.key}: {trouble}")
            time.sleep(_RETRY_S)

    def _request(self, deadline: float, trouble: str) -> tuple[Address, str]:
        """The address and match key of a free board."""
        from tvm.rpc.base import TrackerCode

        link = TrackerLink(self.tracker, timeout_s=_TRACKER_S)
        with contextlib.closing(link):
            begin = time.monotonic()
            left = max(0.05, deadline - begin)
            try:
                code, value = link.ask(TrackerCode.REQUEST, self.key, "", 1, timeout_s=left)
            except TrackerError:
                if time.monotonic() - begin < 0.9 * left:
                    raise
                raise DeviceError(self._none_free(left, trouble)) from None
        if code != TrackerCode.SUCCESS:
            raise DeviceError(f"the tracker at {show(self.tracker)} gives no board: {value}")
        host, port, match_key = value
        return (host, port), match_key

    def _summary(self) -> dict[str, int]:
        """How many servers the tracker knows, by ``server:<key>``."""
        _activate()
        from tvm.rpc.base import TrackerCode

        with contextlib.closing(TrackerLink(self.tracker, timeout_s=_TRACKER_S)) as link:
            _, summary = link.ask(TrackerCode.SUMMARY)
        count: dict[str, int] = {}
        for server in summary["server_info"]:
            count[server["key"]] = count.get(server["key"], 0) + 1
        return count

    def _none_known(self) -> str:
        others = sorted(name.removeprefix("server:") for name in self._summary())
        known = f"it knows {', '.join(others)}" if others else "it knows no board at all"
        return (
            f"the tracker at {show(self.tracker)} has no board {self.key!r} ({known}): start "
            "python -m mobilenet_tvm.serve on the board"
        )

    def _none_free(self, waited_s: float, trouble: str) -> str:
        count = self.boards()
        if not count:
            return self._none_known()
        busy = "the one board" if count == 1 else f"all {count} boards"
        told = f" ({trouble})" if trouble else ""
        return f"{busy} {self.key} stayed busy for {waited_s:.0f} s: wait, or add a board{told}"


class BoardSession:
    """One session on a board: a process there for as long as this lives. Made by ``open``.

    Calls of TVM objects that live on the board (of ``upload``, ``device``, ``function``) belong
    into ``with session.calls():``, which makes a ``BoardLostError`` of what TVM raises when the
    session dies. One thread at a time.

    Attributes:
        board: a name for people, ``10.0.0.7:9090``.
        timing: whether times measured here mean anything.
        gpu: whether things run on its GPU.
    """

    def __init__(
        self,
        board: socket.socket,
        answer: bytes,
        name: str,
        timing: Timing,
        timeout_s: float,
        *,
        gpu: bool = False,
    ) -> None:
        self.board = name
        self.timing: Timing = timing
        self.gpu = gpu
        self._info: BoardInfo | None = None
        self._asked = False
        self._relay = Relay(board, answer)
        self._relay.limit("session", timeout_s + _GRACE_S)
        from tvm import rpc

        try:
            with self.calls(limit_s=_GREETING_S):
                self._session = rpc.connect(*self._relay.address, self._relay.key)
            info = self.info()
            emulated_gpu = gpu and info is not None and info.gpu is not None and info.gpu.emulated
            if info is not None and (info.emulated or emulated_gpu):
                self.timing = "emulated"
        except BaseException:
            self._relay.close()
            raise

    @contextlib.contextmanager
    def calls(self, *, limit_s: float | None = None) -> Iterator[None]:
        """Around calls to the board: together they may take ``limit_s`` seconds. They may nest.

        Raises:
            BoardLostError: the session died, or the limit passed and it was given up.
            DeviceError: a call failed there, and the session lives on.
        """
        if self._relay.lost is not None:
            raise self._lost("")
        limit = object()
        self._relay.limit(limit, limit_s)
        try:
            yield
        except Exception as error:
            if not _of_tvm(error):
                raise
            text = str(error)
            if _names_loss(text) or self._relay.wait_lost(0.05) or _broken(text):
                raise self._lost(text) from None
            raise DeviceError(f"{self.board}: {last_line(error)}") from error
        finally:
            self._relay.limit(limit, None)

    def info(self) -> BoardInfo | None:
        """What the board is, and how it was when it was first asked; None of a stock server."""
        if not self._asked:
            self._info = self.info_now()
            self._asked = True
        return self._info

    def info_now(self) -> BoardInfo | None:
        """What the board is, and how it is now (temperature, throttling); None of a stock server.

        Raises:
            BoardLostError: the session died.
        """
        try:
            with self.calls(limit_s=_GREETING_S):
                text = self._session.get_function(FUNCTION)()
        except BoardLostError:
            raise
        except DeviceError:
            return None
        try:
            return msgspec.json.decode(text, type=BoardInfo)
        except msgspec.MsgspecError:
            return None

    def cpu_name(self) -> str:
        """The board's own CPU, as ``targets.cpu_name()`` says it there; or its GPU."""
        info = self.info()
        if info is None:
            return "unknown (a stock TVM RPC server)"
        if self.gpu:
            return "no GPU" if info.gpu is None else info.gpu.name
        return info.cpu

    def upload(self, path: Path, *, limit_s: float | None = None) -> tvm.runtime.Module:
        """The shared library at ``path``, sent there and loaded.

        It gets a name never used before: the system crashes where a loaded one is overwritten.

        Raises:
            BoardLostError: the session died.
            DeviceError: the library cannot be loaded there.
        """
        name = f"{uuid.uuid4().hex}.so"
        data = bytearray(path.read_bytes())
        with self.calls(limit_s=limit_s):
            self._session.upload(data, name)
            # Not ``load_module``: an error in that, which is Python, comes back without its text.
            there = self._session.get_function("tvm.rpc.server.workpath")(name)
            return self._session.get_function("runtime.ModuleLoadFromFile")(there, "")

    def device(self) -> tvm.runtime.Device:
        """The board's ``cpu(0)``, or its ``cuda(0)``."""
        return self._session.cuda(0) if self.gpu else self._session.cpu(0)

    def add_source(self, source: str, image_digest: str) -> None:
        """Tell an emulated GPU what an image was made from: it runs the source.

        Args:
            source: CUDA C.
            image_digest: SHA-256 of the image, hexadecimal.

        Raises:
            BoardLostError: the session died.
            DeviceError: there is no GPU.
        """
        with self.calls(limit_s=_GREETING_S):
            self._session.get_function(ADD_SOURCE)(source, image_digest)

    def function(self, name: str) -> Any:
        """The packed function that is registered on the board under ``name``.

        Raises:
            BoardLostError: the session died.
            DeviceError: there is none of that name.
        """
        with self.calls(limit_s=_GREETING_S):
            return self._session.get_function(name)

    def close(self) -> None:
        """End the session and its process on the board. From another thread: at once."""
        self._relay.close()

    def __enter__(self) -> BoardSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lost(self, text: str) -> BoardLostError:
        """What TVM said, and what the connection knows, as one error."""
        self._relay.wait_lost(_NEWS_S)
        text += self._relay.last_words()
        if TIMED_OUT in text:
            return BoardLostError(self.board, "timeout", _after(text, TIMED_OUT))
        if found := re.search(rf"{LOST}\[(\w+)\]", text):
            reason: Reason = "memory" if found[1] == "memory" else "crash"
            return BoardLostError(self.board, reason, _after(text, found[0]))
        if self._relay.timed_out:
            return BoardLostError(self.board, "timeout", "it did not answer in time")
        return BoardLostError(self.board, "connection", self._relay.lost or "it hung up")


def _of_tvm(error: Exception) -> bool:
    from tvm._ffi.base import TVMError

    # TVM makes Python's own types of some errors, by the words that a message begins with.
    signs = ("src/runtime/rpc", "Module has no function")
    return isinstance(error, TVMError) or any(sign in str(error) for sign in signs)


def _names_loss(text: str) -> bool:
    return TIMED_OUT in text or LOST in text


def _broken(text: str) -> bool:
    """Whether TVM speaks of the connection, not of a call that failed there."""
    return any(
        sign in text
        for sign in (
            "Channel closes before we get needed bytes",
            "the connection was previously closed",
            "SockChannel::",
            "code == RPCCode::kReturn",
        )
    )


def _after(text: str, mark: str) -> str:
    """The line after ``mark:``."""
    rest = text.rpartition(mark)[2].lstrip(": ")
    return rest.splitlines()[0].strip() if rest else "it ended"


def _activate() -> None:
    toolchain.activate()
