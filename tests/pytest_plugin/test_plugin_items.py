"""``pytest --mobilenet-artifact``: the items, what they say, and how pytest chooses them."""

from __future__ import annotations

import json
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mobilenet_tvm.build.manifest import read_manifest, sha256_file

from .conftest import NAME, WITHOUT, Built, edit, verdicts

pytestmark = pytest.mark.slow  # builds a model, and starts a pytest for each test

ARTIFACT = f"artifacts/{NAME}"
ONNX = "--mobilenet-onnx=models/flowers.onnx"
CHECKS = ["manifest", "machine", "checked", "parity[uniform 0]", "parity[normal 0]", "repeatable"]
TWO = ("--mobilenet-inputs", "2")


def lines(result: pytest.RunResult, start: str) -> list[str]:
    return [line for line in result.outlines if line.startswith(start)]


def passed(result: pytest.RunResult) -> list[str]:
    return [line.split(" PASSED")[0] for line in result.outlines if " PASSED" in line]


def no_traceback(result: pytest.RunResult) -> bool:
    signs = ("Traceback", "During handling", ".py:")
    return not any(sign in line for sign in signs for line in result.outlines)


# --- all is well


def test_a_sound_artifact_passes_beside_the_projects_own_tests(project: Any) -> None:
    project.makepyfile(**{"tests/test_own": "def test_own(): pass"})
    result = project.runpytest_subprocess(
        *("tests", "-v", "--mobilenet-artifact", ARTIFACT, ONNX, *TWO),
        *("--mobilenet-images=photos", "--junitxml=out.xml"),
    )
    assert result.ret == 0
    checks = [*CHECKS[:-1], "photo[rose.png]", CHECKS[-1]]
    assert passed(result) == ["tests/test_own.py::test_own", *(f"{ARTIFACT}::{c}" for c in checks)]
    cases = ElementTree.parse(project.path / "out.xml").iter("testcase")
    named = [(case.get("classname"), case.get("name")) for case in cases]
    assert named == [
        ("tests.test_own", "test_own"),
        *((f"artifacts.{NAME}", check) for check in checks),
    ]


def test_nothing_is_loaded_to_collect(project: Any) -> None:
    """Neither a sound artifact nor a model is needed for it."""
    for name in (NAME, "other.so"):
        (project.path / "artifacts" / name).write_bytes(b"")
    result = project.runpytest_inprocess(
        "--collect-only", "-q", "--mobilenet-artifact=artifacts", *TWO
    )
    assert result.ret == 0
    for name in (NAME, "other.so"):
        assert lines(result, f"artifacts/{name}") == [f"artifacts/{name}::{c}" for c in CHECKS]


@pytest.mark.parametrize("how", ["alone", "beside -p"])
def test_two_workers_with_the_entry_point_installed(
    project: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed: make setup")
    installed(project)
    options = ["-n2", f"--mobilenet-artifact={ARTIFACT}", ONNX, *TWO, "-v"]
    if how == "alone":
        monkeypatch.setenv("PYTEST_ADDOPTS", WITHOUT)
    else:
        options += ["-k", "not parity and not repeatable"]
    result = project.runpytest_subprocess(*options)
    result.assert_outcomes(passed=6 if how == "alone" else 3)
    workers = {line.split("]")[0] for line in result.outlines if line.startswith("[gw")}
    assert workers == {"[gw0", "[gw1"}


def installed(project: Any) -> None:
    """What installing the package leaves for pytest to find."""
    entry = 'mobilenet_tvm = "_mobilenet_tvm_pytest:plugin"'
    assert f"[project.entry-points.pytest11]\n{entry}\n" in (
        Path(__file__).parents[2] / "pyproject.toml"
    ).read_text(encoding="utf-8")
    site = project.path / "site"
    info = site / "mobilenet_tvm_here-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mobilenet_tvm_here\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pytest11]\n" + entry.replace('"', "") + "\n")
    project.syspathinsert(site)
    project._monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")


def test_a_run_that_does_not_ask_for_it_does_not_import_the_package(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(project)
    monkeypatch.setenv("PYTEST_ADDOPTS", WITHOUT)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("TOPHUB_LOCATION", raising=False)
    project.makepyfile(
        """
        import os, sys

        def test_nothing_of_it(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("mobilenet_tvm")
            ours = {n for n in sys.modules if n.split(".")[0] == "mobilenet_tvm"}
            assert ours == {"mobilenet_tvm.pytest_plugin"}
            assert not {"tvm", "numpy", "onnxruntime", "onnx"} & set(sys.modules)
            assert not {"LD_PRELOAD", "TOPHUB_LOCATION"} & set(os.environ)
        """
    )
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1)


# --- a fault


def test_a_planted_fault_fails_with_the_verdict_and_lf_finds_it_again(
    project: Any, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact lies outside the project, where ids cannot be relative."""
    options = (f"--mobilenet-artifact={built.broken}", f"--mobilenet-onnx={built.broken_onnx}")
    monkeypatch.setenv("CI", "1")  # whole lines in the summary
    result = project.runpytest_subprocess(*options, *TWO)
    assert result.ret == 1
    result.assert_outcomes(failed=2, passed=4)
    assert no_traceback(result)
    told = (
        r"parity with onnxruntime \S+ failed on 1 random inputs and 0 photos: output logits of "
        r"input uniform 0 is off by \S+ of max \|reference\| \(tolerance 1.0e-04, would pass at "
        r"\S+\)"
    )
    result.stdout.re_match_lines(
        [
            rf"_+ {NAME} parity\[uniform 0\] _+",
            rf"{told}$",
            r"-+ Captured figures call -+",
            r"FAIL logits \[1, 10\] float32: max error \S+ of scale \S+ .*; would pass at \S+$",
            r"-+ the same input again; with --bisect it names the layer -+",
            r"python -m mobilenet_tvm.check /\S+/broken/flowers.x86-avx2.so --onnx /\S+\.onnx "
            r"--kinds normal --seed 0 --inputs 1$",
            rf"FAILED .*broken/flowers.x86-avx2.so::parity\[uniform 0\] - Failed: {told}$",
        ]
    )
    again = project.runpytest_subprocess(*options, *TWO, "--lf", "-v")
    again.assert_outcomes(failed=2, deselected=4)
    failed = [line for line in again.outlines if " FAILED" in line]
    assert [line.split("::")[-1].split(" FAILED")[0] for line in failed] == CHECKS[3:5]


def test_the_fault_passes_at_a_tolerance_that_is_wide_enough(project: Any, built: Built) -> None:
    result = project.runpytest_subprocess(
        *(f"--mobilenet-artifact={built.broken}", f"--mobilenet-onnx={built.broken_onnx}"),
        *("--mobilenet-tolerance=5", "-k", "parity", *TWO),
    )
    result.assert_outcomes(passed=2, deselected=4)


def test_another_machines_artifact_fails_in_words_or_is_skipped_on_demand(project: Any) -> None:
    artifact = project.path / ARTIFACT
    target = read_manifest(artifact).target
    edit(artifact, target=msgspec.structs.replace(target, arch="riscv64"))
    project.makepyfile("def test_own(mobilenet_artifact): assert False")
    options = ("--mobilenet-artifact", ARTIFACT, ONNX, *TWO, "-rs")
    result = project.runpytest_inprocess(*options)
    result.assert_outcomes(passed=2, failed=4, errors=1)
    assert no_traceback(result)
    told = verdicts(result)
    assert len(told) == 5
    for line in told:
        assert f"{ARTIFACT} is for riscv64 (preset x86-avx2), this machine is" in line
        assert line.endswith("or skip it with --mobilenet-skip-foreign")
    result = project.runpytest_inprocess(*options, "--mobilenet-skip-foreign")
    assert result.ret == 0
    result.assert_outcomes(passed=2, skipped=5)
    assert "is for riscv64" in lines(result, "SKIPPED")[0]


def test_what_was_never_checked_fails(project: Any) -> None:
    edit(project.path / ARTIFACT, parity=None)
    result = project.runpytest_inprocess(f"--mobilenet-artifact={ARTIFACT}", "-k", "checked")
    result.assert_outcomes(failed=1, deselected=8)
    (told,) = verdicts(result)
    assert "was never checked: run python -m mobilenet_tvm.check" in told
    assert no_traceback(result)


def test_a_damaged_file_fails(project: Any) -> None:
    raw = bytearray((project.path / ARTIFACT).read_bytes())
    raw[len(raw) // 2] ^= 1
    (project.path / ARTIFACT).write_bytes(raw)
    result = project.runpytest_inprocess("--mobilenet-artifact", ARTIFACT, ONNX, *TWO)
    result.assert_outcomes(failed=6)
    assert all("is not the file its manifest describes" in t for t in verdicts(result))


# --- options


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ([], "uniform 0, normal 0, zeros 0, large 0, equal 0"),
        (
            ["--mobilenet-kinds=adversarial, uniform"],
            "zeros 0, equal 0, huge 0, denormal 0, uniform 0",
        ),
        (
            ["--mobilenet-kinds=zeros,large", "--mobilenet-inputs=4"],
            "zeros 0, large 0, large 1, large 2",
        ),
    ],
)
def test_the_kinds_are_counted_as_check_counts_them(
    project: Any, options: list[str], inputs: str
) -> None:
    result = project.runpytest_inprocess(
        *("--collect-only", "-q", f"--mobilenet-artifact={ARTIFACT}", *options)
    )
    found = lines(result, f"{ARTIFACT}::parity")
    assert found == [f"{ARTIFACT}::parity[{name}]" for name in inputs.split(", ")]


def test_a_failing_input_is_made_again_by_the_command_it_prints(
    project: Any, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone among its kind's inputs, as no item makes those before it."""
    edit(project.path / ARTIFACT, model=read_manifest(built.broken).model)
    (project.path / "models" / "flowers.onnx").write_bytes(built.broken_onnx.read_bytes())
    project.makeini("[pytest]\nmobilenet_kinds = normal, large\nmobilenet_inputs = 4")
    options = (f"--mobilenet-artifact={ARTIFACT}", ONNX, "--junitxml=out.xml")
    result = project.runpytest_subprocess(f"{ARTIFACT}::parity[large 1]", *options)
    result.assert_outcomes(failed=1)
    heading = "- the same input again; with --bisect it names the layer -"
    (command,) = (
        below
        for above, below in zip(result.outlines, result.outlines[1:], strict=False)
        if heading in above
    )
    assert command == (
        f"python -m mobilenet_tvm.check {ARTIFACT} --onnx models/flowers.onnx --kinds large "
        "--seed 0 --inputs 2"
    )
    assert command in (project.path / "out.xml").read_text(encoding="utf-8")
    (figures,) = lines(result, "FAIL logits")
    _, *arguments = shlex.split(command)
    again = project.run(sys.executable, *arguments, "--json", "--bisect")
    assert again.ret == 1
    told = json.loads(again.stdout.str())
    assert [case["input"] for case in told["cases"]] == ["large 0", "large 1"]
    ((output,),) = (c["outputs"] for c in told["cases"] if c["input"] == "large 1")
    assert f"absolute {output['absolute_error']:.1e}, " in figures
    assert f"cosine {output['cosine']:.6f}, " in figures
    assert told["bisect"]["reproducer"] is not None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mobilenet-artifact=gone.so"], "--mobilenet-artifact: no file at .*gone.so: correct"),
        (["--mobilenet-artifact=g/*.so"], r"--mobilenet-artifact: no file at .*g/\*.so: correct"),
        (["--mobilenet-artifact=models"], "no .so in the folder .*models: correct"),
        (["--mobilenet-onnx=gone.onnx"], "--mobilenet-onnx: no file at .*gone.onnx: correct"),
        (["--mobilenet-reference=torch"], "torch: it is one of onnxruntime, onnx"),
        (["--mobilenet-images=gone"], "mobilenet images: no folder of photos at .*gone"),
        (
            ["--mobilenet-kinds=uniform,nan"],
            "mobilenet kinds: no inputs of kind nan: take uniform, ",
        ),
        (
            ["--mobilenet-kinds=zeros", "--mobilenet-inputs=2"],
            "mobilenet inputs: there is one input of kind zeros, and 2 were asked for: name",
        ),
        (["--mobilenet-inputs=0"], "mobilenet inputs 0 and no images: parity needs an input"),
        (["--mobilenet-inputs=1.5"], "mobilenet inputs 1.5: it must be a whole number, 0 or more"),
        (["--mobilenet-tolerance=nan"], "mobilenet tolerance nan: it must be a number, 0 or more"),
    ],
)
def test_what_is_wrong_with_an_option_is_one_line(
    project: Any, options: list[str], told: str
) -> None:
    given = [f"--mobilenet-artifact={ARTIFACT}"] if "artifact" not in options[0] else []
    result = project.runpytest_inprocess(*given, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.re_match_lines([f"ERROR: .*{told}.*"])
    assert len([line for line in result.errlines if line]) == 1
    assert not any(result.outlines)


def test_settings_come_from_the_ini_file_too(project: Any) -> None:
    """Their paths are relative to that file; they are for runs that name nothing."""
    project.makepyprojecttoml(
        """
        [tool.pytest.ini_options]
        mobilenet_artifacts = "arti*/*.so"
        mobilenet_onnx = "models/*.onnx"
        mobilenet_images = "photos"
        mobilenet_inputs = 2
        mobilenet_kinds = ["huge", "zeros,large"]
        """
    )
    project.makepyfile(**{"tests/test_own": "def test_own(mobilenet_artifact): pass"})
    (project.path / "sub").mkdir()
    project.chdir()
    named = project.runpytest_inprocess("--collect-only", "-q", "tests")
    assert lines(named, "tests") == [f"tests/test_own.py::test_own[{NAME}]"]
    assert not lines(named, "artifacts")
    one = project.runpytest_inprocess("--collect-only", "-q", f"{ARTIFACT}::photo[rose.png]")
    assert lines(one, "artifacts") == [f"{ARTIFACT}::photo[rose.png]"]
    project._monkeypatch.chdir(project.path / "sub")
    everything = project.runpytest_inprocess("--collect-only", "-q")
    checks = [*CHECKS[:3], "parity[huge 0]", "parity[zeros 0]", "photo[rose.png]", "repeatable"]
    assert lines(everything, "artifacts") == [f"{ARTIFACT}::{check}" for check in checks]


def test_a_named_check_is_run_alone(project: Any) -> None:
    result = project.runpytest_inprocess(
        "-v", f"{ARTIFACT}::machine", f"--mobilenet-artifact={ARTIFACT}"
    )
    assert passed(result) == [f"{ARTIFACT}::machine"]


def test_the_model_is_one_of_those_given(project: Any) -> None:
    other = project.path / "models" / "a.onnx"
    other.write_bytes((project.path / "models" / "flowers.onnx").read_bytes())
    append_a_name(other)
    options = (f"--mobilenet-artifact={ARTIFACT}", "--mobilenet-inputs=1", "-k", "uniform")
    both = project.runpytest_subprocess(*options, "--mobilenet-onnx=models")
    both.assert_outcomes(passed=1, deselected=4)
    wrong = project.runpytest_subprocess(*options, "--mobilenet-onnx=models/a.onnx")
    (told,) = verdicts(wrong)
    assert "models/a.onnx is not the model that flowers.x86-avx2 was made from" in told
    assert sha256_file(other) != read_manifest(project.path / ARTIFACT).model.digest


def append_a_name(path: Path) -> None:
    """The same network in other bytes."""
    import onnx

    model = onnx.load(path)
    model.producer_name = "another"
    onnx.save(model, path)
