"""The choice among candidates, on made-up times."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm.bench import decide as deciding
from mobilenet_tvm.bench.decide import CLEARLY, Candidate, Choice, choose, decide
from mobilenet_tvm.bench.results import BenchResult, Noise, ratio_by_round, summarize


def result(spread: float = 1.0, threads: int = 1, **rounds_ms: list[float]) -> BenchResult:
    """One inference a round of each contender."""
    rounds = {name: [(time,) for time in times] for name, times in rounds_ms.items()}
    return BenchResult(
        machine="a CPU",
        peak_gflops=100.0,
        timings=tuple(summarize(name, threads, rounds[name], None, 100.0) for name in rounds),
        ratios=tuple(
            ratio_by_round(of, to, threads, rounds[of], rounds[to])
            for of, to in combinations(rounds, 2)
        ),
        agreements=(),
        noise=(Noise(threads, spread),),
    )


def built(*not_tuned: str, **layout_transforms: int) -> list[Candidate]:
    """Candidates with so many layout transforms, some of them untuned."""
    return [
        Candidate(name, Path(f"{name}.so"), count, name not in not_tuned)
        for name, count in layout_transforms.items()
    ]


@pytest.mark.parametrize("order", [("autotvm", "ansor", "mix"), ("mix", "ansor", "autotvm")])
def test_the_fastest_is_chosen_whatever_the_order(order: tuple[str, ...]) -> None:
    times = {"autotvm": [11.0], "ansor": [13.2], "mix": [10.0]}
    choice = choose(
        result(**{name: times[name] * 3 for name in order}), built(autotvm=1, ansor=1, mix=9)
    )
    assert choice.chosen == "mix"
    assert choice.why == "fastest of 3 measured end to end at 1 thread"
    assert choice.median_ms == {"autotvm": 11.0, "ansor": 13.2, "mix": 10.0}
    assert choice.ratio == pytest.approx({"autotvm": 1.1, "ansor": 1.32, "mix": 1.0})


def test_rounds_are_paired() -> None:
    """In two of three rounds the machine is slow; in each one ``mix`` is the faster."""
    choice = choose(
        result(autotvm=[11.0, 30.0, 30.0], mix=[10.0, 27.0, 29.0]), built(autotvm=1, mix=5)
    )
    assert choice.chosen == "mix"
    assert choice.ratio["autotvm"] == pytest.approx(1.1)


@pytest.mark.parametrize(("ahead", "chosen"), [(0.999, "mix"), (1.001, "autotvm")])
def test_within_the_noise_fewer_transforms_win(ahead: float, chosen: str) -> None:
    slow = 10 * (1 + (CLEARLY - 1) / ahead)
    choice = choose(result(2.0, 2, autotvm=[slow] * 5, mix=[10.0] * 5), built(autotvm=1, mix=5))
    assert choice.chosen == chosen
    assert any("not quiet" in line for line in choice.warnings)
    if chosen == "autotvm":
        close = "within the noise of the fastest, mix (1.0 % at 2 threads)"
        assert choice.why == f"{close}, with fewer layout transforms"
        assert choice.ratio["mix"] < 1
    else:
        assert choice.why == "fastest of 2 measured end to end at 2 threads"


def test_of_equally_many_transforms_the_faster_wins() -> None:
    choice = choose(result(ansor=[10.05] * 3, mix=[10.0] * 3), built(ansor=2, mix=2))
    assert choice.chosen == "mix"


@pytest.mark.parametrize("order", [("autotvm", "untuned"), ("untuned", "autotvm")])
@pytest.mark.parametrize(("tuned_ms", "chosen"), [(10.05, "autotvm"), (10.2, "untuned")])
def test_an_untuned_build_must_be_clearly_faster(
    order: tuple[str, ...], tuned_ms: float, chosen: str
) -> None:
    times = {"autotvm": [tuned_ms] * 3, "untuned": [10.0] * 3}
    candidates = built("untuned", autotvm=1, untuned=1)
    choice = choose(result(**{name: times[name] for name in order}), candidates)
    assert choice.chosen == chosen
    close = "within the noise of the fastest, untuned (0.5 % at 1 thread), and tuned"
    assert choice.why == (
        close if chosen == "autotvm" else "fastest of 2 measured end to end at 1 thread"
    )


def test_of_two_untuned_builds_the_faster_wins() -> None:
    """Such as one by other shapes' records, which nobody measured on these layers."""
    candidates = built("lent", "untuned", lent=1, untuned=1)
    assert choose(result(lent=[10.05], untuned=[10.0]), candidates).chosen == "untuned"
    assert choose(result(lent=[10.0], untuned=[10.05]), candidates).chosen == "lent"


def test_the_candidates_run_at_the_deployed_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compare(contenders: Any, **options: Any) -> BenchResult:
        asked.append(([(c.label, c.kind, c.path) for c in contenders], options))
        return result(a=[2.0], b=[1.0])

    monkeypatch.setattr(deciding, "compare", compare)
    choice = decide(
        [Candidate("a", Path("a.so"), 0), Candidate("b", Path("b.so"), 4)], threads=2, rounds=3
    )
    assert isinstance(choice, Choice)
    assert choice.chosen == "b"
    contenders, options = asked[0]
    assert contenders == [("a", "artifact", "a.so"), ("b", "artifact", "b.so")]
    assert (options["threads"], options["rounds"]) == ((2,), 3)
