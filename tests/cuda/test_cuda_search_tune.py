"""``tune`` for a GPU on the emulator: interrupted, gone on with, and ended in an artifact."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import tune as verb
from mobilenet_tvm.build.manifest import read_manifest
from mobilenet_tvm.records import parse_line, read_run

MODEL = ("--alpha", "0.25", "--resolution", "32", "--classes", "10", "--no-transfer")
EMULATED = ("--target", "cuda-sm80", "--device", "emulated")
PATIENCE_S = 500


def tune(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mobilenet_tvm.tune", *MODEL, *EMULATED, *options]
    return subprocess.Popen(
        [*command, "-o", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_emulator_must_be_asked_for_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([*MODEL, *EMULATED, "-o", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "an emulator's times mean nothing" in said
    assert "--allow-emulated" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interrupted_run_goes_on_and_ends_in_a_checked_artifact(
    tmp_path: Path, cuda_compiler: Any
) -> None:
    options = ("--allow-emulated", "--tuner", "autotvm", "--trials", "1", "--json")
    process = tune(tmp_path, *options)
    deadline = time.monotonic() + PATIENCE_S
    log = tmp_path / "tuning_logs/cuda-sm80/mobilenet_v1_0.25_32_c10.autotvm.jsonl"
    while not log.exists() or log.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    kept = log.read_text().splitlines()
    assert len(kept) >= 3

    process = tune(tmp_path, *options)
    output, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert log.read_text().splitlines()[: len(kept)] == kept
    records = [parse_line(line) for line in log.read_text().splitlines()]
    assert set(Counter((record.key, record.config) for record in records).values()) == {1}
    payload = json.loads(output)
    assert (payload["timing"], payload["cpu"]) == ("emulated", "CUDA emulator (sm_80)")
    assert payload["tuned"] == payload["tasks"] == len(records)
    assert payload["search"]["failures"] == {}, "our templates' defaults fit every GPU"
    assert payload["parity"]["passed"]
    assert payload["bench"] is None
    run = read_run(log)
    assert run is not None
    assert (run.timing, run.cpu, run.threads) == ("emulated", "CUDA emulator (sm_80)", 1)
    artifact = Path(payload["artifact"])
    manifest = read_manifest(artifact)
    assert manifest.latency == ()
    assert manifest.cuda is not None
    assert manifest.cuda.arch == "sm_80"

    # A GPU's times and an emulator's are not mixed.
    log.with_name(log.name.replace(".jsonl", ".run.json")).write_text(
        json.dumps(json.loads(_run_text(log)) | {"timing": "measured"})
    )
    process = tune(tmp_path, *options)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "holds measured times, not emulated ones" in said


def _run_text(log: Path) -> str:
    return log.with_name(log.name.replace(".jsonl", ".run.json")).read_text()
