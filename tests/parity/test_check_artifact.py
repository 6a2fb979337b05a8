from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mobilenet_tvm import runtime
from mobilenet_tvm.build.manifest import manifest_path, read_manifest, write_manifest
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity import check_artifact, onnxruntime_runner


@pytest.fixture
def artifact(make_manifest, tiny_model, tmp_path, monkeypatch):
    """An artifact whose module is ONNX Runtime on the same model."""
    path = tmp_path / "tiny.so"
    path.touch()
    write_manifest(path, make_manifest())
    runner = onnxruntime_runner(tiny_model.SerializeToString(), {"input": (1, 3, 32, 32)})
    module = SimpleNamespace(run=runner.run, manifest=read_manifest(path))
    monkeypatch.setattr(runtime, "load", lambda _path, **_how: module)
    return SimpleNamespace(path=path, module=module, runner=runner)


@pytest.mark.parametrize("reference", ["onnxruntime", "onnx"])
def test_a_pass_marks_the_manifest(artifact, reference):
    before = read_manifest(artifact.path)
    result = check_artifact(artifact.path, reference=reference, inputs=2, seed=5)
    assert result
    after = read_manifest(artifact.path)
    assert after.parity == result.info()
    assert after.parity.passed
    assert after.parity.reference.startswith(f"{reference} ")
    assert after.model == before.model


def test_a_failure_marks_the_manifest_too(artifact):
    def off_by_one(feed):
        return {"logits": artifact.runner(feed)["logits"] + 1}

    artifact.module.run = off_by_one
    assert not check_artifact(artifact.path, inputs=1)
    parity = read_manifest(artifact.path).parity
    assert not parity.passed
    assert parity.max_error > 0.01


def test_a_manifest_that_cannot_be_written_is_a_warning(artifact):
    # The folder in the way of the new manifest stands for any folder that is not writable.
    manifest = manifest_path(artifact.path)
    manifest.with_suffix(".json.tmp").mkdir()
    warnings = []
    assert check_artifact(artifact.path, inputs=1, warn=warnings.append)
    (warning,) = warnings
    assert "cannot be written" in warning
    assert json.loads(manifest.read_text())["parity"] is None


def test_an_unknown_reference_is_refused(artifact):
    with pytest.raises(UsageError, match="no reference torch: take one of onnxruntime, onnx"):
        check_artifact(artifact.path, reference="torch")


def test_several_references_the_first_decides(artifact):
    result = check_artifact(artifact.path, reference=("onnx", "onnxruntime", "onnx"), inputs=1)
    assert result
    kept = read_manifest(artifact.path).parity
    assert [name.split()[0] for name in kept.references] == ["onnx", "onnxruntime"]
    assert kept.reference == kept.references[0]


def test_the_manifest_says_how_to_make_the_inputs_again(artifact, tmp_path):
    np.savez(tmp_path / "mine.npz", input=np.ones((1, 3, 32, 32), np.float32))
    check_artifact(
        artifact.path, kinds=("adversarial",), inputs=6, seed=11, npz=[tmp_path / "mine.npz"]
    )
    kept = read_manifest(artifact.path).parity
    assert kept.kinds == {"zeros": 1, "equal": 2, "huge": 2, "denormal": 1}
    assert kept.inputs == 6
    assert kept.seed == 11
    assert [one.name for one in kept.npz] == ["mine.npz"]
    assert kept.worst is not None


def test_an_unknown_kind_is_refused(artifact):
    with pytest.raises(UsageError, match="no inputs of kind nan"):
        check_artifact(artifact.path, kinds=("nan",))


def test_an_artifact_replaced_meanwhile_is_not_marked(artifact, make_manifest):
    def compiled_again(feed):
        write_manifest(artifact.path, make_manifest(so_sha256="sha256:new"))
        return artifact.runner(feed)

    artifact.module.run = compiled_again
    with pytest.raises(UsageError, match="was replaced while it was checked"):
        check_artifact(artifact.path, inputs=1)
    assert read_manifest(artifact.path).parity is None
