"""The checks of an artifact one by one: what they raise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mobilenet_tvm.build.manifest import (
    ModelInfo,
    ParityInfo,
    TensorSpec,
    sha256_bytes,
    sha256_file,
    write_manifest,
)
from mobilenet_tvm.errors import CheckFailedError, UsageError
from mobilenet_tvm.parity import Reference, checks, onnxruntime_runner
from mobilenet_tvm.parity.checks import NotJudgedError, ParityFailedError, Subject
from mobilenet_tvm.parity.gate import check_feeds
from mobilenet_tvm.parity.kinds import MadeUp, generate

SHAPES = {"input": (1, 3, 32, 32)}
SPECS = [TensorSpec("input", SHAPES["input"], "float32")]


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


def test_an_input_alone_is_the_one_that_check_makes(artifact, monkeypatch):
    fed = []
    monkeypatch.setattr(
        checks, "check_feeds", lambda *how, **more: fed.append(how[3]) or check_feeds(*how, **more)
    )
    subject = Subject(artifact.path)
    among = {name: feed for name, _, feed in generate(SPECS, ("zeros", "normal"), 4, 3)}
    result = subject.check_input(MadeUp("normal", 2), seed=3)
    assert [case.name for case in result.cases] == ["normal 2"]
    (((name, kind, feed),),) = fed
    assert (name, kind) == ("normal 2", "normal")
    assert np.array_equal(feed["input"], among["normal 2"]["input"])
    artifact.errors[:] = [1, 1]
    told = "^parity with onnxruntime .* logits of input normal 2 is off by [^\n]*$"
    with pytest.raises(ParityFailedError, match=told) as caught:
        subject.check_input(MadeUp("normal", 2), seed=3)
    assert isinstance(caught.value, CheckFailedError)
    assert not caught.value.result


def test_where_the_reference_overflows_nothing_is_judged(artifact, monkeypatch):
    overflow = Reference("it", lambda _: {"logits": np.full((1, 10), np.inf, np.float32)})
    monkeypatch.setitem(checks.RUNNERS, "onnxruntime", lambda *_: overflow)
    subject = Subject(artifact.path)
    with pytest.raises(NotJudgedError, match=r"^[^\n]*input huge 0: the reference overflows, "):
        subject.check_input(MadeUp("huge", 0))
    artifact.errors[:] = [1, 0]  # other bits on a second run are wrong all the same
    with pytest.raises(ParityFailedError, match="has other bits on a second run"):
        subject.check_input(MadeUp("huge", 0))
    with pytest.raises(ParityFailedError):
        subject.check_input(MadeUp("large", 0))


def test_the_command_names_the_model_that_fits_and_what_was_asked_for(
    artifact, tiny_model, tmp_path
):
    right, wrong = tmp_path / "the right.onnx", tmp_path / "wrong.onnx"
    right.write_bytes(tiny_model.SerializeToString())
    tiny_model.producer_name = "wrong"
    wrong.write_bytes(tiny_model.SerializeToString())
    subject = Subject(artifact.path, (wrong, right), "onnx", 1e-05)
    assert subject.again(MadeUp("equal", 1), tmp_path, seed=4) == (
        "python -m mobilenet_tvm.check tiny.so --onnx 'the right.onnx' --reference onnx "
        "--rtol 1e-05 --kinds equal --seed 4 --inputs 2"
    )
    assert Subject(artifact.path).again(tmp_path / "a.png", tmp_path / "elsewhere") == (
        f"python -m mobilenet_tvm.check {artifact.path} --inputs 0 --images {tmp_path}/a.png"
    )


def test_errors_name_the_option_that_the_user_has(artifact, make_manifest, tmp_path):
    gone = ModelInfo("tiny", "sha256:0", path=str(tmp_path / "gone.onnx"))
    manifest = make_manifest(so_sha256=sha256_file(artifact.path), model=gone)
    write_manifest(artifact.path, manifest)
    for option in ("--onnx", "--mobilenet-onnx"):
        subject = Subject(artifact.path, onnx_option=option)
        with pytest.raises(UsageError, match=rf"is needed \(or pass {option}\): "):
            subject.check_input(MadeUp("uniform", 0))


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
    assert Subject(artifact.path, (wrong, right)).check_input(MadeUp("uniform", 0))
    with pytest.raises(UsageError, match=r"^\S*wrong.onnx is not the model that tiny was made"):
        Subject(artifact.path, (wrong,)).check_input(MadeUp("uniform", 0))
    with pytest.raises(UsageError, match=r"none of \S*wrong.onnx, \S*other.onnx is the model"):
        Subject(artifact.path, (wrong, other)).check_input(MadeUp("uniform", 0))
