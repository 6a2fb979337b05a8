"""The fixtures for a project's own tests."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from .conftest import NAME, Built, verdicts

pytestmark = pytest.mark.slow  # builds a model, and starts a pytest for each test

OWN = """
    import numpy as np
    import pytest

    FEED = {"input": np.full((1, 3, 32, 32), 0.5, np.float32)}

    def test_artifact(mobilenet_artifact):
        assert mobilenet_artifact.manifest.model.name == "flowers"
        assert mobilenet_artifact.run(FEED)["logits"].shape == (1, 10)

    def test_reference(mobilenet_artifact, mobilenet_reference, mobilenet_compare):
        compared = mobilenet_compare(mobilenet_artifact.run(FEED), mobilenet_reference(FEED))
        assert 0 < compared.would_pass_at < compared.tolerance == 1e-4

    def test_compare(mobilenet_compare):
        one = {"logits": np.ones((1, 10), np.float32)}
        two = {"logits": np.full((1, 10), 1.5, np.float32)}
        assert mobilenet_compare(one, two, tolerance=0.5)
        mobilenet_compare(one, two)
"""


def test_a_test_runs_once_for_each_artifact(project: Any, built: Built) -> None:
    project.makepyfile(test_own=OWN)
    for path in built.broken.parent.iterdir():
        shutil.copy(path, project.path / path.name.replace("flowers", "broken"))
    result = project.runpytest_subprocess(
        *("-v", "test_own.py", "-k", "test_own.py", "--mobilenet-artifact=artifacts"),
        *("--mobilenet-artifact=broken.*.so", "--mobilenet-onnx=models"),
        f"--mobilenet-onnx={built.broken_onnx}",
    )
    outcomes = {
        line.split(" ")[0].split("::")[-1]: line.split()[1]
        for line in result.outlines
        if line.startswith("test_own.py::")
    }
    assert outcomes == {
        f"test_artifact[{NAME}]": "PASSED",
        f"test_reference[{NAME}]": "PASSED",
        f"test_compare[{NAME}]": "FAILED",
        "test_artifact[broken.x86-avx2.so]": "PASSED",
        "test_reference[broken.x86-avx2.so]": "FAILED",
        "test_compare[broken.x86-avx2.so]": "FAILED",
    }
    # The line of the test that asked, then the figures; none of our own frames.
    result.stdout.fnmatch_lines(
        [
            ">       mobilenet_compare(one, two)",
            "E       AssertionError: FAIL logits [[]1, 10[]] float32: max error 3.3e-01 of scale "
            "1.5 (tolerance 1.0e-04)*would pass at 3.3e-01*",
        ]
    )
    assert not any("pytest_plugin" in line for line in result.outlines)


def test_with_no_artifact_they_are_skipped_in_words(project: Any) -> None:
    project.makepyfile(test_own=OWN)
    result = project.runpytest_inprocess("-rs")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(
        ["SKIPPED*no artifact was given: pytest --mobilenet-artifact FILE, or mobilenet_artifacts*"]
    )


def test_a_model_that_is_not_here_is_told_without_a_traceback(project: Any) -> None:
    project.makepyfile("def test_own(mobilenet_reference): assert False")
    result = project.runpytest_inprocess("--mobilenet-artifact=artifacts", "-k", "test_own")
    result.assert_outcomes(errors=1, deselected=9)
    (told,) = verdicts(result)
    assert told.startswith("the model of flowers.x86-avx2 is needed (or pass --mobilenet-onnx)")
