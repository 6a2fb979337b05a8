from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilenet_tvm.parity import compare
from mobilenet_tvm.parity.comparison import NonFinite

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(2, 20)).astype(np.float32)

floats = st.floats(-1e6, 1e6, width=32)


def same_shape_pair():
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)
    return shapes.flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=floats)] * 2)
    )


def only(comparison):
    (output,) = comparison.outputs
    return output


def test_equal_outputs_pass_at_tolerance_zero():
    result = compare({"y": LOGITS}, {"y": LOGITS.copy()}, 0.0)
    assert result
    assert only(result).error == 0
    assert only(result).cosine == pytest.approx(1)
    assert only(result).agreement.top1 == 1
    assert only(result).agreement.top_k == 1
    assert result.warnings == ()


def test_error_is_relative_to_the_largest_reference_element():
    reference = np.array([[0.0, 1.0, -8.0]], np.float32)
    actual = np.array([[0.5, 1.0, -8.0]], np.float32)
    output = only(compare({"y": actual}, {"y": reference}))
    assert output.scale == 8
    assert output.absolute_error == 0.5
    assert output.error == 0.5 / 8
    assert output.relative_error == math.inf  # the reference is 0 there


def test_relative_error_is_elementwise():
    reference = np.array([[2.0, 100.0]], np.float32)
    actual = np.array([[3.0, 110.0]], np.float32)
    assert only(compare({"y": actual}, {"y": reference})).relative_error == 0.5


def test_one_wrong_channel_fails_and_names_the_tolerance_that_passes():
    actual = LOGITS.copy()
    actual[:, [3, 4]] = actual[:, [4, 3]]
    result = compare({"y": actual}, {"y": LOGITS})
    assert not result
    assert result.would_pass_at > 1e-2
    assert compare({"y": actual}, {"y": LOGITS}, result.would_pass_at)
    assert f"would pass at {result.would_pass_at:.1e}" in str(result)


@given(same_shape_pair())
@settings(max_examples=60, deadline=None)
def test_would_pass_at_is_the_smallest_tolerance_that_passes(pair):
    actual, reference = pair
    threshold = compare({"y": actual}, {"y": reference}).would_pass_at
    assert compare({"y": actual}, {"y": reference}, threshold)
    if threshold > 0:
        assert not compare({"y": actual}, {"y": reference}, math.nextafter(threshold, 0))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
        elements=st.floats(width=32),
    )
)
@settings(max_examples=60, deadline=None)
def test_anything_equals_itself(values):
    assert compare({"y": values}, {"y": values.copy()}, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_element_fails_at_any_tolerance(bad):
    actual = LOGITS.copy()
    actual[1, 5] = bad
    result = compare({"y": actual}, {"y": LOGITS}, math.inf)
    assert not result
    assert result.would_pass_at == math.inf
    expected = NonFinite(nan=1) if np.isnan(bad) else NonFinite(inf=1)
    assert only(result).actual_non_finite == expected
    assert only(result).reference_non_finite == NonFinite()
    assert "NaN" in str(result)


def test_non_finite_elements_must_be_in_the_same_place_with_the_same_sign():
    reference = np.array([[1.0, np.inf, np.nan, 4.0]], np.float32)
    assert compare({"y": reference.copy()}, {"y": reference})
    assert not compare({"y": reference * [[1, -1, 1, 1]]}, {"y": reference}, math.inf)
    assert not compare({"y": reference[:, [0, 2, 1, 3]]}, {"y": reference}, math.inf)
    finite = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    assert not compare({"y": finite}, {"y": reference}, math.inf)


def test_the_finite_elements_beside_a_shared_nan_are_still_compared():
    reference = np.array([[1.0, np.nan]], np.float32)
    actual = np.array([[1.5, np.nan]], np.float32)
    result = compare({"y": actual}, {"y": reference})
    assert not result
    assert result.would_pass_at == 0.5


def test_missing_and_extra_outputs_fail_by_name():
    result = compare({"b": LOGITS}, {"a": LOGITS}, math.inf)
    assert not result
    assert [bool(output) for output in result.outputs] == [False, False]
    assert "FAIL a: missing" in str(result)
    assert "FAIL b: not an output" in str(result)


def test_an_extra_output_fails_beside_a_good_one():
    assert not compare({"a": LOGITS, "b": LOGITS}, {"a": LOGITS}, math.inf)


def test_shapes_that_would_broadcast_fail():
    result = compare({"y": LOGITS[:1]}, {"y": LOGITS}, math.inf)
    assert not result
    assert "shape [1, 20], the reference has [2, 20]" in str(result)


def test_another_dtype_fails():
    result = compare({"y": LOGITS.astype(np.float64)}, {"y": LOGITS}, math.inf)
    assert not result
    assert "dtype float64" in str(result)


def test_no_outputs_at_all_is_no_pass():
    result = compare({}, {})
    assert not result
    assert "no outputs" in str(result)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (np.zeros((1, 10), np.float32), "all zero"),
        (np.full((1, 10), 0.1, np.float32), "constant"),
        (np.linspace(0.001, 0.00100001, 10, dtype=np.float32)[None], "constant"),
        (np.full((1, 10), np.nan, np.float32), "no finite"),
        (np.zeros((0, 10), np.float32), "no finite"),
    ],
)
def test_a_reference_that_says_nothing_is_flagged(reference, why):
    result = compare({"y": reference.copy()}, {"y": reference})
    assert result
    (warning,) = result.warnings
    assert warning.startswith("y: says nothing")
    assert why in warning
    assert warning.split(": ", 1)[1] in str(result)


def test_a_single_number_is_no_constant():
    assert compare({"y": np.ones(1)}, {"y": np.ones(1)}).warnings == ()


def test_an_error_on_an_all_zero_reference_fails_at_any_finite_tolerance():
    result = compare({"y": np.full((1, 4), 1e-9)}, {"y": np.zeros((1, 4))}, 1e9)
    assert not result
    assert result.would_pass_at == math.inf


def test_probabilities_are_the_softmax_of_logits():
    reference = np.array([[0.0, math.log(3)]], np.float32)  # 1/4, 3/4
    actual = np.array([[0.0, 0.0]], np.float32)  # 1/2, 1/2
    agreement = only(compare({"y": actual}, {"y": reference})).agreement
    assert agreement.probability_error == pytest.approx(0.25)


def test_probabilities_are_taken_as_they_are():
    reference = np.array([[0.25, 0.75]], np.float32)
    actual = np.array([[0.5, 0.5]], np.float32)
    agreement = only(compare({"y": actual}, {"y": reference})).agreement
    assert agreement.probability_error == pytest.approx(0.25)


def test_top_1_is_the_share_of_rows_and_top_k_the_share_of_classes():
    reference = np.array([[9, 8, 7, 1, 0, 0], [1, 2, 3, 4, 5, 6]], np.float32)
    actual = np.array([[9, 8, 1, 7, 0, 0], [1, 2, 3, 4, 6, 5]], np.float32)
    agreement = only(compare({"y": actual}, {"y": reference}, top_k=3)).agreement
    assert agreement.top1 == 0.5
    assert agreement.top_k == pytest.approx((2 / 3 + 3 / 3) / 2)


def test_any_of_several_equally_good_classes_agrees():
    reference = np.array([[1, 5, 5]], np.float32)
    actual = np.array([[1, 5, 5.0001]], np.float32)
    assert only(compare({"y": actual}, {"y": reference})).agreement.top1 == 1


def test_top_k_of_k_classes_says_nothing():
    agreement = only(compare({"y": LOGITS[:, :5]}, {"y": LOGITS[:, :5]})).agreement
    assert agreement.top_k is None


@pytest.mark.parametrize("shape", [(4,), (1, 1), (1, 4, 2, 2)])
def test_other_shapes_are_no_class_scores(shape):
    values = RNG.normal(size=shape)
    assert only(compare({"y": values}, {"y": values})).agreement is None


def test_one_output_is_one_line():
    text = str(compare({"y": LOGITS, "z": LOGITS[:1]}, {"y": LOGITS, "z": LOGITS[:1]}))
    assert [line.split()[1] for line in text.splitlines()] == ["y", "z"]
    assert all(line.startswith("ok") for line in text.splitlines())
