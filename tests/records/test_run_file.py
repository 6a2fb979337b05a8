"""The run file beside a log."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import msgspec
import pytest

from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.records import read_run, run_path, write_run

from ..conftest import run_here

RUN = run_here(
    preset="x86-avx512",
    target="llvm -mcpu=skylake-avx512",
    cpu="a CPU",
    spent_s=12.5,
    trials=3,
    failures={"build_error": 1},
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "tiny.autotvm.jsonl"


def test_stands_beside_its_log(log: Path) -> None:
    assert run_path(log) == log.with_name("tiny.autotvm.run.json")


def test_is_read_as_it_was_written(log: Path) -> None:
    assert read_run(log) is None
    write_run(log, RUN)
    assert read_run(log) == RUN
    assert json.loads(run_path(log).read_text())["timing"] == "measured"
    assert [path.name for path in log.parent.iterdir()] == ["tiny.autotvm.run.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-5],
        lambda data: b"",
        lambda data: b"\x00" * len(data),
        lambda data: data.replace(b"a CPU", b"\xff\xfe"),
        lambda data: data.replace(b'"trials": 3', b'"trials": "three"'),
        lambda data: data.replace(b'"trials": 3,', b""),
        lambda data: data.replace(b"{", b'{"surprise": 1,', 1),
        lambda data: data.replace(b'"measured"', b'"guessed"'),
    ],
)
def test_damaged_one_is_refused_with_what_to_do(log: Path, damage: object) -> None:
    write_run(log, RUN)
    path = run_path(log)
    data = path.read_bytes()
    path.write_bytes(damage(data))  # type: ignore[operator]
    assert path.read_bytes() != data
    with pytest.raises(UsageError, match=r"run\.json is damaged .*delete it, or use --fresh"):
        read_run(log)


def test_later_format_is_refused(log: Path) -> None:
    write_run(log, msgspec.structs.replace(RUN, format_version=2))
    with pytest.raises(UsageError, match="has format 2, this version reads 1: use --fresh"):
        read_run(log)


def test_unreadable_one_is_refused(log: Path) -> None:
    run_path(log).mkdir()
    with pytest.raises(UsageError, match=r"cannot read .*run\.json: Is a directory"):
        read_run(log)


def test_full_disk_keeps_the_old_one(log: Path) -> None:
    write_run(log, RUN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(DeviceError, match=r"cannot write .*run\.json: .*make room"):
            write_run(log, msgspec.structs.replace(RUN, trials=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_run(log) == RUN
    assert len(list(log.parent.iterdir())) == 1
