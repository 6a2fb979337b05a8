"""The candidates' folder: gone afterwards, also after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenet_tvm.cli.scratch import folder_beside
from mobilenet_tvm.errors import DeviceError

KILLED = """
import os, signal, sys
from pathlib import Path
from mobilenet_tvm.cli.scratch import folder_beside
with folder_beside(Path(sys.argv[1])) as folder:
    (folder / "mix").mkdir()
    (folder / "mix" / "net.so").write_bytes(b"17 MB")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_runs_folder_is_gone_with_the_next_run(tmp_path: Path) -> None:
    artifact = tmp_path / "out" / "net.so"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(artifact)], check=False)
    assert killed.returncode == -9
    (left,) = artifact.parent.iterdir()
    assert (left / "mix" / "net.so").exists()
    with folder_beside(artifact) as folder:
        assert list(artifact.parent.iterdir()) == [folder]
    assert os.listdir(artifact.parent) == []


def test_a_living_runs_folder_and_all_else_stay(tmp_path: Path) -> None:
    artifact = tmp_path / "net.so"
    artifact.write_text("the old one")
    with folder_beside(artifact) as first:
        (first / "net.so").write_text("being built")
        with folder_beside(artifact) as second:
            assert first != second
        assert (first / "net.so").read_text() == "being built"
    assert os.listdir(tmp_path) == ["net.so"]


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder_beside(tmp_path / "net.so"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_made_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    artifact = tmp_path / "file" / "net.so"
    with pytest.raises(DeviceError, match="cannot write"), folder_beside(artifact):
        pass
