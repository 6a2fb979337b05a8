"""benchmarks/peers.py: its commands, and what it makes of what they print."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm.bench.peers import Absent
from mobilenet_tvm.bench.results import (
    LOW_PRECISION_DISAGREEMENT,
    Agreement,
    BenchResult,
    Noise,
    Ratio,
    Timing,
    table,
)

from ..conftest import benchmark_script


@pytest.fixture(scope="module")
def script() -> Any:
    return benchmark_script("peers")


def timing(label: str, threads: int, median_ms: float) -> Timing:
    return Timing(
        label, threads, median_ms, median_ms - 1, median_ms + 1, 100.0, 0.85, rounds=4, samples=40
    )


RESULT = BenchResult(
    machine="a machine",
    peak_gflops=117.0,
    timings=(
        *(timing("net", 1, 10.0), timing("fast, bf16", 1, 6.0), timing("good", 1, 11.0)),
        *(timing("wrong", 1, 7.0), timing("ort", 1, 12.0)),
        *(timing("net", 2, 5.0), timing("fast, bf16", 2, 3.0), timing("good", 2, 7.0)),
        *(timing("wrong", 2, 4.0), timing("ort", 2, 6.5)),
    ),
    ratios=tuple(
        Ratio("net", to, threads, value, value - 0.02, value + 0.02)
        for to, threads, value in (
            *(("fast, bf16", 1, 0.6), ("good", 1, 1.1), ("wrong", 1, 0.7), ("ort", 1, 1.2)),
            *(("fast, bf16", 2, 0.6), ("good", 2, 1.4), ("wrong", 2, 0.8), ("ort", 2, 1.3)),
        )
    ),
    agreements=tuple(
        Agreement(label, "ort", threads, error, limit)
        for threads in (1, 2)
        for label, error, limit in (
            ("net", 1e-6, 1e-3),
            ("fast, bf16", 0.05, LOW_PRECISION_DISAGREEMENT),
            ("good", 2e-6, 1e-3),
            ("wrong", 0.5, 1e-3),
        )
    ),
    noise=(Noise(1, 1.02), Noise(2, 1.04)),
    peers=("fast, bf16", "good", "wrong", "ort"),
    f32_peers=("good", "wrong", "ort"),
    absent=(Absent("MNN", "MNN is not installed", "pip install MNN"),),
)


def test_the_best_f32_peer_is_named_at_each_number_of_threads() -> None:
    assert [(r.to, r.threads, r.median) for r in RESULT.best_f32_peers] == [
        ("good", 1, 1.1),
        ("ort", 2, 1.3),
    ]
    caption = str(table(RESULT).caption)
    assert "net is 1.10x (1.08-1.12) as fast as the best f32 peer, good, at 1 thread\n" in caption
    assert "net is 1.30x (1.28-1.32) as fast as the best f32 peer, ort, at 2 threads\n" in caption
    assert "as fast as wrong" not in caption
    assert "outputs in lower precision differ from ort's by 5.0e-02" in caption
    assert "MNN: absent, MNN is not installed (pip install MNN)" in caption
    plain = RESULT.as_dict()
    assert [best["to"] for best in plain["best_f32_peers"]] == ["good", "ort"]
    assert plain["absent"][0]["command"] == "pip install MNN"


def test_the_section_holds_what_a_figure_needs(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: Sequence[str], **options: Any) -> Any:
        commands.append(list(command))
        payload: Any = {"artifact": f"{command[-1]}/net.so"}
        if "mobilenet_tvm.bench" in command:
            asked = [int(text) for text in command[command.index("--threads") + 1].split(",")]
            payload = {
                field: [one for one in value if one.get("threads") in (None, *asked)]
                if isinstance(value, list) and value and isinstance(value[0], dict)
                else value
                for field, value in json.loads(json.dumps(RESULT.as_dict())).items()
            }
        return subprocess.CompletedProcess(command, 0, json.dumps(payload))

    written: list[tuple[str, str]] = []
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script, "write", lambda title, text: written.append((title, text)))
    script.main(["--models", "v3-small", "--rounds", "4", "--tvm-logs", "stock"])
    assert len(commands) == 4
    for threads, compiled, measured in zip("12", commands[::2], commands[1::2], strict=True):
        assert compiled[1:9] == [
            *("-m", "mobilenet_tvm.compile", "--target", "x86", "--model", "mobilenet_v3_small"),
            *("--threads", threads),
        ]
        assert measured[1:3] == ["-m", "mobilenet_tvm.bench"]
        assert measured[3] == f"{compiled[-1]}/net.so"
        assert measured[4:10] == ["--against", "all", "--threads", threads, "--rounds", "4"]
        assert measured[10:] == ["--json", "--tvm-logs", "stock"]
    ((title, text),) = written
    assert title == script.TITLE
    assert "`python benchmarks/peers.py --models v3-small --rounds 4 --tvm-logs stock`" in text
    assert "a machine; measured FMA peak 117.0 GFLOP/s a core. 4 alternating rounds" in text
    assert text.count("MNN is absent") == 1
    assert "| net | 1 | 10.000 | 85% | good | 11.000 | 1.10x (1.08-1.12) |" in text
    assert "| net | 2 | 5.000 | 85% | ort | 6.500 | 1.30x (1.28-1.32) |" in text
    assert "| net | 1 | ours | 10.000 | 9.000-11.000 | 1 |" in text
    assert "| net | 2 | fast, bf16 | 3.000 | 2.000-4.000 | 0.60x (0.58-0.62) |" in text
    assert "quiet-machine check, p95/p5 of equal bursts: 1.02 on 1 core(s), 1.04 on" in text
    assert "by at most 5.0e-02 of its max |output| (fast, bf16; limit 2e-01)" in text
    assert "MNN is absent: MNN is not installed" in text

    script.main([str(Path("mine") / "net.so"), "--no-write"])
    assert len(written) == 1
    assert commands[-1][3] == str(Path("mine") / "net.so")
    assert "best f32 peer" in capsys.readouterr().out
