"""A worker process as its parent sees it: started, asked, stopped, continued, killed."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import TypeVar

import msgspec

from mobilenet_tvm.bench import elsewhere, protocol
from mobilenet_tvm.errors import DeviceError, UsageError

WORKER_COMMAND = (sys.executable, "-m", "mobilenet_tvm.bench.worker")

# Each of these changes how a runtime's idle threads wait, or pins them: whoever set one for
# another program did not mean this comparison.
_THREADING_VARIABLES = (
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "TVM_BIND_THREADS",
    "TVM_EXCLUDE_WORKER0",
)

_Reply = TypeVar("_Reply", protocol.Loaded, protocol.Prepared, protocol.Measured, protocol.Walked)


def worker_environment(threads: int, python: str = sys.executable) -> dict[str, str]:
    """This process's environment, as ``python`` may have it, with the number of threads fixed for
    every runtime."""
    inherited = elsewhere.environment(python)
    environment = {k: v for k, v in inherited.items() if k not in _THREADING_VARIABLES}
    environment["TVM_NUM_THREADS"] = str(threads)
    environment["OMP_NUM_THREADS"] = str(threads)
    environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own, which has nothing to do here
    return environment


class WorkerProcess:
    """One contender's process. A context manager: whatever happens, the process is killed."""

    def __init__(self, label: str, threads: int, command: tuple[str, ...] = WORKER_COMMAND) -> None:
        self.label = label
        # A file, not a pipe: nobody reads it while the worker runs, and a full pipe blocks.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            [*command, str(os.getpid()), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=worker_environment(threads, command[0]),
            # Ctrl-C and the terminal's job control are for the parent alone: `fg` would
            # continue every worker at once.
            start_new_session=True,
        )
        self._unread = b""

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, request: protocol.Request, reply: type[_Reply], timeout_s: float) -> _Reply:
        """Send ``request`` and wait for its ``reply``.

        Raises:
            UsageError: the worker refused, and the user can mend it.
            DeviceError: the worker failed, died, hung or answered nonsense.
        """
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        except BrokenPipeError:
            raise self._failure("died") from None
        line = self._read_line(timeout_s)
        try:
            answer = msgspec.json.decode(line, type=protocol.Reply)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._failure(f"answered nonsense ({line[:60]!r})") from None
        if isinstance(answer, protocol.Failed):
            if answer.usage:
                raise UsageError(f"{self.label}: {answer.message}")
            raise DeviceError(f"the bench worker of {self.label} failed: {answer.message}")
        if not isinstance(answer, reply):
            raise self._failure(f"answered {type(answer).__name__}, not {reply.__name__}")
        return answer

    def pause(self) -> None:
        """Stop every thread of the worker, and return when they have stopped.

        Raises:
            DeviceError: it has died instead.
        """
        self._process.send_signal(signal.SIGSTOP)
        if hasattr(os, "waitid") and self._process.returncode is None:
            # WNOWAIT leaves an exit status in place for Popen to find.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if self._process.poll() is not None:
            raise self._failure("died")

    def resume(self) -> None:
        """Let the worker's threads go on."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the worker, stopped or not, and take its resources back. May be called twice."""
        self._process.kill()  # SIGKILL ends a stopped process too
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _read_line(self, timeout_s: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._failure(f"gave no answer within {timeout_s:.0f} s")
                block = os.read(stdout.fileno(), 1 << 16)
                if not block:
                    raise self._failure("died")
                self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _failure(self, what: str) -> DeviceError:
        """One line: what happened, how the worker ended, and the last it said on stderr."""
        try:
            status = self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            how = ""
        else:
            how = (
                f" (signal {signal.Signals(-status).name})"
                if status < 0
                else f" (exit status {status})"
            )
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = " | ".join([" ".join(line.split()) for line in lines if line.strip()][-3:])
        return DeviceError(
            f"the bench worker of {self.label} {what}{how}: {said[-400:] or 'nothing on stderr'}"
        )
