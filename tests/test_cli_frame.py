"""The frame around every verb: exit statuses, one JSON object, signals, pipes, bugs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from mobilenet_tvm.cli.frame import VerbFailedError, run_verb
from mobilenet_tvm.errors import (
    CheckFailedError,
    DeviceError,
    MobilenetTvmError,
    UsageError,
)

ERRORS = [
    (CheckFailedError("top 1 differs"), 1, "top 1 differs"),
    (VerbFailedError("parity failed", {"cases": [1, 2]}), 1, "parity failed"),
    (UsageError("no log at [red]x[/]"), 2, "no log at [red]x[/]"),
    (DeviceError("nothing ran"), 3, "nothing ran"),
    (MobilenetTvmError("other"), 3, "other"),
    (PermissionError(13, "Permission denied", "/x/y"), 3, "Permission denied: /x/y"),
    (MemoryError(), 3, "out of memory"),
]


def verb(run, *argv):
    return run_verb("test", "A test.", lambda parser: None, run, argv)


def raises(error):
    def run(args, out):
        out.line("on the way")
        raise error

    return run


def test_success_prints_lines_on_stdout_and_no_json(capsys):
    def run(args, out):
        out.line("a [bold]line[/]")
        out.warn("careful")
        return {"value": 1}

    assert verb(run) == 0
    captured = capsys.readouterr()
    assert captured.out == "a [bold]line[/]\n"
    assert captured.err == "warning: careful\n"


@pytest.mark.parametrize(("error", "status", "said"), ERRORS)
def test_an_error_is_one_line_on_stderr_and_its_status(capsys, error, status, said):
    assert verb(raises(error)) == status
    captured = capsys.readouterr()
    assert captured.out == "on the way\n"
    assert captured.err == f"error: {said}\n"


@pytest.mark.parametrize(("error", "status", "said"), ERRORS)
def test_under_json_an_error_is_one_object_too(capsys, error, status, said):
    assert verb(raises(error), "--json") == status
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    payload = json.loads(captured.out)
    assert (payload["error"], payload["exit_code"]) == (said, status)
    assert payload.get("cases") == getattr(error, "payload", {}).get("cases")
    assert captured.err == f"on the way\nerror: {said}\n"


CHATTERER = """
import os, subprocess, sys
from mobilenet_tvm.cli.frame import run_verb
def run(args, out):
    out.line("a line")
    print("a chatty library")
    os.write(1, b"native code\\n")
    subprocess.run(["echo", "a child"], check=True)
    return {"names": ["a", "b"], "nothing": None}
run_verb("test", "", lambda parser: None, run)
print("stdout again")
"""


def test_stdout_is_exactly_one_object_whoever_prints():
    done = subprocess.run(
        [sys.executable, "-c", CHATTERER, "--json"], capture_output=True, text=True, check=True
    )
    assert done.stdout == '{"names":["a","b"],"nothing":null}\nstdout again\n'
    assert sorted(done.stderr.splitlines()) == sorted(
        ["a line", "a chatty library", "native code", "a child"]
    )


def buggy(args, out):
    return {"value": [][3]}


def test_a_bug_is_one_line_that_asks_for_a_report(capsys):
    assert verb(buggy) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(
        r"error: a bug in mobilenet_tvm: IndexError at test_cli_frame\.py:\d+: list index out of "
        r"range; run the command again with -v and please report the traceback\n",
        captured.err,
    )


def test_verbose_shows_the_traceback(capsys):
    assert verb(buggy, "-v") == 3
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert "in buggy" in captured.err
    assert captured.err.splitlines()[-1].startswith("error: a bug in mobilenet_tvm")


def test_a_payload_that_is_no_json_is_a_bug_of_ours(capsys):
    assert verb(lambda args, out: {"value": object()}, "--json") == 3
    assert json.loads(capsys.readouterr().out)["exit_code"] == 3


def test_an_interrupt_is_130_with_one_object(capsys):
    assert verb(raises(KeyboardInterrupt()), "--json") == 130
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": "interrupted", "exit_code": 130}
    assert captured.err == "on the way\ninterrupted\n"


def test_signals_are_handled_only_while_a_verb_runs(capsys):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    assert verb(lambda args, out: os.kill(os.getpid(), signal.SIGTERM) or {}) == 130
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_ignored_sigint_stays_ignored(capsys):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert verb(lambda args, out: os.kill(os.getpid(), signal.SIGINT) or {}) == 0
    finally:
        signal.signal(signal.SIGINT, before)


IN_TVM = """
import os, signal, sys, time
from mobilenet_tvm import toolchain
from mobilenet_tvm.cli.frame import run_verb
toolchain.activate()
import tvm

def press():
    os.kill(os.getpid(), signal.SIGINT)

def callback():
    press()
    return 1

class Dropped:
    def __del__(self):
        press()

def drop():
    for _ in range(1000):
        Dropped()
        time.sleep(0.001)
    return 1

def swallowed():
    try:
        tvm.runtime.convert(callback)()
    except Exception as error:
        raise ValueError("the model cannot be imported") from None

def run(args, out):
    {body}
    out.line("went on")
    return {{}}
sys.exit(run_verb("test", "", lambda parser: None, run))
"""


@pytest.mark.parametrize(
    "body",
    ["tvm.runtime.convert(callback)()", "tvm.runtime.convert(drop)()", "drop()", "swallowed()"],
)
def test_an_interrupt_inside_tvm_is_not_lost(body):
    done = subprocess.run(
        [sys.executable, "-c", IN_TVM.format(body=body)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_bad_option_is_2(capsys):
    with pytest.raises(SystemExit) as caught:
        verb(lambda args, out: {}, "--nonsense")
    assert caught.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


SLEEPER = """
import sys, time
from mobilenet_tvm.cli.frame import run_verb
def run(args, out):
    out.line("ready")
    time.sleep(60)
    return {}
sys.exit(run_verb("test", "", lambda parser: None, run))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_real_process_with_130(number):
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "interrupted\n"
    assert time.monotonic() - start < 10


TALKER = """
import sys
from mobilenet_tvm.cli.frame import run_verb
def run(args, out):
    for number in range(100_000):
        {say}
    return {{"lines": ["x" * 100] * 10_000}}
sys.exit(run_verb("test", "", lambda parser: None, run))
"""


@pytest.mark.parametrize(
    ("say", "options", "gone"),
    [
        ("out.line('x' * 100)", [], "stdout"),
        ("out.line('x' * 100)", ["--json"], "stderr"),
        ("out.warn('x' * 100)", [], "stderr"),
        ("pass", ["--json"], "stdout"),
    ],
)
def test_a_reader_that_goes_away_gets_no_traceback(say, options, gone):
    command = [sys.executable, "-c", TALKER.format(say=say), *options]
    # Unbuffered, Python does not notice that a last large write was cut short.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        stream = getattr(process, gone)
        stream.read(10)
        stream.close()
        other = process.stderr if gone == "stdout" else process.stdout
        assert other.read() == ""
    assert process.returncode == 141
