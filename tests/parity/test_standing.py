from __future__ import annotations

import math

import numpy as np
import pytest

from mobilenet_tvm.parity.standing import stand

BASE = np.array([[1.0, -4.0, 2.0]], np.float32)
FAR = np.array([[1.0, -3.0, 2.0]], np.float32)
FURTHER = np.array([[1.0, -5.0, 2.0]], np.float32)


def of(artifact, onnxruntime, onnx, tolerance=1e-4):
    parties = {"artifact": artifact, "onnxruntime": onnxruntime, "onnx": onnx}
    outputs = {name: {} if value is None else {"y": value} for name, value in parties.items()}
    return stand("y", outputs, tolerance)


@pytest.mark.parametrize(
    ("values", "alone", "verdict"),
    [
        ((FAR, BASE, BASE), "artifact", "the artifact stands alone: onnxruntime and onnx agree"),
        ((BASE, FAR, BASE), "onnxruntime", "onnxruntime stands alone: the artifact and onnx agree"),
        ((BASE, BASE, FAR), "onnx", "onnx stands alone: the artifact and onnxruntime agree"),
        ((FAR, BASE, FURTHER), None, "all three differ"),
        ((BASE, BASE, BASE), None, "all agree within the tolerance"),
        ((None, BASE, BASE), "artifact", "the artifact stands alone"),
        ((BASE[0], BASE, BASE), "artifact", "the artifact stands alone"),
        ((BASE * np.nan, BASE, BASE), "artifact", "the artifact stands alone"),
        ((BASE, BASE.astype(np.float64), BASE), "onnxruntime", "onnxruntime stands alone"),
    ],
)
def test_who_stands_alone(values, alone, verdict):
    standing = of(*values)
    assert standing.alone == alone
    assert standing.verdict.startswith(verdict)
    assert "\n" not in str(standing)


def test_one_between_two_that_differ_leaves_nobody_alone():
    between = np.array([[1.0, -4.0003, 2.0]], np.float32)
    end = np.array([[1.0, -4.0006, 2.0]], np.float32)
    standing = of(end, BASE, between)
    assert standing.alone is None
    assert standing.verdict == (
        "nobody stands alone: the artifact agrees with onnx, onnxruntime agrees with onnx"
    )


def test_distances_are_shares_of_the_deciding_references_scale():
    standing = of(FAR, BASE, FURTHER)
    assert standing.scale == 4
    found = {(d.first, d.second): d.share for d in standing.distances}
    assert found == {
        ("artifact", "onnxruntime"): 0.25,
        ("artifact", "onnx"): 0.5,
        ("onnxruntime", "onnx"): 0.25,
    }
    assert standing.as_dict()["distances"][0] == {
        "between": ["artifact", "onnxruntime"],
        "share": 0.25,
    }


def test_what_cannot_be_compared_is_infinitely_far_and_null_in_json():
    standing = of(None, BASE, BASE)
    assert standing.distances[0].share == math.inf
    assert standing.as_dict()["distances"][0]["share"] is None
