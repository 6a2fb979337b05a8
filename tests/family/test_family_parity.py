"""Every network of the zoo, compiled for this machine, computes what ONNX Runtime computes.

Untuned, and with random schedules of our templates. What runs is in ``prove.py``.
"""

from __future__ import annotations

from typing import Any

TOLERANCE = 1e-4


def agrees(told: dict[str, Any]) -> None:
    assert told["passed"], told["summary"]
    assert told["error"] <= TOLERANCE
    assert told["compared"] == 5
    # A reference that is zero, or the same for every input, would prove nothing.
    assert told["warnings"] == []


def test_untuned_agrees(case: Any, proofs: Any) -> None:
    agrees(proofs[case]["untuned"])
    assert proofs[case]["untuned"]["tuned"] == 0


def test_random_schedules_agree(case: Any, proofs: Any) -> None:
    assert len(proofs[case]["seeds"]) == 3
    for told in proofs[case]["seeds"]:
        agrees(told)


def test_the_artifacts_have_the_schedules_of_their_seeds(case: Any, proofs: Any) -> None:
    """TVM asked for each task's record, and no two builds have the same code."""
    found = proofs[case]
    assert found["tasks"] >= 8
    for told in found["seeds"]:
        assert told["tuned"] == found["tasks"]
    assert len({told["log_digest"] for told in found["seeds"]}) == 3
    assert len({told["so_sha256"] for told in (found["untuned"], *found["seeds"])}) == 4
    for label, choices, configs in found["drawn"]:
        # The default is left out where there is another one.
        assert len(set(configs)) == max(min(choices - 1, 3), 1), label


def test_one_broken_weight_is_noticed(case: Any, proofs: Any) -> None:
    """In the first, a middle and the last layer: the same gate fails."""
    planted = proofs[case]["planted"]
    assert len(planted) == 3
    for layer, told in planted.items():
        assert not told["passed"], layer
        assert "is off by" in told["summary"]


def test_every_kernel_is_known_and_right(case: Any, proofs: Any) -> None:
    """Each kernel's result is an ONNX tensor, and the one that the manifest says."""
    found = proofs[case]["untuned"]["bisected"]
    assert found["culprit"] is None, found["summary"]
    assert found["compared"] == found["kernels"]
    assert found["largest"] <= TOLERANCE


def test_a_broken_layer_is_the_one_that_bisection_names(case: Any, proofs: Any) -> None:
    found = proofs[case]["untuned"]["broken"]
    assert found["culprit"] is not None, found["summary"]
    assert any(node.endswith(f" {found['layer']}") for node in found["culprit"])
