"""The child processes of a ``RemoteMeasurer``, lent to its threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Child(Protocol):
    """A ``toolchain.Worker``, or what stands for one in tests."""

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """See ``toolchain.Worker``."""

    def abort(self) -> None:
        """See ``toolchain.Worker``."""

    def close(self) -> None:
        """See ``toolchain.Worker``."""


class Pool:
    """Children that are lent out one at a time, at most ``most()`` of them at once."""

    def __init__(self, make: Callable[[], Child], most: Callable[[], int]) -> None:
        self._make, self._most = make, most
        self._free: list[Child] = []
        self._lent: list[Child] = []
        self._parked: list[tuple[float, Child]] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def one(self, check: Callable[[], None]) -> Iterator[Child]:
        """Lend a child; ``check`` raises where nobody should wait any more."""
        with self._changed:
            while len(self._lent) >= max(self._most(), 1):
                check()
                self._changed.wait(0.5)
            now_s = time.monotonic()
            self._free += [child for until_s, child in self._parked if until_s <= now_s]
            self._parked = [entry for entry in self._parked if entry[0] > now_s]
            child = self._free.pop() if self._free else self._make()
            self._lent.append(child)
        try:
            yield child
        finally:
            with self._changed:
                self._lent.remove(child)
                if all(child is not parked for _, parked in self._parked):
                    self._free.append(child)
                self._changed.notify()

    def park(self, child: Child, seconds: float) -> None:
        """Leave a child that is lent as it is for so long when it comes back."""
        with self._changed:
            self._parked.append((time.monotonic() + seconds, child))

    def abort(self) -> None:
        """Kill those that are lent: what they were called for fails at once."""
        with self._changed:
            for child in self._lent:
                child.abort()

    def close(self) -> None:
        """Kill all."""
        with self._changed:
            for child in (*self._free, *(child for _, child in self._parked)):
                child.close()
            self._free.clear()
            self._parked.clear()
