"""The verb around ``check_artifact``: arguments, output, exit status."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mobilenet_tvm import check
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.comparison import compare
from mobilenet_tvm.parity.gate import Case, ParityResult

LOGITS = np.arange(10, dtype=np.float32)[None]


def result(error=0.0, warnings=()):
    comparison = compare({"logits": LOGITS + np.float32(error)}, {"logits": LOGITS})
    cases = (Case("uniform 0", False, comparison), Case("a.png", True, comparison))
    return ParityResult("onnxruntime 1", 1e-4, cases, warnings)


@pytest.fixture
def calls(monkeypatch):
    """What the verb asked for; ``calls.result`` is what it gets."""

    class Calls(list):
        result = result()

        def __call__(self, path, **options):
            self.append((path, options))
            return self.result

    calls = Calls()
    monkeypatch.setattr(check, "check_artifact", calls)
    return calls


def test_a_pass_prints_each_output_and_the_verdict(calls, capsys):
    assert check.main(["net.so"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("uniform 0: ok   logits [1, 10] float32: max error")
    assert lines[1].startswith("a.png: ok")
    assert lines[2].startswith("parity with onnxruntime 1 passed")


def test_a_failure_is_exit_status_1_and_names_the_tolerance(calls, capsys):
    calls.result = result(error=0.09)
    assert check.main(["net.so"]) == 1
    captured = capsys.readouterr()
    assert "uniform 0: FAIL logits" in captured.out
    assert "error: parity with onnxruntime 1 failed" in captured.err
    assert "would pass at 1.0e-02" in captured.err


@pytest.mark.parametrize(("error", "status"), [(0.0, 0), (0.09, 1)])
def test_json_is_one_object_on_stdout_pass_or_fail(calls, capsys, error, status):
    calls.result = result(error, warnings=("says nothing",))
    assert check.main(["net.so", "--json"]) == status
    captured = capsys.readouterr()
    payload = json.loads(captured.out)
    assert payload["artifact"] == "net.so"
    assert payload["passed"] is (status == 0)
    assert payload["would_pass_at"] == pytest.approx(error / 9, rel=1e-4)
    assert payload["cases"][1]["outputs"][0]["output"] == "logits"
    assert payload["warnings"] == ["says nothing"]
    assert "warning: says nothing" in captured.err


def test_every_option_reaches_the_check(calls, tmp_path):
    (tmp_path / "b.png").touch()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "one.npz").touch()
    options = ["--reference=onnx", "--rtol=1e-3", "--top-k=3", "--onnx=m.onnx", "--seed=7"]
    options += ["--inputs=2", f"--images={tmp_path}", "--kinds=huge,zeros", "--jobs=3"]
    options += ["--cuda-graph"]
    assert check.main(["net.so", *options, f"--npz={tmp_path}", "--agreement"]) == 0
    ((path, given),) = calls
    assert str(path) == "net.so"
    assert str(given.pop("onnx")) == "m.onnx"
    given.pop("warn")
    given.pop("progress")
    assert given == {
        "reference": ["onnx"],
        "kinds": ("huge", "zeros"),
        "npz": (tmp_path / "one.npz",),
        "agreement": True,
        "jobs": 3,
        "tolerance": 1e-3,
        "top_k": 3,
        "seed": 7,
        "inputs": 2,
        "images": (tmp_path / "a.jpg", tmp_path / "b.png"),
        "session": None,
        "cuda_graph": True,
    }


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ("onnxruntime",)),
        (["--reference=onnx,onnxruntime"], ["onnx", "onnxruntime"]),
        (["--reference", "onnxruntime", "--reference", "onnx"], ["onnxruntime", "onnx"]),
    ],
)
def test_references_in_a_list_or_one_by_one(calls, options, names):
    assert check.main(["net.so", *options]) == 0
    ((_, given),) = calls
    assert given["reference"] == names
    assert given["inputs"] is None
    assert given["agreement"] is None


def test_a_single_reference_that_differs_says_how_to_ask_another(calls, capsys):
    calls.result = result(error=0.09)
    assert check.main(["net.so"]) == 1
    assert "ask with --reference onnxruntime,onnx" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--kinds", "nan"],
        ["--jobs", "0"],
        ["--reference", "onnx,torch"],
        ["--rtol", "-1"],
        ["--rtol", "nan"],
        ["--rtol", "inf"],
        ["--inputs", "-1"],
        ["--seed", "-1"],
        ["--top-k", "0"],
        ["--reference", "torch"],
    ],
)
def test_a_bad_option_is_exit_status_2(calls, capsys, options):
    with pytest.raises(SystemExit) as caught:
        check.main(["net.so", *options])
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err
    assert not calls


def test_bad_input_is_exit_status_2(monkeypatch, capsys, tmp_path):
    def refuse(*_arguments, **_options):
        raise UsageError("no artifact at net.so")

    monkeypatch.setattr(check, "check_artifact", refuse)
    assert check.main(["net.so"]) == 2
    assert "error: no artifact at net.so" in capsys.readouterr().err
    assert check.main(["net.so", "--images", str(tmp_path)]) == 2
    assert "no photos in" in capsys.readouterr().err
    assert check.main(["net.so", "--npz", str(tmp_path)]) == 2
    assert "no .npz file in" in capsys.readouterr().err
