"""``tune`` end to end where trials run elsewhere: on a served x86 process, on an emulated ARM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from mobilenet_tvm import targets
from mobilenet_tvm.build.manifest import read_manifest
from mobilenet_tvm.devices import qemu
from mobilenet_tvm.devices.emulated import tracker
from mobilenet_tvm.records import parse_line, read_run

pytestmark = pytest.mark.slow
TINY = ("--alpha", "0.25", "--resolution", "32", "--classes", "10", "--no-transfer")


def tune(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mobilenet_tvm.tune", *TINY, *options]
    return subprocess.Popen(
        [*command, "-o", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def lines_of(folder: Path) -> list[str]:
    (log,) = folder.rglob("*.autotvm.jsonl")
    return log.read_text().splitlines()


def test_on_boards_of_a_tracker(tmp_path: Path) -> None:
    with tracker() as (host, port):
        serve = [sys.executable, "-m", "mobilenet_tvm.serve", "--tracker", f"{host}:{port}"]
        serve += ["--key", "mine", "--port", "0", "--parent", str(os.getpid())]
        boards = [
            subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for _ in range(2)
        ]
        for board in boards:
            assert board.stdout is not None
            board.stdout.readline()
        options = ("--tracker", f"{host}:{port}", "--key", "mine", "--json", "--rounds", "2")
        process = tune(tmp_path, *options, "--tuner", "autotvm", "--trials", "1")
        output, said = process.communicate(timeout=500)
        for board in boards:
            board.terminate()
            board.communicate()
    assert process.returncode == 0, said
    payload = json.loads(output)
    assert (payload["timing"], payload["cpu"]) == ("measured", targets.cpu_name())
    assert payload["tuned"] == payload["tasks"] == payload["search"]["trials"]
    assert payload["search"]["failures"] == {}
    assert payload["parity"]["passed"]
    labels = [timing["label"] for timing in payload["bench"]["timings"]]
    assert labels == ["tuned", "untuned (TVM's schedules)", "untuned (our schedules)"]
    assert payload["bench"]["warnings"] == []
    manifest = read_manifest(Path(payload["artifact"]))
    (latency,) = manifest.latency
    assert (latency.machine, latency.threads) == (targets.cpu_name(), 1)
    assert f"boards    {host}:" in said
    assert "and 1 more, key mine" in said


@pytest.fixture
def emulated() -> None:
    if not qemu.is_set_up():
        pytest.skip(f"the emulated board is {qemu.why_not()}")


def test_on_an_emulated_board(tmp_path: Path, emulated: None) -> None:
    options = ("--target", "arm", "--device", "qemu", "--allow-emulated", "--tuner", "autotvm")
    process = tune(tmp_path, *options, "--trials", "1", "--json")
    output, said = process.communicate(timeout=590)
    assert process.returncode == 0, said
    payload = json.loads(output)
    assert payload["timing"] == "emulated"
    assert payload["tuned"] == payload["tasks"] == payload["search"]["trials"]
    assert payload["parity"]["passed"]
    assert payload["bench"] is None
    assert "GFLOP/s" not in said
    assert "bench     none: emulated times are no latencies" in said
    (log,) = tmp_path.rglob("*.autotvm.jsonl")
    run = read_run(log)
    assert run is not None
    assert (run.timing, run.trials) == ("emulated", len(lines_of(tmp_path)))
    assert read_manifest(Path(payload["artifact"])).latency == ()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_emulated_boards_do_not_outlive_the_run(
    tmp_path: Path, emulated: None, number: int
) -> None:
    options = ("--target", "arm", "--device", "qemu", "--allow-emulated", "--tuner", "autotvm")
    process = tune(tmp_path, *options, "--trials", "2", "--boards", "2")
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("*.autotvm.jsonl")) or len(lines_of(tmp_path)) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert sum("qemu" in (_command(child) or "") for child in children) >= 2
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=30)[1] == []
    counts = Counter((r.key, r.config) for r in map(parse_line, lines_of(tmp_path)))
    assert set(counts.values()) == {1}


def _command(process: psutil.Process) -> Any:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return None
