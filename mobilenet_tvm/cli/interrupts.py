"""Ctrl-C and SIGTERM as an exception, raised where it is not lost.

TVM's C++ calls back into Python through ``cfun`` (tvm/_ffi/_ctypes/packed_func.py), which
catches ``Exception``. A ``KeyboardInterrupt``, which is none, is printed and dropped there, and
compiling goes on with a missing result. So inside such a call an ``Exception`` is raised
instead, which TVM carries back to whoever called it; and where nothing can be raised (between
C++ and the function called, or in a ``__del__``) the signal comes again a moment later.
Can go when TVM's callbacks let a ``BaseException`` through.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_FFI = os.path.join("tvm", "_ffi") + os.sep
_RETRY_S = 0.01


class InterruptedInTvmError(Exception):
    """What stands for ``KeyboardInterrupt`` inside a call from TVM's C++."""


@dataclass
class Interrupts:
    """Whether a signal came. Any exception after that is its consequence."""

    seen: bool = False
    over: bool = False


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Raise on SIGINT and SIGTERM while the block runs; the main thread only."""
    state = Interrupts()

    def again(number: int) -> None:
        if not state.over:
            os.kill(os.getpid(), number)

    def handle(number: int, frame: FrameType | None) -> None:
        state.seen = True
        _hang_up_on_boards()
        if _would_be_lost(frame):
            timer = threading.Timer(_RETRY_S, again, (number,))
            timer.daemon = True
            timer.start()
        elif _in_callback(frame):
            raise InterruptedInTvmError
        else:
            raise KeyboardInterrupt

    previous = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN  # `nohup`, `command &` in a script
    }
    try:
        yield state
    finally:
        state.over = True
        for number, handler in previous.items():
            signal.signal(number, handler)


def _hang_up_on_boards() -> None:
    """Whatever TVM still has to say to one in its destructors would wait for its answer."""
    relay = sys.modules.get("mobilenet_tvm.devices.relay")
    if relay is not None:
        relay.hang_up_all()


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The stack, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_callback(frame: FrameType) -> bool:
    return frame.f_code.co_name == "cfun" and _FFI in frame.f_code.co_filename


def _in_callback(frame: FrameType | None) -> bool:
    return any(map(_is_callback, _frames(frame)))


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether an exception raised here would be printed and dropped."""
    inner_is_ffi = True  # of the frame that the one at hand called
    for outer in _frames(frame):
        if outer.f_code.co_name == "__del__" or (inner_is_ffi and _is_callback(outer)):
            return True
        inner_is_ffi = _FFI in outer.f_code.co_filename
    return False
