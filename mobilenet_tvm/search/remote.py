"""Measure candidates on boards: built here, timed there, several at once.

A trial is built by one of a few child processes (as many as this machine has cores), linked into
a library with a name of its own, and run in a session of its own on whichever board is free, by
a child process that talks to it (``search.board``). Any of them may be killed.

What a lost session says of the candidate depends on who says so. Where the board tells that the
kernel crashed or took too long, it did. Where the session is just gone, the board may have been
rebooted, unplugged or its server killed: the candidate is tried once more, on whatever board
there is, and written off only when that one is gone too. What is lost before the kernel ran
says nothing about it.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.cuda import CudaError
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import CLEARLY, Config, Task
from mobilenet_tvm.search import board
from mobilenet_tvm.search.board import Lost, NoBoard, Opened, Sent
from mobilenet_tvm.search.candidates import Candidate, describe
from mobilenet_tvm.search.children import Child, Pool
from mobilenet_tvm.search.fleet import Boards
from mobilenet_tvm.search.measure import TOLERANCE, Request, difference, first_line, wrong
from mobilenet_tvm.search.trial import Failure, Trial
from mobilenet_tvm.targets import Preset

if TYPE_CHECKING:
    from mobilenet_tvm.devices.rpc import RpcDevice

BUILD_TIMEOUT_S = 10.0
# A builder's first library may have to wait for the linker to build its own libc.
FIRST_BUILD_S = 90.0
REFERENCE_TIMEOUT_S = 60.0
# Of one session, opening it not included: one kernel loaded, its data sent, and timed.
SESSION_S = 20.0
EMULATED_SESSION_S = 90.0
# The board ends a session itself. Only one that is gone does not do so in this time more.
SILENT_S = 8.0
# How long to look for a free board before looking again whether there is any.
LOOK_S = 5.0
# Boards that may be lost before a kernel runs, one after the other, for one trial.
IDLE_LOSSES = 5
# Trials that are under way at once for each board: one runs, one is built meanwhile.
PER_BOARD = 2
MOST_AT_ONCE = 16


class RemoteMeasurer:
    """Measure on all boards of one key.

    Args:
        device: the tracker and the key of the boards.
        preset: what to build for.
        model_bytes: weights of the whole model; a GPU keeps them from call to call, or cannot.
        threads: of TVM's thread pool on the board while a candidate runs.
        cpu: what the boards' CPU must be; None takes the first one's. Others are not used.
        wait_s: how long to wait for a board while there is none.
        notice: told in one line what a person should know meanwhile.
        linker: in place of the preset's (``build.link``).
        make_worker: a child process; another in tests.
    """

    def __init__(
        self,
        device: RpcDevice,
        preset: Preset,
        *,
        model_bytes: int = 4 << 20,
        threads: int = 1,
        cpu: str | None = None,
        wait_s: float = 120.0,
        notice: Callable[[str], None] = lambda text: None,
        linker: Sequence[str] | None = None,
        make_worker: Callable[[], Child] = toolchain.Worker,
    ) -> None:
        self._preset = preset
        self._model_bytes = model_bytes
        self._threads = threads
        self._linker = None if linker is None else tuple(linker)
        self._boards = Boards(device, cpu=cpu, wait_s=wait_s, notice=notice)
        self._builders = Pool(make_worker, targets.physical_cores)
        self._talkers = Pool(make_worker, self._boards.count)
        self._jobs = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="trial")
        self._folder = Path(tempfile.mkdtemp(prefix="mobilenet_tvm-"))
        self._number = itertools.count()
        self._linked = threading.Event()
        # Results of the reference kernels by task and shapes, the last few.
        self._references: dict[Any, Any] = {}

    def find_board(self) -> Opened:
        """The first board that is free, asked what it is.

        Raises:
            DeviceError: there is none.
        """
        self._jobs.submit(self._on_board, _nothing, (), float("inf")).result()
        assert self._boards.first is not None
        return self._boards.first

    def launch_s(self) -> float:
        """Seconds that a launch takes on a board's GPU; 0 of an emulated one.

        Raises:
            DeviceError: the board's GPU cannot be used, or there is no board any more.
        """
        path = self._folder / "launch.so"

        def measure() -> float:
            arguments = (self._preset, path, self._linker)
            never = float("inf")
            sent = self._in_builder(
                board.build_launch_for_board,
                arguments,
                FIRST_BUILD_S,
                never,
                Failure.BUILD_ERROR,
                Failure.BUILD_TIMEOUT,
            )
            return float(self._on_board(board.launch_on_board, (sent, self._model_bytes), never))

        try:
            return self._jobs.submit(measure).result()
        except _FailedError as error:
            raise CudaError(f"the board's GPU does not run the smallest kernel: {error}") from None
        finally:
            path.unlink(missing_ok=True)

    def width(self) -> int:
        """See ``FleetMeasurer``."""
        return min(PER_BOARD * self._boards.count(), MOST_AT_ONCE)

    def measure(
        self, task: Task, config: Config, deadline_s: float, best_s: float = float("inf")
    ) -> Trial:
        """See ``Measurer``."""
        ((_, trial),) = self.measure_all([Request(task, config, best_s)], deadline_s)
        return trial

    def measure_all(
        self, requests: Sequence[Request], deadline_s: float
    ) -> Iterator[tuple[int, Trial]]:
        """See ``FleetMeasurer``."""
        until_s = time.monotonic() + deadline_s
        jobs: list[Future[Trial]] = []
        try:
            # Described here: the searchers own what describes a candidate.
            for request in requests:
                candidate = describe(request.task, request.config)
                jobs.append(self._jobs.submit(self._trial, request, candidate, until_s))
            for index, job in enumerate(jobs):
                try:
                    trial = job.result()
                except DeviceError:
                    for later in range(index + 1, len(jobs)):
                        with contextlib.suppress(DeviceError):
                            yield later, jobs[later].result()
                    raise
                yield index, trial
        finally:
            if not all(job.done() for job in jobs):  # Ctrl-C, or nobody wants the rest
                for job in jobs:
                    job.cancel()
                self._abort()

    def close(self) -> None:
        """Kill the children. What they have open on boards ends with them."""
        self._abort()
        self._jobs.shutdown(wait=True, cancel_futures=True)
        for pool in (self._builders, self._talkers):
            pool.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _abort(self) -> None:
        """End all that is under way, from another thread."""
        self._boards.stop()
        for pool in (self._builders, self._talkers):
            pool.abort()

    def _trial(self, request: Request, candidate: Candidate, until_s: float) -> Trial:
        """One trial, in a thread of its own."""
        start_s = time.monotonic()
        task, best_s, files = request.task, request.best_s, []

        def built(*, as_in_model: bool, failure: Failure, timeout: Failure) -> Sent:
            suffix = ".so" if self._preset.kind == "so" else ".tar"
            files.append(self._folder / f"candidate{next(self._number)}{suffix}")
            return self._build(candidate, files[-1], task, until_s, as_in_model, failure, timeout)

        def trial(costs_s: tuple[float, ...], failure: Failure | None, message: str) -> Trial:
            seconds = time.monotonic() - start_s
            return Trial(request.config, costs_s, failure, message, seconds)

        try:
            sent = built(
                as_in_model=True, failure=Failure.BUILD_ERROR, timeout=Failure.BUILD_TIMEOUT
            )
            arguments = (sent, self._threads, best_s, self._model_bytes)
            costs_s = self._on_board(board.time_on_board, arguments, until_s)
            if median(costs_s) < CLEARLY * best_s or self._boards.emulated:
                # AutoTVM's kernels take the same arguments in the model and alone.
                if candidate.searcher == "ansor":
                    sent = built(
                        as_in_model=False, failure=Failure.RUN_ERROR, timeout=Failure.RUN_TIMEOUT
                    )
                reference = self._reference(candidate, task, sent, until_s)
                result = self._on_board(board.result_on_board, (sent, self._threads), until_s)
                off = difference(result, reference)
                if not off <= TOLERANCE:
                    return trial((), Failure.WRONG_OUTPUT, wrong(off))
        except _FailedError as error:
            return trial((), error.failure, str(error))
        finally:
            for file in files:
                file.unlink(missing_ok=True)
        return trial(costs_s, None, "")

    def _build(
        self,
        candidate: Candidate,
        path: Path,
        task: Task,
        until_s: float,
        as_in_model: bool,
        failure: Failure,
        timeout: Failure,
    ) -> Sent:
        first = not self._linked.is_set()
        sent: Sent = self._in_builder(
            _build,
            (candidate, self._preset, path, task.weight_bytes, as_in_model, self._linker),
            BUILD_TIMEOUT_S + (FIRST_BUILD_S if first else 0.0),
            until_s,
            failure,
            timeout,
        )
        self._linked.set()
        return sent

    def _reference(self, candidate: Candidate, task: Task, sent: Sent, until_s: float) -> Any:
        """The reference kernel's result for the arguments of a candidate."""
        key = (task.key, sent.tensors)
        if key not in self._references:
            result = self._in_builder(
                board.reference_result,
                (candidate, task.weight_bytes),
                REFERENCE_TIMEOUT_S,
                until_s,
                Failure.RUN_ERROR,
                Failure.RUN_TIMEOUT,
            )
            for old in list(self._references)[: -2 * MOST_AT_ONCE]:
                self._references.pop(old, None)
            self._references[key] = result
        return self._references[key]

    def _in_builder(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        timeout_s: float,
        until_s: float,
        failure: Failure,
        timeout: Failure,
    ) -> Any:
        with self._builders.one(self._boards.check) as worker:
            limit_s = max(min(timeout_s, until_s - time.monotonic()), 0.1)
            try:
                return worker.call(function, *arguments, timeout_s=limit_s)
            except TimeoutError:
                self._boards.check()
                raise _FailedError(timeout, f"building took more than {limit_s:.1f} s") from None
            except ChildProcessError:
                self._boards.check()
                raise _FailedError(failure, "the compiler crashed") from None
            except DeviceError as error:
                if isinstance(error, _link_error()):  # of this candidate, and said by the child
                    raise _FailedError(failure, first_line(error)) from None
                raise  # there is no child: not the candidate's failure
            except Exception as error:  # whatever TVM or LLVM raised in the child
                raise _FailedError(failure, first_line(error)) from None

    def _on_board(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], until_s: float
    ) -> Any:
        """Call ``function`` in a session of its own on a free board, on two if need be.

        Raises:
            _FailedError: the kernel failed.
            DeviceError: there is no board.
        """
        session_s = EMULATED_SESSION_S if self._boards.emulated else SESSION_S
        losses = idle_losses = 0
        since_s = time.monotonic()
        while True:
            with self._talkers.one(self._boards.check) as worker:
                self._boards.check()
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise _FailedError(Failure.RUN_TIMEOUT, "no board came free in time")
                opened = self._open(worker, min(session_s, max(left_s, 1.0)), min(LOOK_S, left_s))
                if isinstance(opened, NoBoard):
                    self._boards.none_free(opened.why, since_s)
                    continue
                if isinstance(opened, Lost):
                    idle_losses += 1
                    if idle_losses >= IDLE_LOSSES:
                        raise DeviceError(
                            f"{idle_losses} sessions in a row were lost before anything ran in "
                            f"them; the last one: {opened.why}"
                        )
                    continue
                if not self._boards.accept(opened):
                    # Held, or the tracker would offer the same one again.
                    self._talkers.park(worker, session_s)
                    self._boards.none_free("", since_s)
                    continue
                limit_s = min(session_s, max(until_s - time.monotonic(), 1.0))
                lost = self._in_session(worker, function, arguments, limit_s)
                if not isinstance(lost, Lost):
                    return lost
            losses += 1
            if losses > 1 or lost.how in ("crashed", "too long"):
                hung = lost.how in ("silent", "too long")
                raise _FailedError(Failure.RUN_TIMEOUT if hung else Failure.RUN_ERROR, lost.why)
            since_s = time.monotonic()

    def _open(self, worker: Child, session_s: float, wait_s: float) -> Opened | NoBoard | Lost:
        try:
            opened: Opened | NoBoard | Lost = worker.call(
                board.open_board,
                self._boards.device,
                session_s,
                wait_s,
                timeout_s=wait_s + session_s + SILENT_S,
            )
        except (TimeoutError, ChildProcessError) as error:
            self._boards.check()
            return Lost("gone", f"it did not answer ({type(error).__name__})")
        return opened

    def _in_session(
        self,
        worker: Child,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        session_s: float,
    ) -> Any:
        try:
            return worker.call(function, *arguments, timeout_s=session_s + SILENT_S)
        except TimeoutError:
            self._boards.check()
            return Lost("silent", f"the board was silent for {session_s + SILENT_S:.0f} s")
        except ChildProcessError:
            self._boards.check()
            return Lost("gone", "the connection to the board crashed")
        except DeviceError:
            raise
        except Exception as error:  # what the board or TVM said of this kernel
            raise _FailedError(Failure.RUN_ERROR, first_line(error)) from None
        finally:
            self._end(worker)

    def _end(self, worker: Child) -> None:
        """End the session."""
        with contextlib.suppress(TimeoutError, ChildProcessError):
            worker.call(board.close_board, timeout_s=SILENT_S)


def _build(
    candidate: Candidate,
    preset: Preset,
    path: Path,
    weight_bytes: int,
    as_in_model: bool,
    linker: tuple[str, ...] | None,
) -> Sent:
    """``board.build_for_board`` as a worker is called: by position."""
    return board.build_for_board(
        candidate, preset, path, weight_bytes, as_in_model=as_in_model, linker=linker
    )


def _nothing() -> None:
    """What is called in a session that is opened to look at the board."""


def _link_error() -> type[DeviceError]:
    from mobilenet_tvm.build.link import LinkError

    return LinkError


class _FailedError(Exception):
    """A step failed, and it is the candidate's fault."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure
