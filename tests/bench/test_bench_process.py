"""Worker processes that misbehave, are stopped, or lose their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mobilenet_tvm.bench import protocol
from mobilenet_tvm.bench.cores import fastest_cores
from mobilenet_tvm.bench.process import WorkerProcess, worker_environment
from mobilenet_tvm.errors import DeviceError, UsageError

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")

LOAD = protocol.Load("onnxruntime", "/nowhere.onnx", 1)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(code))


def state(pid: int) -> str:
    """The process's state letter, empty when there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def failure_of(code: str, timeout_s: float = 20) -> str:
    with WorkerProcess("tuned", 1, python(code)) as worker:
        with pytest.raises(DeviceError) as caught:
            worker.ask(LOAD, protocol.Loaded, timeout_s)
        pid = worker.pid
    assert state(pid) == ""
    message = str(caught.value)
    assert "tuned" in message
    assert "\n" not in message
    return message


def test_death_is_told_with_the_end_of_stderr() -> None:
    message = failure_of("""
        import sys
        print("first\\nsecond\\nthird\\nLLVM ERROR: fourth", file=sys.stderr)
        sys.exit(7)
    """)
    assert message.endswith("second | third | LLVM ERROR: fourth")
    assert "exit status 7" in message


def test_death_by_signal_is_named() -> None:
    assert "SIGABRT" in failure_of("import os; os.abort()")


def test_garbage_is_shown() -> None:
    message = failure_of("import time; print('loading...', flush=True); time.sleep(60)")
    assert "nonsense" in message
    assert "loading..." in message


def test_a_reply_of_another_kind_is_refused() -> None:
    message = failure_of("""
        import time
        print('{"type": "Measured", "times_ms": [1.0]}', flush=True)
        time.sleep(60)
    """)
    assert "answered Measured, not Loaded" in message


def test_silence_ends_in_a_time_out() -> None:
    assert "no answer within 0 s" in failure_of("import time; time.sleep(60)", timeout_s=0.2)


def test_failures_keep_whose_fault_they_are() -> None:
    code = """
        import sys
        for line in sys.stdin:
            print('{"type": "Failed", "message": "no such file", "usage": %s}', flush=True)
    """
    with WorkerProcess("x", 1, python(code % "true")) as worker, pytest.raises(UsageError) as mine:
        worker.ask(LOAD, protocol.Loaded, 20)
    assert str(mine.value) == "x: no such file"
    with WorkerProcess("x", 1, python(code % "false")) as worker, pytest.raises(DeviceError) as its:
        worker.ask(LOAD, protocol.Loaded, 20)
    assert "worker of x failed: no such file" in str(its.value)


@needs_proc
def test_pause_stops_and_resume_continues() -> None:
    spin = "while True: pass"
    with WorkerProcess("x", 1, python(spin)) as worker:
        worker.pause()
        assert state(worker.pid) == "T"
        worker.pause()  # once more does no harm
        worker.resume()
        assert state(worker.pid) in "RS"
        worker.pause()
        assert state(worker.pid) == "T"
    assert state(worker.pid) == ""


def test_pausing_the_dead_is_a_device_error() -> None:
    with WorkerProcess("x", 1, python("import sys; sys.exit('out of memory')")) as worker:
        worker._process.wait()
        with pytest.raises(DeviceError, match="out of memory"):
            worker.pause()


@needs_proc
def test_a_stopped_worker_dies_with_its_parent() -> None:
    parent_code = """
        import sys, time
        from mobilenet_tvm.bench import protocol
        from mobilenet_tvm.bench.process import WorkerProcess
        from mobilenet_tvm.errors import UsageError
        worker = WorkerProcess("x", 1)
        try:
            worker.ask(protocol.Load("onnxruntime", "/nowhere.onnx", 1), protocol.Loaded, 60)
        except UsageError:
            pass
        worker.pause()
        print(worker.pid, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen(python(parent_code), stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert state(worker) == "T"
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while state(worker) not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(worker) in ("", "Z")


@needs_proc
def test_a_worker_keeps_to_its_cores() -> None:
    with WorkerProcess("x", 1) as worker:
        with pytest.raises(UsageError, match="cannot load"):
            worker.ask(LOAD, protocol.Loaded, 60)
        assert os.sched_getaffinity(worker.pid) == set(fastest_cores(1))


def test_environment_fixes_threads_and_forgets_other_programs_wishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("TVM_NUM_THREADS", "64")
    environment = worker_environment(2)
    assert environment["TVM_NUM_THREADS"] == "2"
    assert "OMP_WAIT_POLICY" not in environment
    assert environment["PATH"] == os.environ["PATH"]
