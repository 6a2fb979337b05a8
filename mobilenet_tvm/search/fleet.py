"""The boards of one key: how many there are, which of them is odd, and whether there is any."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.search.board import Opened

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import RpcDevice

# How old the tracker's word may be.
_FRESH_S = 1.0
# How long a session with an odd board is followed by nothing, so that others get their turn.
_ODD_PAUSE_S = 0.5


class Boards:
    """What all threads of a ``RemoteMeasurer`` know of its boards.

    Args:
        device: the tracker and the key.
        cpu: what the boards' CPU must be; None takes the first one's.
        wait_s: how long there may be no board.
        notice: told once when there is none, and once of each odd board.
    """

    def __init__(
        self, device: RpcDevice, *, cpu: str | None, wait_s: float, notice: Callable[[str], None]
    ) -> None:
        self.device = device
        self._cpu = cpu
        self._wait_s = wait_s
        self._notice = notice
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._known = 0
        self._asked_s = float("-inf")
        self._odd: set[str] = set()
        self._seen_s = float("-inf")
        self._waiting = False
        # The first board that was used.
        self.first: Opened | None = None

    @property
    def emulated(self) -> bool:
        """Whether the boards' times mean nothing."""
        timing = self.device.timing if self.first is None else self.first.timing
        return timing != "measured"

    def count(self) -> int:
        """How many can be used now, at least 1: one may come."""
        return max(self._count() - len(self._odd), 1)

    def _count(self) -> int:
        """How many the tracker knows; 0 where it does not answer."""
        with self._lock:
            if time.monotonic() - self._asked_s > _FRESH_S:
                try:
                    self._known = self.device.boards()
                except DeviceError:
                    self._known = 0
                self._asked_s = time.monotonic()
            return self._known

    def accept(self, opened: Opened) -> bool:
        """Whether to use the board of a session: its CPU must be that of the others."""
        with self._lock:
            if self._cpu is None:
                self._cpu = opened.cpu
            if opened.cpu == self._cpu:
                self.first = self.first or opened
                self._odd.discard(opened.board)
                self._seen_s = time.monotonic()
                if self._waiting:
                    self._waiting = False
                    self._notice(f"board {opened.board} is there: going on")
                return True
            if opened.board not in self._odd:
                self._odd.add(opened.board)
                self._notice(
                    f"board {opened.board} is {opened.cpu}, this run measures on {self._cpu}: "
                    "it is not used; give it another key"
                )
            return False

    def none_free(self, why: str, since_s: float) -> None:
        """None could be used; who waits for one does so since ``since_s``.

        Raises:
            DeviceError: for too long.
        """
        self._stopped.wait(_ODD_PAUSE_S)
        self.check()
        with self._lock:
            known = self._count()
            usable = known - len(self._odd)
            waited_s = time.monotonic() - max(self._seen_s, since_s)
            key = self.device.key
            if waited_s > self._wait_s:
                at = f"at {self.device.host}:{self.device.port} within {self._wait_s:.0f} s"
                if usable > 0:
                    raise DeviceError(
                        f"none of {known} boards with key {key} came free {at}: {why}"
                    )
                raise DeviceError(
                    f"no board with key {key} was there {at}: start python -m mobilenet_tvm.serve "
                    "on one and run the same command again to go on"
                )
            if usable <= 0 and not self._waiting:
                self._waiting = True
                self._notice(
                    f"waiting for a board with key {key} at {self.device.host}:"
                    f"{self.device.port}, at most {self._wait_s:.0f} s"
                )

    def stop(self) -> None:
        """Nobody is to wait any more."""
        self._stopped.set()

    def check(self) -> None:
        """Raise where the run is being ended.

        Raises:
            StoppedError: it is.
        """
        if self._stopped.is_set():
            raise StoppedError("the measurement was ended")


class StoppedError(DeviceError):
    """What is under way is not wanted any more."""
