"""The checks of an artifact one by one: what they raise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mobilenet_tvm.build.manifest import ParityInfo, sha256_bytes, sha256_file, write_manifest
from mobilenet_tvm.errors import CheckFailedError, UsageError
from mobilenet_tvm.parity import checks, onnxruntime_runner
from mobilenet_tvm.parity.checks import ParityFailedError, Subject

SHAPES = {"input": (1, 3, 32, 32)}


@pytest.fixture
def artifact(make_manifest, tiny_model, tmp_path, monkeypatch):
    """An artifact whose module is ONNX Runtime on the same model, plus ``error``."""
    path = tmp_path / "tiny.so"
    path.write_bytes(b"so")
    write_manifest(path, make_manifest(so_sha256=sha256_file(path)))
    runner = onnxruntime_runner(tiny_model.SerializeToString(), SHAPES)
    errors = []  # of the runs to come

    def load(_path):
        def run(feed):
            return {"logits": runner(feed)["logits"] + np.float32(errors.pop() if errors else 0)}

        return SimpleNamespace(run=run)

    monkeypatch.setattr(checks, "load", load)
    return SimpleNamespace(path=path, errors=errors)


def test_each_input_is_another_one_and_is_named(artifact):
    subject = Subject(artifact.path)
    first, second = (subject.check_input(seed) for seed in (0, 1))
    assert [case.name for r in (first, second) for case in r.cases] == ["uniform 0", "uniform 1"]
    artifact.errors[:] = [1, 1]
    told = "^parity with onnxruntime .* logits of input uniform 1 is off by [^\n]*$"
    with pytest.raises(ParityFailedError, match=told) as caught:
        subject.check_input(1)
    assert isinstance(caught.value, CheckFailedError)
    assert not caught.value.result


def test_other_bits_on_a_second_run_or_from_a_second_load_are_found(artifact):
    subject = Subject(artifact.path)
    assert subject.check_repeatable()
    artifact.errors[:] = [1e-6]  # of the reference's run: the module is loaded again for it
    with pytest.raises(ParityFailedError, match="parity with itself, loaded again, failed"):
        subject.check_repeatable()
    artifact.errors[:] = [1e-6, 0, 0]  # the third run is the module's second
    with pytest.raises(ParityFailedError, match="has other bits on a second run"):
        subject.check_repeatable()


def test_the_mark_of_the_manifest(artifact, make_manifest):
    with pytest.raises(CheckFailedError, match="was never checked"):
        Subject(artifact.path).check_mark()
    passed = ParityInfo(True, "onnxruntime", 1e-4, 1e-6, 3, 0)
    digest = sha256_file(artifact.path)
    write_manifest(artifact.path, make_manifest(so_sha256=digest, parity=passed))
    Subject(artifact.path).check_mark()


def test_the_tolerance_is_the_subjects_then_the_dtypes(artifact):
    one = {"logits": np.ones((1, 10), np.float32)}
    near = {"logits": np.full((1, 10), 1.001, np.float32)}
    assert not Subject(artifact.path).compare(near, one)
    assert Subject(artifact.path, tolerance=0.01).compare(near, one)
    assert not Subject(artifact.path, tolerance=0.01).compare(near, one, tolerance=1e-6)


def test_one_of_the_models_given_must_be_the_artifacts(
    artifact, tiny_model, make_manifest, tmp_path
):
    right, wrong, other = (tmp_path / f"{name}.onnx" for name in ("right", "wrong", "other"))
    right.write_bytes(tiny_model.SerializeToString())
    for path in (wrong, other):
        tiny_model.producer_name = path.name
        path.write_bytes(tiny_model.SerializeToString())
    assert sha256_bytes(right.read_bytes()) == Subject(artifact.path).manifest.model.digest
    assert Subject(artifact.path, (wrong, right)).check_input(0)
    with pytest.raises(UsageError, match=r"^\S*wrong.onnx is not the model that tiny was made"):
        Subject(artifact.path, (wrong,)).check_input(0)
    with pytest.raises(UsageError, match=r"none of \S*wrong.onnx, \S*other.onnx is the model"):
        Subject(artifact.path, (wrong, other)).check_input(0)
