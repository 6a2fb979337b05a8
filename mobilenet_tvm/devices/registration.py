"""A server's entry at the tracker, kept up through whatever happens to the tracker.

As TVM's own servers do it: one connection for the server's life, a fresh random match key for
each session, and a new one where a client was given the key and never came.
"""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Callable
from typing import Final

from mobilenet_tvm.devices.tracker import Address, TrackerError, TrackerLink, show

# While the tracker is away it is tried again after this long, twice as long each time.
_FIRST_RETRY_S: Final = 0.5
_LAST_RETRY_S: Final = 5.0
# How long the tracker may take. Nothing else is looked after meanwhile.
_TIMEOUT_S: Final = 2.0
# The tracker is asked this often whether the offered key is still there ...
_PING_S: Final = 2.0
# ... and a client that took it may take this long to come.
_UNUSED_S: Final = 6.0


class Registration:
    """This server at one tracker; with ``tracker`` None, clients come by the plain key.

    Attributes:
        match_key: what a client must say now.
    """

    def __init__(
        self, tracker: Address | None, key: str, address: Address, say: Callable[[str], None]
    ) -> None:
        self.match_key = key
        self._tracker = tracker
        self._key = key
        self._address = address
        self._say = say
        self._link: TrackerLink | None = None
        self._offered = False
        self._away = False
        self._retry_s = _FIRST_RETRY_S
        self._next_try = 0.0
        self._next_ping = 0.0
        self._taken_since: float | None = None

    def tend(self, *, free: bool) -> None:
        """See to it that the tracker knows this server, and offer it where it is ``free``.

        To be called often. Never raises, and never takes longer than ``_TIMEOUT_S`` a question.
        """
        if self._tracker is None:
            return
        try:
            if self._link is not None and _hung_up(self._link):
                raise TrackerError("it hung up")
            if self._link is None and not self._connect():
                return
            if free and not self._offered:
                self._offer()
            elif free and time.monotonic() >= self._next_ping:
                self._ping()
        except TrackerError as error:
            self._lose(error)

    def used(self) -> None:
        """A client came with the match key: the next session needs another."""
        self._offered = False

    def fileno(self) -> int | None:
        """To be waited on together with other things; None while there is no connection."""
        return None if self._link is None else self._link.fileno()

    def close(self) -> None:
        """Leave the tracker, which forgets this server."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _connect(self) -> bool:
        from tvm.rpc.base import TrackerCode

        assert self._tracker is not None
        if time.monotonic() < self._next_try:
            return False
        self._link = TrackerLink(self._tracker, timeout_s=_TIMEOUT_S)
        info = {"key": f"server:{self._key}", "addr": self._address}
        self._expect_success(TrackerCode.UPDATE_INFO, info)
        self._offered = False
        self._retry_s = _FIRST_RETRY_S
        if self._away:
            self._say(f"tracker {show(self._tracker)} is back")
        self._away = False
        return True

    def _offer(self) -> None:
        from tvm.rpc.base import TrackerCode

        host, port = self._address
        self.match_key = f"{self._key}:{secrets.token_hex(8)}"
        self._expect_success(TrackerCode.PUT, self._key, (port, self.match_key), host)
        self._offered = True
        self._taken_since = None
        self._next_ping = time.monotonic() + _PING_S

    def _ping(self) -> None:
        from tvm.rpc.base import TrackerCode

        assert self._link is not None
        now = time.monotonic()
        self._next_ping = now + _PING_S
        if self.match_key in self._link.ask(TrackerCode.GET_PENDING_MATCHKEYS):
            self._taken_since = None
        elif self._taken_since is None:
            self._taken_since = now
        elif now - self._taken_since >= _UNUSED_S:  # its client will not come any more
            self._offer()

    def _expect_success(self, *message: object) -> None:
        from tvm.rpc.base import TrackerCode

        assert self._link is not None
        if self._link.ask(*message) != TrackerCode.SUCCESS:
            raise TrackerError("it refused this server")

    def _lose(self, error: TrackerError) -> None:
        assert self._tracker is not None
        self.close()
        if not self._away:
            self._say(f"tracker {show(self._tracker)} is away, trying on: {error}")
        self._away = True
        self._offered = False
        self._next_try = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)


def _hung_up(link: TrackerLink) -> bool:
    """Whether the tracker closed the connection: it never speaks unasked."""
    return link.fileno() < 0 or bool(select.select([link], [], [], 0)[0])
