from __future__ import annotations

import numpy as np
import pytest

from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity import check, compare, onnx_runner, onnxruntime_runner
from mobilenet_tvm.parity.kinds import (
    DEFAULT_KINDS,
    FAMILIES,
    KINDS,
    MadeUp,
    generate,
    plan,
    resolve,
)
from mobilenet_tvm.zoo import build

SPEC = TensorSpec("x", (1, 3, 8, 8), "float32")


def made(kind, spec=SPEC, seed=0):
    ((_, _, feed),) = generate([spec], (kind,), 1, seed)
    return feed["x"]


def names(kinds, count, seed=0):
    return [name for name, _, _ in generate([SPEC], kinds, count, seed)]


def test_every_kind_within_its_range():
    for kind in KINDS:
        assert made(kind).shape == (1, 3, 8, 8)
        assert made(kind).dtype == np.float32
    assert 0.9 < np.abs(made("uniform")).max() <= 1
    assert np.abs(made("normal")).max() > 2
    assert not made("zeros").any()
    assert 200 < np.abs(made("large")).max() <= 255
    assert 9e11 < np.abs(made("huge")).max() <= 1e12
    assert len(np.unique(made("equal"))) == 1
    assert made("equal").any()
    small = np.abs(made("denormal"))
    assert small.max() < np.finfo(np.float32).tiny
    assert np.count_nonzero(small) > 180


def test_one_of_each_kind_then_the_drawn_ones_in_turn():
    assert names(("uniform", "zeros", "huge"), None) == ["uniform 0", "zeros 0", "huge 0"]
    assert names(("uniform", "zeros", "huge"), 2) == ["uniform 0", "zeros 0"]
    assert names(("zeros", "huge"), 4) == ["zeros 0", "huge 0", "huge 1", "huge 2"]
    assert len(names(DEFAULT_KINDS, None)) == 5


def test_more_of_the_same_zeros_are_refused():
    with pytest.raises(UsageError, match="there is one input of kind zeros, and 3 were asked for"):
        names(("zeros",), 3)


def test_an_input_is_made_again_by_its_kind_and_the_seed():
    among = {name: feed["x"] for name, _, feed in generate([SPEC], DEFAULT_KINDS, 9, 3)}
    alone = {name: feed["x"] for name, _, feed in generate([SPEC], ("large",), 2, 3)}
    assert np.array_equal(alone["large 0"], among["large 0"])
    assert np.array_equal(alone["large 1"], among["large 1"])
    assert not np.array_equal(alone["large 0"], alone["large 1"])
    assert not np.array_equal(made("large", seed=4), alone["large 0"])


def test_the_plan_is_what_is_generated_and_each_input_can_be_made_alone():
    made_up = plan(("zeros", "huge"), 3)
    assert made_up == (MadeUp("zeros", 0), MadeUp("huge", 0), MadeUp("huge", 1))
    for one, (name, kind, feed) in zip(
        made_up, generate([SPEC], ("zeros", "huge"), 3, 7), strict=True
    ):
        assert (one.name, one.kind) == (name, kind)
        assert np.array_equal(one.feed([SPEC], 7)["x"], feed["x"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "float16", "float64", "int64"])
def test_other_dtypes(kind, dtype):
    values = made(kind, TensorSpec("x", (1000,), dtype))
    assert values.dtype == np.dtype(dtype)
    assert np.isfinite(values.astype(np.float64)).all()
    if kind in ("uniform", "normal", "large") and dtype != "int64":
        full = {"bool": 2, "int8": 256, "uint8": 256}.get(dtype, 1000)
        assert len(np.unique(values)) > 0.6 * full


def test_families_are_taken_apart_and_a_kind_comes_once():
    assert resolve(["huge", "adversarial"]) == ("huge", "zeros", "equal", "denormal")
    assert set(FAMILIES["all"]) == set(KINDS)
    with pytest.raises(UsageError, match="no inputs of kind nan: take uniform, "):
        resolve(["nan"])


@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_mobilenets_survive_every_kind(model, make_manifest):
    data, shapes = build(model, resolution=64).SerializeToString(), {"input": (1, 3, 64, 64)}
    manifest = make_manifest(
        inputs=(TensorSpec("input", shapes["input"], "float32"),),
        outputs=(TensorSpec("logits", (1, 1000), "float32"),),
    )
    fast, exact = onnxruntime_runner(data, shapes), onnx_runner(data, shapes)
    result = check(fast.run, manifest, exact, kinds=FAMILIES["all"])
    assert result, result.summary()
    assert all(case.conclusive for case in result.cases)
    assert result.warnings == ()


def test_alexnet_overflows_and_is_not_judged(make_manifest):
    # Its normalisation squares what no ReLU6 has limited.
    data, shapes = build("alexnet").SerializeToString(), {"input": (1, 3, 227, 227)}
    manifest = make_manifest(inputs=(TensorSpec("input", shapes["input"], "float32"),))
    fast, exact = onnxruntime_runner(data, shapes), onnx_runner(data, shapes)
    result = check(exact.run, manifest, fast, kinds=("uniform", "huge"))
    assert result, result.summary()
    assert [case.conclusive for case in result.cases] == [True, False]
    # The float64 evaluator does not overflow: against it, ONNX Runtime is what fails.
    other = check(fast.run, manifest, exact, kinds=("uniform", "huge"))
    assert [bool(case) for case in other.cases] == [True, False]


def test_a_reference_of_subnormal_numbers_says_nothing_and_may_be_flushed():
    tiny = np.full((1, 4), 1e-40, np.float32) * np.arange(1, 5, dtype=np.float32)
    flushed = compare({"y": np.zeros((1, 4), np.float32)}, {"y": tiny})
    assert flushed
    assert "subnormal numbers, which a CPU may flush" in flushed.warnings[0]
    assert not compare({"y": np.full((1, 4), 1e-30, np.float32)}, {"y": tiny})
