"""Lines of both searchers are read without TVM's readers, and mean what those say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilenet_tvm import toolchain
from mobilenet_tvm.records import Record, parse_line, read_log
from mobilenet_tvm.records.tasks import workload_key

TARGET = "llvm -keys=cpu -mcpu=skylake-avx512 -mtriple=x86_64-linux-gnu"
# As auto_scheduler.measure_record.dump_record_to_string wrote it.
ANSOR = (
    '{"i": [["[\\"9e858d3c108e9fa2ad39fcf2ab53af13\\", [32, 64], [64, 16], [32, 16]]", '
    f'"{TARGET}", [1, 64, 64, 0, 0, 0, 0, 0], "", 1, []], [[], [["SP", 2, 1, 16, [2], 1], '
    '["AN", 2, 2, 2], ["PR", 2, 0, "auto_unroll_max_step$16"]]]], '
    '"r": [[3e-06, 1e-06, 2e-06], 0, 0.5, 1795378018], "v": "v0.6"}'
)
# As autotvm.record.encode wrote it.
AUTOTVM = (
    f'{{"input": ["{TARGET}", "depthwise_conv2d_NCHWc.mobilenet_x86", [["TENSOR", [1, 32, 112, '
    '112], "float32"], ["TENSOR", [32, 1, 3, 3], "float32"], [1, 1], [1, 1, 1, 1], [1, 1], '
    '"NCHW", "", "float32"], {}], "config": {"index": 9, "code_hash": null, "entity": [["rows", '
    '"ot", 2], ["columns", "ot", 8], ["taps_outer", "ot", 1], ["tile", "sp", [-1, 8]]]}, '
    '"result": [[9.64e-05, 9.43e-05, 0.0001], 0, 0.36, 1795378381.248586], '
    '"version": 0.2, "tvm_version": "0.19.0"}'
)


def replaced(line: str, old: str, new: str) -> str:
    assert old in line
    return line.replace(old, new, 1)


def test_ansor_line_is_read() -> None:
    record = parse_line(ANSOR + "\n")
    fields = json.loads(ANSOR)
    assert record == Record(
        key=fields["i"][0][0],
        config=json.dumps(fields["i"][1][1], separators=(",", ":")),
        cost_s=2e-06,
        error=0,
        line=ANSOR,
        target=TARGET,
        searcher="ansor",
    )


def test_ansor_line_means_what_tvm_reads() -> None:
    toolchain.activate()
    import tvm
    from tvm.auto_scheduler.measure_record import dump_record_to_string, load_record_from_string

    given_input, result = load_record_from_string(ANSOR)
    record = parse_line(ANSOR)
    assert record.key == given_input.task.workload_key
    assert record.target == str(given_input.task.target) == str(tvm.target.Target(TARGET))
    assert [cost.value for cost in result.costs] == [3e-06, 1e-06, 2e-06]
    # Written again by TVM, the same configuration has the same text.
    assert parse_line(dump_record_to_string(given_input, result)).config == record.config


@pytest.mark.parametrize("error", range(1, 9))
def test_errors_have_the_numbers_of_both_searchers(error: int) -> None:
    from tvm.auto_scheduler.measure import MeasureErrorNo as AnsorError
    from tvm.autotvm.measure import MeasureErrorNo

    names = {n.name for n in MeasureErrorNo}
    assert {name: getattr(AnsorError, name) for name in names} == {
        n.name: n.value for n in MeasureErrorNo
    }
    failed = replaced(ANSOR, "[[3e-06, 1e-06, 2e-06], 0", f"[[1e+10], {error}")
    assert (parse_line(failed).cost_s, parse_line(failed).error) == (None, error)


def test_target_is_written_as_tvm_writes_it() -> None:
    toolchain.activate()
    import tvm

    short = "llvm -mtriple=x86_64-linux-gnu -mcpu=skylake-avx512"
    assert str(tvm.target.Target(short)) == TARGET
    assert parse_line(replaced(ANSOR, TARGET, short)).target == TARGET
    assert parse_line(replaced(AUTOTVM, TARGET, short)).target == TARGET


def test_autotvm_line_means_what_tvm_reads() -> None:
    toolchain.activate()
    from tvm.autotvm.record import decode

    measured, result = decode(AUTOTVM)
    record = parse_line(AUTOTVM)
    assert record.key == workload_key(measured.task.workload)
    assert record.config == measured.config.index
    assert record.target == str(measured.target)
    assert sorted(result.costs)[1] == record.cost_s


def test_key_is_that_of_the_task_where_an_argument_is_a_bool() -> None:
    toolchain.activate()
    import tvm
    from tvm import autotvm, te

    left, right = te.placeholder((1, 4, 8)), te.placeholder((1, 4, 8))
    arguments = (left, right, (1, 4, 4), "float32", False, True)
    target = tvm.target.Target(TARGET)
    task = autotvm.task.create("batch_matmul.x86", arguments, target)
    line = autotvm.record.encode(
        autotvm.measure.MeasureInput(target, task, task.config_space.get(0)),
        autotvm.measure.MeasureResult((1.0,), 0, 1.0, 1.0),
    )
    assert parse_line(line).key == workload_key(task.workload)


DAMAGE = [
    (ANSOR, "[[3e-06, 1e-06, 2e-06], 0", "[[], 0"),
    (ANSOR, "3e-06", "NaN"),
    (ANSOR, "3e-06", "Infinity"),
    (ANSOR, "3e-06", "1e999"),
    (ANSOR, "3e-06", "-3e-06"),
    (ANSOR, "3e-06", "0"),
    (ANSOR, '"SP"', '"SQ"'),
    (ANSOR, '["SP", 2', "[2"),
    (ANSOR, '["AN", 2, 2, 2]', "[]"),
    (ANSOR, "[1, 64, 64, 0, 0, 0, 0, 0]", "[1, 64]"),
    (ANSOR, '"v": ', '"w": '),
    (ANSOR, ", 0, 0.5", ", 9, 0.5"),
    (ANSOR, ", 0, 0.5", ", -1, 0.5"),
    (ANSOR, TARGET, ""),
    (ANSOR, "[[], [[", "[[1], [["),
    (AUTOTVM, "9.64e-05", "NaN"),
    (AUTOTVM, "9.64e-05", "-1.0"),
    (AUTOTVM, '"index": 9', '"index": 9.5'),
    (AUTOTVM, '"index": 9', '"index": -9'),
    (AUTOTVM, '"index": 9', '"index": true'),
    (AUTOTVM, '["TENSOR", [1, ', '[{"a": 1}, [1, '),
    (AUTOTVM, "llvm", "no-such-target"),
    (AUTOTVM, '"ot", 2', '"??", 2'),
    (AUTOTVM, ", ", ",\n"),
]


@pytest.mark.parametrize(("line", "old", "new"), DAMAGE)
def test_damaged_line_is_no_record(line: str, old: str, new: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_line(replaced(line, old, new))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_whatever_is_in_a_line_it_is_a_record_or_a_value_error(data: st.DataObject) -> None:
    line = data.draw(st.sampled_from([ANSOR, AUTOTVM]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(line)))
        end = data.draw(st.integers(start, min(len(line), start + 30)))
        pieces = st.sampled_from(
            ["", "null", "[", "]", "{}", "1e400", "9" * 400, '"', "\x00", "\ud800", "-0", "true"]
        )
        line = line[:start] + data.draw(pieces | st.text(max_size=5)) + line[end:]
    try:
        record = parse_line(line)
    except ValueError:
        return
    assert record.cost_s is None or 0 < record.cost_s < float("inf")
    assert "\n" not in record.line


@settings(max_examples=100, deadline=None)
@given(junk=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_json_of_any_kind_is_no_record(junk: object) -> None:
    for text in (json.dumps(junk), json.dumps({"i": junk, "r": junk, "v": junk})):
        with pytest.raises(ValueError, match=r"."):
            parse_line(text)


@pytest.mark.parametrize("line", [ANSOR, AUTOTVM], ids=["ansor", "autotvm"])
def test_every_cut_line_is_no_record(line: str) -> None:
    for end in range(len(line)):
        with pytest.raises(ValueError, match=r"."):
            parse_line(line[:end])


@pytest.mark.parametrize("line", [ANSOR, AUTOTVM], ids=["ansor", "autotvm"])
def test_ten_thousand_lines_load_in_a_few_seconds(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("# a comment, as TVM's readers allow\n" + (line + "\n") * 10_000)
    parse_line(line)  # importing TVM is no reading
    start = time.monotonic()
    records = read_log(log, pytest.fail)
    assert len(records) == 10_000
    assert time.monotonic() - start < 5.0  # 0.2 s on a quiet core; TVM's decode takes 15 s


def test_ansor_lines_are_read_without_tvm() -> None:
    code = (
        "import sys; from mobilenet_tvm.records import parse_line; "
        "assert parse_line(sys.argv[1]).searcher == 'ansor'; assert 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, ANSOR], check=True)
