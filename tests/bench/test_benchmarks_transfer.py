"""benchmarks/transfer.py: the commands it runs, and what it makes of what they say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import compile as compile_verb
from mobilenet_tvm import tune
from mobilenet_tvm.bench.results import BenchResult, Noise, ratio_by_round, summarize

from ..conftest import benchmark_script

ARGS = argparse.Namespace(time_budget="5m", tuner="autotvm", threads=2, rounds=3)


@pytest.fixture(scope="module")
def script() -> Any:
    return benchmark_script("transfer")


def compared(contenders: Any, *, threads: tuple[int, ...], rounds: int) -> BenchResult:
    """The served build takes 1.1 times the tuned one's time, in slow rounds and quick ones."""
    ms = {"served": 11.0, "untuned": 13.0, "tuned": 10.0}
    times = {c.label: [(ms[c.label] * slow,) for slow in (1.0, 1.5, 1.0)] for c in contenders}
    labels = [c.label for c in contenders]
    return BenchResult(
        machine="a CPU",
        peak_gflops=100.0,
        timings=tuple(summarize(name, threads[0], times[name], None, 100.0) for name in labels),
        ratios=tuple(
            ratio_by_round(of, to, threads[0], times[of], times[to])
            for i, of in enumerate(labels)
            for to in labels[i + 1 :]
        ),
        agreements=(),
        noise=(Noise(threads[0], 1.02),),
    )


@pytest.mark.parametrize(("bar", "verdict"), [(1.15, "met"), (1.05, "missed")])
def test_a_row_says_how_far_the_served_build_is_from_the_tuned(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bar: float, verdict: str
) -> None:
    said: list[list[str]] = []

    def verb(name: str, *options: str) -> dict[str, Any]:
        said.append([name, *options])
        return {
            "artifact": str(Path(options[-1]) / "m.so"),
            "tuned": 12,
            "transferred": 7,
            "tasks": 20,
            "decision": [{"name": "autotvm", "chosen": True}, {"name": "untuned", "chosen": False}],
        }

    monkeypatch.setattr(script, "verb", verb)
    monkeypatch.setattr(script.bench, "compare", compared)
    monkeypatch.setattr(script, "BAR", bar)
    row = script.measure("0.75-192", ARGS, tmp_path)
    text = script.section([row], ARGS, "a command")
    (line,) = [one for one in text.splitlines() if one.startswith("| 0.75-192 ")]
    assert "| 11.000 | 10.000 | 13.000 | 1.100 (1.100-1.100) | 1.300 (1.300-1.300) |" in line
    assert line.endswith(f"| 12, 7, 20 | autotvm | {verdict} |")
    head = next(one for one in text.splitlines() if one.startswith("| V1 "))
    assert head.count("|") == line.count("|")
    # The verbs take what they are given.
    parsers = {"compile": compile_verb, "tune": tune}
    for name, *options in said:
        parser = argparse.ArgumentParser()
        parsers[name].add_arguments(parser)
        assert parser.parse_args(options).threads == 2
    assert [name for name, *_ in said] == ["compile", "compile", "tune"]
