"""Killed in the middle of tuning, for real: nothing is lost, repeated or left behind."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from mobilenet_tvm.cli.interrupts import interruptible
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.records import Config, RecordLog, Task, read_log
from mobilenet_tvm.search import Failure, ReplayMeasurer, Summary, Trial

KILLS = 50
TRIALS = 60  # of each task; more than any AutoTVM task has candidates

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is a fork of this one"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

Run = Callable[..., Summary]
Line = tuple[str, str, Config]


def cost_of(task: Task, config: Config) -> float:
    """Seconds of one call; the same in every process."""
    return random.Random(f"{task.label} {task.searcher} {config}").uniform(1, 9) * 1e-6


@pytest.fixture
def recorded_both(
    both: tuple[Task, ...], steps: Callable[[int], str]
) -> Mapping[tuple[str, Config], Trial]:
    """A trial of every configuration of both searchers; every ninth fails."""
    trials: dict[tuple[str, Config], Trial] = {}
    for task in both:
        for number, config in enumerate(task.candidates or map(steps, range(TRIALS))):
            failed = number % 9 == 8
            trials[task.key, config] = (
                Trial(config, (), Failure.RUN_ERROR, "no")
                if failed
                else Trial(config, (cost_of(task, config),))
            )
    return trials


@pytest.fixture
def run(
    tune: Run, both: tuple[Task, ...], recorded_both: Mapping[tuple[str, Config], Trial], clock: Any
) -> Run:
    """``run(path=..., pause_s=...)``: tune the tiny model under both searchers.

    The clock that decides which task is next is made up, so that every run takes the same way;
    ``pause_s`` is real.
    """

    def go(pause_s: float = 0.0, **options: Any) -> Summary:
        def measuring(task: Task, config: Config) -> None:
            clock.advance(0.125 if task.searcher == "autotvm" else 0.5)
            time.sleep(pause_s)

        return tune(both, ReplayMeasurer(recorded_both, measuring), trials=TRIALS, **options)

    return go


def in_child(run: Callable[[], object], ready: Any) -> None:
    """The life of the process that is killed."""
    status = 0
    try:
        with interruptible():
            ready.set()
            run()
    except KeyboardInterrupt:
        status = 130
    except DeviceError as error:
        status = 3 if "make room" in str(error) else 4
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)  # without pytest's own end


def start(run: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=in_child, args=(run, ready))
    child.start()
    assert ready.wait(30)
    return child


def tear_last_line(path: Path, count: int) -> None:
    """What a power cut may do beyond a kill: the end of the last line is not there."""
    if path.exists() and path.stat().st_size:
        os.truncate(path, path.stat().st_size - count)


def lines_of(path: Path) -> list[Line]:
    """What a log holds, in its order; no line twice, and none damaged."""
    if not path.exists():
        return []
    found = [(r.searcher, r.key, r.config) for r in read_log(path, pytest.fail)]
    assert len(found) == len(set(found)), "a trial was repeated"
    return found


def test_killed_again_and_again_it_ends_like_an_uninterrupted_run(
    run: Run, tmp_path: Path, ansor_log: Callable[[Path], Path]
) -> None:
    run(path=tmp_path / "whole.jsonl")
    path = tmp_path / "log.jsonl"
    logs = (path, ansor_log(path))
    whole = [
        lines_of(log) for log in (tmp_path / "whole.jsonl", ansor_log(tmp_path / "whole.jsonl"))
    ]
    moment = random.Random(0)
    seen = [0, 0]
    for number in range(KILLS):
        child = start(lambda: run(pause_s=0.01))
        time.sleep(moment.uniform(0.0, 0.25))
        assert child.is_alive(), "it ended before it could be killed"
        assert child.pid is not None
        sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
        os.kill(child.pid, sent)
        child.join(30)
        assert child.exitcode == (-signal.SIGKILL if sent == signal.SIGKILL else 130)
        torn = None
        if number % 9 == 3:
            torn = max(filter(Path.exists, logs), key=lambda log: log.stat().st_mtime_ns)
            tear_last_line(torn, moment.randrange(2, 60))
        for which, log in enumerate(logs):
            warnings: list[str] = []
            with RecordLog(log, warnings.append) as held:  # the dead hold no lock
                # A signal that the run could answer never leaves half a line.
                assert len(warnings) <= (log == torn or sent == signal.SIGKILL)
                assert len(held.records) >= seen[which] - (log == torn)
                seen[which] = len(held.records)
            # The very way that the uninterrupted run took.
            assert lines_of(log) == whole[which][: seen[which]]
    summary = run()
    assert 0 < sum(seen) == summary.resumed < sum(map(len, whole))
    assert [lines_of(log) for log in logs] == whole


@pytest.mark.parametrize("searcher", ["autotvm", "ansor"])
def test_disk_full_in_the_middle_of_a_line(
    run: Run, tmp_path: Path, ansor_log: Callable[[Path], Path], searcher: str
) -> None:
    run(path=tmp_path / "whole.jsonl")
    path = tmp_path / "log.jsonl"
    logs = {"autotvm": path, "ansor": ansor_log(path)}
    whole = {"autotvm": tmp_path / "whole.jsonl", "ansor": ansor_log(tmp_path / "whole.jsonl")}
    data = whole[searcher].read_bytes()
    # AutoTVM's lines are longer: its log is the first to reach the limit, unless it is done.
    limit = data.index(b"\n", 5000 if searcher == "autotvm" else 0) + 40

    def limited() -> None:
        import resource

        if searcher == "ansor":
            # As if Ansor's log alone were on the full disk.
            real, full = os.write, os.fstat

            def write(descriptor: int, text: bytes) -> int:
                if b'"v0.6"' not in text[-20:]:
                    return real(descriptor, text)
                left = limit - full(descriptor).st_size
                return real(descriptor, text[: max(left, 0)])

            os.write = write  # type: ignore[assignment]
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run()

    child = start(limited)
    child.join(60)
    assert child.exitcode == 3
    assert 0 < logs[searcher].stat().st_size < limit
    kept = sum(len(lines_of(log)) for log in logs.values())
    assert logs[searcher].read_bytes().endswith(b"\n")
    summary = run()
    assert summary.resumed == kept > 0
    for name, log in logs.items():
        assert lines_of(log) == lines_of(whole[name])


def test_second_run_on_the_same_logs_is_refused(
    run: Run, tmp_path: Path, ansor_log: Callable[[Path], Path]
) -> None:
    path = tmp_path / "log.jsonl"
    child = start(lambda: run(pause_s=0.02))
    try:
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(UsageError, match="another tuning run is writing"):
            run()
        # Ansor's log is guarded by itself.
        with (
            pytest.raises(UsageError, match=r"writing .*ansor\.jsonl: wait for it"),
            RecordLog(ansor_log(path), pytest.fail),
        ):
            pass
        assert child.is_alive()
    finally:
        child.kill()
        child.join(30)


HOLDER = """
import os, sys, time
from mobilenet_tvm import toolchain

worker = toolchain.Worker()
print(worker.call(os.getpid, timeout_s=60), flush=True)
if sys.argv[1] == "busy":
    worker.call(time.sleep, 300, timeout_s=600)
time.sleep(300)
"""


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_worker_does_not_outlive_a_killed_run(state: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), state], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        assert not gone(worker)
        if state == "busy":
            time.sleep(0.2)  # the call is on its way; nothing tells when it has begun
    finally:
        holder.kill()
        holder.communicate()
    deadline = time.monotonic() + 10
    while not gone(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(worker)
