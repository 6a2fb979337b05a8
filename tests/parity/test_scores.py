from __future__ import annotations

import numpy as np
import pytest

from mobilenet_tvm.parity.scores import as_scores, best, is_distribution, probabilities, softmax
from mobilenet_tvm.parity.tolerances import tolerance_for


def test_scores_of_an_exporter_that_keeps_the_spatial_axes():
    assert as_scores(np.zeros((2, 10, 1, 1), np.float32)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(10,), (2, 1), (0, 10), (1, 10, 7, 7)])
def test_what_is_no_class_scores(shape):
    assert as_scores(np.zeros(shape)) is None


def test_softmax_of_huge_logits_does_not_overflow():
    assert softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])).tolist() == [[1, 0], [0.5, 0.5]]


def test_a_distribution_is_left_alone_and_logits_are_not():
    distribution = np.array([[0.2, 0.8]])
    assert probabilities(distribution) is distribution
    assert probabilities(np.array([[0.0, 0.0]])).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("row", [[0.5, 0.6], [-0.5, 1.5], [np.nan, 1.0], [np.inf, 0.0]])
def test_what_is_no_distribution(row):
    assert not is_distribution(np.array([[0.5, 0.5], row]))


def test_best_first_and_the_lower_index_of_equals():
    assert best(np.array([[1.0, 7.0, 7.0, 9.0]]), 3).tolist() == [[3, 1, 2]]
    assert best(np.array([[1.0, 2.0]]), 5).tolist() == [[1, 0]]


def test_nan_is_never_best():
    assert best(np.array([[np.nan, 1.0]]), 1).tolist() == [[1]]


def test_the_loosest_tolerance_of_the_outputs_counts():
    assert tolerance_for(["float32"]) == 1e-4
    assert tolerance_for(["float32", "float16"]) == tolerance_for(["float16"]) > 1e-4
    assert tolerance_for(["int64"]) == 0
