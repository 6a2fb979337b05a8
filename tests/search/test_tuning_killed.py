"""``kill -9`` in the middle of tuning, for real: nothing is lost, repeated or left behind."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mobilenet_tvm.records import RecordLog, Task, read_log
from mobilenet_tvm.search import ReplayMeasurer, Summary, Trial

KILLS = 10
TRIALS = 6


def tear_last_line(path: Path, count: int) -> None:
    """What a power cut may do beyond a kill: the end of the last line is not there."""
    if path.exists() and path.stat().st_size:
        os.truncate(path, path.stat().st_size - count)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is a fork of this one")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_again_and_again_it_ends_like_an_uninterrupted_run(
    tune: Callable[..., Summary],
    tiny_tasks: tuple[Task, ...],
    recorded: Mapping[tuple[str, int], Trial],
    tmp_path: Path,
) -> None:
    whole = ReplayMeasurer(recorded)
    tune(tiny_tasks, whole, trials=TRIALS, path=tmp_path / "whole.jsonl")
    # Long enough that each kill comes in the middle: replay sleeps as long as a trial took.
    slow = {key: replace(trial, elapsed_s=0.02) for key, trial in recorded.items()}
    path = tmp_path / "log.jsonl"
    context, moment = multiprocessing.get_context("fork"), random.Random(0)
    seen = 0
    for number in range(KILLS):
        child = context.Process(
            target=tune, args=(tiny_tasks, ReplayMeasurer(slow)), kwargs={"trials": TRIALS}
        )
        child.start()
        time.sleep(moment.uniform(0.03, 0.25))
        assert child.is_alive(), "it ended before it could be killed"
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        if number % 3 == 2:
            tear_last_line(path, moment.randrange(2, 60))
        warnings: list[str] = []
        with RecordLog(path, warnings.append) as log:  # the dead hold no lock
            assert len(log.records) >= seen - 1
            seen = len(log.records)
        assert len(warnings) <= (number % 3 == 2)
    last = ReplayMeasurer(recorded)
    summary = tune(tiny_tasks, last, trials=TRIALS)
    assert 0 < seen == summary.resumed < len(whole.asked)
    found = [(record.key, record.config) for record in read_log(path, pytest.fail)]
    assert len(found) == len(set(found))
    assert sorted(found) == sorted(whole.asked)


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
