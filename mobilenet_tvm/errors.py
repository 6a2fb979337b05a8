"""What can go wrong, as types. Each carries the exit status its verb ends with.

A message is one line that says what is wrong and what to do about it.
"""

from __future__ import annotations


class MobilenetTvmError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 3


class UsageError(MobilenetTvmError):
    """Bad usage or bad input: an unknown preset, a file that is no ONNX, a foreign log."""

    exit_code = 2


class CheckFailedError(MobilenetTvmError):
    """A check that the user asked for failed: parity, ``--require-tuned``."""

    exit_code = 1


class DeviceError(MobilenetTvmError):
    """The device or a worker failed for good: nothing could be built or run."""

    exit_code = 3


def last_line(error: BaseException) -> str:
    """The line that says what is wrong, of an error of TVM's that may hold a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def carries_interrupt(error: BaseException) -> bool:
    """Whether an error of TVM's is a Ctrl-C that came through it (see cli/interrupts.py)."""
    return "Interrupt" in str(error)
