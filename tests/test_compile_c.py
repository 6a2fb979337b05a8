"""``python -m mobilenet_tvm.compile --format c``: what it writes, checks and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mobilenet_tvm import check as check_verb
from mobilenet_tvm import compile as compile_verb
from mobilenet_tvm import targets
from mobilenet_tvm.build.manifest import read_manifest

TINY = ("--alpha", "0.25", "--resolution", "32")


def compile_c(folder: Path, *options: object) -> int:
    return compile_verb.main([*TINY, "--format", "c", "-o", str(folder), *map(str, options)])


@pytest.mark.slow
def test_it_is_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_c(tmp_path, "--name", "net", "--json") == 0
    preset = targets.resolve("x86").name
    payload = json.loads(capsys.readouterr().out)
    library = tmp_path / f"mobilenet_v1_0.25_32.{preset}" / "libnet.a"
    assert Path(payload["artifact"]) == library
    assert sorted(one.name for one in library.parent.iterdir()) == [
        "libnet.a",
        "libnet.manifest.json",
        "net.h",
    ]
    manifest = read_manifest(library)
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert [one.chosen for one in manifest.decision] == [True]
    assert check_verb.main([str(library), "--kinds", "normal", "--inputs", "2"]) == 0
    assert check_verb.main([str(library), "--rtol", "0", "--inputs", "1"]) == 1


@pytest.mark.slow
def test_what_cannot_be_run_is_not_called_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = "rpi4" if not targets.resolve("rpi4").runs_here() else "armv7"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compile_c(tmp_path, "--target", foreign) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"parity not checked: {foreign} does not run on this machine, and there is no qemu-" in said
    )
    (library,) = tmp_path.glob("*/*.a")
    assert library.name == "libmobilenet_v1_0_25_32.a"
    assert read_manifest(library).parity is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "so", "--name", "net"), "--name is for --format c"),
        (("--linker", "gcc"), "--linker is for a .so"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    assert compile_c(tmp_path, *options) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a b", "int", "3d"])
def test_a_name_that_c_does_not_take_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compile_c(tmp_path, "--name", name)
    assert f"invalid C identifier value: '{name}'" in capsys.readouterr().err
