"""The log survives kills, full disks and strangers."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.records import RecordLog, Task, best_records, files, parse_line, read_log
from mobilenet_tvm.records.lines import with_in_model
from mobilenet_tvm.search import Failure

Line = Callable[..., str]


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "x86" / "tiny.autotvm.jsonl"


def write(path: Path, *parts: str | bytes) -> bytes:
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def fail_on_warning(text: str) -> None:
    pytest.fail(f"warned: {text}")


def test_what_is_appended_is_read_again(
    log_path: Path, line: Line, tiny_tasks: tuple[Task, ...]
) -> None:
    lines = [
        line(0, 1, 3e-6, 1e-6, 2e-6),
        line(5, 0, failure=Failure.BUILD_TIMEOUT),
        line(-1, 0, 0.1 + 0.2),
    ]
    with RecordLog(log_path, fail_on_warning) as log:
        appended = [log.append(text) for text in lines]
        assert log.records == appended
    assert log_path.read_text() == "".join(text + "\n" for text in lines)
    assert read_log(log_path, fail_on_warning) == appended
    with RecordLog(log_path, fail_on_warning) as log:
        assert log.records == appended
    first, second, third = appended
    assert (first.key, first.config) == (tiny_tasks[0].key, tiny_tasks[0].candidates[1])
    assert (first.cost_s, first.error) == (2e-6, 0)
    assert (second.key, second.cost_s, second.error) == (tiny_tasks[5].key, None, 6)
    assert (third.key, third.cost_s) == (tiny_tasks[-1].key, 0.1 + 0.2)  # to the last bit


@pytest.mark.parametrize("keep", [1, 40, 0.5, -2, -1])
def test_cut_last_line_is_dropped_once(log_path: Path, line: Line, keep: float) -> None:
    whole, last = line(0, 0, 1e-6) + "\n", line(1, 0, 2e-6)
    count = int(keep * len(last)) if isinstance(keep, float) else keep
    write(log_path, whole, last[:count])
    warnings: list[str] = []
    with RecordLog(log_path, warnings.append) as log:
        assert [record.cost_s for record in log.records] == [1e-6]
        assert log_path.read_text() == whole
        log.append(last)
    assert len(warnings) == 1
    assert str(log_path) in warnings[0]
    assert "cut short" in warnings[0]
    assert [r.cost_s for r in read_log(log_path, fail_on_warning)] == [1e-6, 2e-6]


def test_log_that_is_one_cut_line_becomes_empty(log_path: Path, line: Line) -> None:
    write(log_path, line(0, 0, 1e-6)[:-5])
    with RecordLog(log_path, lambda _: None) as log:
        assert log.records == []
    assert log_path.read_bytes() == b""


def test_whole_last_line_without_newline_is_kept(log_path: Path, line: Line) -> None:
    write(log_path, line(0, 0, 1e-6) + "\n", line(0, 1, 2e-6))
    with RecordLog(log_path, fail_on_warning) as log:
        assert [record.cost_s for record in log.records] == [1e-6, 2e-6]
        log.append(line(0, 2, 3e-6))
    assert [r.cost_s for r in read_log(log_path, fail_on_warning)] == [1e-6, 2e-6, 3e-6]


# A line of Ansor's, but without the figures of the hardware: TVM itself cannot read it.
ANSOR = '{"i": [["[\\"k\\"]", "llvm", [], "", 0, []], [[], []]], "r": [[1], 0, 1, 1], "v": "v0.6"}'


def replaced(line: str, old: str, new: str) -> str:
    assert old in line
    return line.replace(old, new)


@pytest.mark.parametrize(
    "foreign",
    [
        b"hello",
        b"\x00" * 64,  # what a power cut leaves on some file systems
        b"\x89PNG\xff\xfe\x80\x0b\x0c\x85",
        b"3",
        b"null",
        b"[1, 2]",
        b'{"v": 0.1, "i": []}',
        ANSOR.encode(),
        b"[" * 100_000,
    ],
)
def test_foreign_line_is_named_and_left_out(log_path: Path, line: Line, foreign: bytes) -> None:
    data = write(
        log_path, line(0, 0, 1e-6), "\n", foreign, "\n\n", line(0, 1, 2e-6), "\n", foreign, b"\n"
    )
    warnings: list[str] = []
    with RecordLog(log_path, warnings.append) as log:
        assert [record.cost_s for record in log.records] == [1e-6, 2e-6]
    assert warnings == [f"{log_path}: line 2, 5: no tuning record, left out"]
    assert log_path.read_bytes() == data  # it is not ours to delete


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"result": [[1e-06], 0', '"result": [1e-06, 0'),
        ('"result": [[1e-06], 0', '"result": [["fast"], 0'),
        ('"result": [[1e-06], 0', '"result": [[1e-06], null'),
        ('"result": [[1e-06], 0', '"result": [[-1e-06], 0'),
        ('"result": [[1e-06], 0', '"result": [[0.0], 0'),
        ('"config": {"index": ', '"config": {"index": null, "was": '),
        ('"entity": [[', '"entity": [["x", "??", 1], ['),
        ('"input": ["llvm', '"input": ["no-such-target'),
        ('["TENSOR"', '{"a": 1}, ["TENSOR"'),
    ],
)
def test_record_with_a_damaged_field_is_left_out(
    log_path: Path, line: Line, old: str, new: str
) -> None:
    write(log_path, replaced(line(0, 0, 1e-6), old, new), "\n", line(0, 1, 2e-6), "\n")
    warnings: list[str] = []
    assert [r.cost_s for r in read_log(log_path, warnings.append)] == [2e-6]
    assert warnings == [f"{log_path}: line 1: no tuning record, left out"]


def test_only_five_bad_lines_are_named(log_path: Path) -> None:
    write(log_path, "x\n" * 9)
    warnings: list[str] = []
    assert read_log(log_path, warnings.append) == []
    assert warnings == [f"{log_path}: line 1, 2, 3, 4, 5 ...: no tuning record, left out"]


def test_missing_log_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no log at .*mobilenet_tvm\.tune"):
        read_log(tmp_path / "none.jsonl", fail_on_warning)


def test_second_run_on_one_log_is_refused_in_words(log_path: Path, line: Line) -> None:
    with RecordLog(log_path, fail_on_warning) as first:
        with pytest.raises(UsageError, match=r"another tuning run is writing .*tiny.*-o"):
            RecordLog(log_path, fail_on_warning).__enter__()
        first.append(line(0, 0, 1e-6))
    with RecordLog(log_path, fail_on_warning) as second:
        assert len(second.records) == 1


def test_log_that_cannot_be_opened_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.mkdir()
    for _ in range(2):  # the second time, a lock left behind would be in the way
        with pytest.raises(UsageError, match=r"cannot write .*log\.jsonl: Is a directory"):
            RecordLog(path, fail_on_warning).__enter__()


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        RecordLog(tmp_path / "file" / "log.jsonl", fail_on_warning).__enter__()


@pytest.mark.parametrize("how", ["short", "after half", "at once"])
def test_full_disk_in_a_line_takes_it_back(
    log_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    write_bytes = os.write

    def full(descriptor: int, data: bytes) -> int:
        written = 0 if how == "at once" else write_bytes(descriptor, data[: len(data) // 2])
        if how == "short":
            return written
        raise OSError(errno.ENOSPC, "No space left on device")

    with RecordLog(log_path, fail_on_warning) as log:
        log.append(line(0, 0, 1e-6))
        before = log_path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(DeviceError, match=r"No space left.*make room and run the same"):
                log.append(line(0, 1, 2e-6))
        assert log_path.read_bytes() == before
        assert [record.cost_s for record in log.records] == [1e-6]
        log.append(line(0, 1, 2e-6))  # there is room again
    assert [r.cost_s for r in read_log(log_path, fail_on_warning)] == [1e-6, 2e-6]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel itself refuses to let a file grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 100])
def test_file_that_may_not_grow_stays_whole(log_path: Path, line: Line, room: int) -> None:
    with RecordLog(log_path, fail_on_warning) as log:
        log.append(line(0, 0, 1e-6))
        before = log_path.read_bytes()
        with (
            largest_file(len(before) + room),
            pytest.raises(DeviceError, match="all earlier trials are kept"),
        ):
            log.append(line(0, 1, 2e-6))
        assert log_path.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_device_that_cannot_be_shortened_is_said_in_words(line: Line) -> None:
    with pytest.raises(DeviceError, match="cannot add to /dev/full: No space left"):
        RecordLog(Path("/dev/full"), fail_on_warning).append(line(0, 0, 1e-6))


def test_folder_that_went_away_is_said_in_words(tmp_path: Path, line: Line) -> None:
    with pytest.raises(DeviceError, match=r"cannot add to .*No such file"):
        RecordLog(tmp_path / "gone" / "log.jsonl", fail_on_warning).append(line(0, 0, 1e-6))


def test_line_that_is_no_record_is_never_written(log_path: Path) -> None:
    with RecordLog(log_path, fail_on_warning) as log, pytest.raises(ValueError, match="JSON"):
        log.append("hello")
    assert not log_path.exists()


def test_best_is_by_the_median_of_successful_records(
    log_path: Path, line: Line, tiny_tasks: tuple[Task, ...]
) -> None:
    steady, spiked = (2e-6, 2e-6, 2e-6), (1e-6, 1e-6, 100e-6)
    write(
        log_path,
        *(line(0, i, *costs) + "\n" for i, costs in enumerate([steady, spiked, (1e-6,)])),
        line(0, 3, failure=Failure.RUN_ERROR) + "\n",
        line(1, 0, failure=Failure.BUILD_ERROR) + "\n",
    )
    best = best_records(read_log(log_path, fail_on_warning))
    assert set(best) == {tiny_tasks[0].key}  # what only failed has no best
    assert best[tiny_tasks[0].key].config == tiny_tasks[0].candidates[1]  # the first of equals


def test_stock_tvm_finds_the_best_record_of_every_task(
    log_path: Path, line: Line, tiny_tasks: tuple[Task, ...]
) -> None:
    from tvm import autotvm

    with RecordLog(log_path, fail_on_warning) as log:
        for index in range(len(tiny_tasks)):
            log.append(line(index, 0, 3e-6))
            log.append(line(index, 1, 2e-6))
    loaded = list(autotvm.record.load_from_file(str(log_path)))
    assert [str(given.task.workload) for given, _ in loaded[::2]] == [t.key for t in tiny_tasks]
    assert {result.error_no for _, result in loaded} == {0}
    with autotvm.apply_history_best(str(log_path)) as context:
        for task in tiny_tasks:
            with task.handle.target:
                found = context.query(task.handle.target, task.handle.workload)
            assert not found.is_fallback
            assert found.index == task.candidates[1]


class TestAnnotate:
    def test_only_the_lines_of_that_trial_change(self, log_path: Path, line: Line) -> None:
        lines = [line(0, 1, 3e-6), line(0, 1, failure=Failure.RUN_TIMEOUT), line(2, 0, 1e-6)]
        strange = [b"# a comment", b"nonsense \xff", b""]
        write(log_path, lines[0] + "\n", *(one + b"\n" for one in strange))
        write(log_path, log_path.read_bytes(), lines[1] + "\r\n", lines[2] + "\n")
        warned: list[str] = []
        with RecordLog(log_path, warned.append) as log:
            changed = log.annotate({lines[0]: 4e-6}, "net")
            assert [one.in_model_s for one in log.records] == [4e-6, None, None]
            assert changed == {lines[0]: log.records[0]}
        assert len(warned) == 1
        now = log_path.read_bytes().split(b"\n")
        assert now[1:4] == strange
        assert now[4:] == [lines[1].encode() + b"\r", lines[2].encode(), b""]
        again = read_log(log_path, warned.append)
        assert again[0] == log.records[0]
        assert (again[0].cost_s, again[0].in_model_of) == (3e-6, "net")

    def test_times_of_an_earlier_final_of_the_task_go(self, log_path: Path, line: Line) -> None:
        lines = [line(0, 1, 3e-6), line(0, 2, 4e-6), line(2, 0, 1e-6)]
        write(log_path, *(text + "\n" for text in lines))
        with RecordLog(log_path, fail_on_warning) as log:
            log.annotate(dict.fromkeys(lines, 5e-6), "net")
            first, second, other = log.records
            changed = log.annotate({first.line: 6e-6}, "net")
            assert set(changed) == {first.line, second.line}
            assert [one.in_model_s for one in log.records] == [6e-6, None, 5e-6]
            assert log.records[2] is other
            assert log.annotate({}, "net") == {}
        assert read_log(log_path, fail_on_warning) == log.records

    def test_a_link_to_a_log_stays_one(self, log_path: Path, line: Line) -> None:
        elsewhere = log_path.parent.parent / "elsewhere.autotvm.jsonl"
        write(elsewhere, line(0, 1, 3e-6), "\n")
        log_path.parent.mkdir(parents=True)
        log_path.symlink_to(elsewhere)
        with RecordLog(log_path, fail_on_warning) as log:
            log.annotate({log.records[0].line: 4e-6}, "net")
        assert log_path.is_symlink()
        assert read_log(elsewhere, fail_on_warning)[0].in_model_s == 4e-6

    def test_tvm_reads_the_line_as_before(self, line: Line) -> None:
        from tvm.autotvm.record import decode

        record = parse_line(line(0, 1, 3e-6, 1e-6))
        annotated = with_in_model(record, 4e-6, "net")
        assert json.loads(annotated.line)["in_model"] == {"seconds": 4e-6, "of": "net"}
        for before, after in zip(decode(record.line), decode(annotated.line), strict=True):
            assert str(before) == str(after)
        plain = with_in_model(annotated, None)
        assert (plain.in_model_s, plain.in_model_of) == (None, "")
        assert json.loads(plain.line) == json.loads(record.line)

    def test_no_time_is_no_record(self, line: Line) -> None:
        record = parse_line(line(0, 1, 3e-6))
        for seconds in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match=r"in_model|JSON"):
                with_in_model(record, seconds, "net")

    def test_a_full_disk_leaves_the_log(
        self, log_path: Path, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = write(log_path, line(0, 1, 3e-6), "\n")

        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(files.os, "fsync", full)
        with RecordLog(log_path, fail_on_warning) as log:
            first = log.records[0]
            with pytest.raises(DeviceError, match="what was there is kept"):
                log.annotate({first.line: 4e-6}, "net")
            assert log.records == [first]
        assert log_path.read_bytes() == before
