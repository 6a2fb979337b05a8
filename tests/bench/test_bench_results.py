"""The arithmetic of a comparison, on made-up times."""

from __future__ import annotations

import io
import json

import msgspec
import numpy as np
import pytest
from rich.console import Console

from mobilenet_tvm.bench.results import (
    Agreement,
    BenchResult,
    Noise,
    ratio_by_round,
    relative_error,
    summarize,
    table,
)

LABELS = ("tuned", "ONNX Runtime 1.23.2")


def result(spread: float = 1.02, error: float = 1e-6, label: str = LABELS[0]) -> BenchResult:
    fast, slow = [(10.0, 10.0)] * 4, [(11.0, 11.0)] * 4
    timings = (summarize(label, 1, fast, 569_000_000, 117.0),)
    timings += (summarize(LABELS[1], 1, slow, 569_000_000, 117.0),)
    return BenchResult(
        machine="AMD EPYC (2 cores)",
        peak_gflops=117.0,
        timings=timings,
        ratios=(ratio_by_round(label, LABELS[1], 1, fast, slow),),
        agreements=(Agreement(label, LABELS[1], 1, error),),
        noise=(Noise(1, spread),),
    )


def render(value: BenchResult, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(value))
    return console.export_text()


def test_timing_pools_the_inferences_of_all_rounds() -> None:
    timing = summarize("x", 2, [(1.0, 2.0), (3.0,), (4.0, 5.0)], 1_500_000_000, 1000.0)
    assert (timing.median_ms, timing.samples, timing.rounds) == (3.0, 5, 3)
    assert (timing.p5_ms, timing.p95_ms) == pytest.approx((1.2, 4.8))
    assert timing.gflops == pytest.approx(1000.0)  # two operations per multiply-add
    assert timing.peak_fraction == pytest.approx(0.5)  # of two cores


def test_unknown_mult_adds_give_no_rate() -> None:
    timing = summarize("x", 1, [(1.0,)], None, 100.0)
    assert timing.gflops is None
    assert timing.peak_fraction is None


def test_ratio_pairs_rounds_so_that_a_slow_round_cancels() -> None:
    tuned = [(10.0, 10.0, 99.0), (40.0, 40.0, 40.0), (10.0, 10.0, 10.0)]
    other = [(12.0, 12.0, 12.0), (48.0, 48.0, 48.0), (12.0, 12.0, 50.0)]
    ratio = ratio_by_round("tuned", "other", 1, tuned, other)
    assert (ratio.p5, ratio.median, ratio.p95) == pytest.approx((1.2, 1.2, 1.2))
    assert str(ratio) == "tuned is 1.20x (1.20-1.20) as fast as other at 1 thread"


def test_relative_error_is_of_the_largest_reference_of_the_worst_output() -> None:
    references = [np.array([0.0, -4.0]), np.array([100.0])]
    assert relative_error([np.array([0.4, -4.0]), np.array([100.0])], references) == 0.1
    assert relative_error(references, references) == 0
    assert relative_error([np.array([0.25])], [np.array([0.0])]) == 0.25


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_never_agrees(bad: float) -> None:
    bad_output = [np.array([bad, 1.0])]
    assert relative_error(bad_output, [np.array([1.0, 1.0])]) == float("inf")
    assert relative_error(bad_output, bad_output) == float("inf")


def test_warnings_name_noise_and_disagreement() -> None:
    assert result().warnings == ()
    (noisy,) = result(spread=1.5).warnings
    assert "not quiet" in noisy
    assert "1.50x" in noisy
    (differing,) = result(error=2e-3).warnings
    assert "tuned and ONNX Runtime 1.23.2 disagree by 2.0e-03" in differing


def test_table_fits_a_terminal_and_loses_nothing() -> None:
    text = render(result(label="mobilenet_v1_1.0_224-tuned"))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for figure in ("10.00-10.00", "113.8", "97%", "1.10x", "1.10x (1.10-1.10)", "117.0 GFLOP/s"):
        assert figure in text
    assert "1.02 on 1 core" in text


def test_label_with_brackets_is_no_markup() -> None:
    assert "a[b]c" in render(result(label="a[b]c"), width=120)


def test_one_contender_alone_has_no_speed_column() -> None:
    alone = result()
    alone = BenchResult(alone.machine, 117.0, alone.timings[:1], (), (), alone.noise)
    assert "speed" not in render(alone)
    assert "10.00" in render(alone)


def test_as_dict_is_json() -> None:
    decoded = json.loads(msgspec.json.encode(result(spread=1.5).as_dict()))
    assert decoded["timings"][0]["label"] == "tuned"
    assert decoded["ratios"][0]["median"] == pytest.approx(1.1)
    assert decoded["noise"] == [{"threads": 1, "spread": 1.5}]
    assert len(decoded["warnings"]) == 1


def test_lookup_by_label() -> None:
    value = result()
    assert value.timing("tuned", 1).median_ms == 10
    assert value.ratio(*LABELS, 1).median == pytest.approx(1.1)
    with pytest.raises(KeyError):
        value.timing("tuned", 2)
    with pytest.raises(KeyError):
        value.ratio(*reversed(LABELS), 1)
