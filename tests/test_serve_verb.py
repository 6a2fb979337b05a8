"""``serve`` as a command: what it refuses, what it prints, how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenet_tvm import serve as verb
from mobilenet_tvm.devices.rpc import RpcDevice
from mobilenet_tvm.devices.server import Memory

from .devices.rpc.conftest import start_serve

TRUSTS = "TVM RPC trusts its clients"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", ""])
@pytest.mark.parametrize("role", [["--key", "k"], ["--tracker-only"]])
def test_serving_every_network_is_refused(
    host: str, role: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([*role, "--host", host, "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert TRUSTS in said
    assert "runs code here" in said
    assert "127.0.0.1" in said  # what to do instead
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--key"),
        (["--key", "two words"], "space"),
        (["--tracker-only", "--key", "k"], "no board"),
        (["--key", "k", "--host", "no.such.host.invalid"], "is no address"),
        (["--key", "k", "--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["--key", "k", "--emulated", "cortex-a72", "--emulated-cuda"], "leave out --emulated"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([*arguments]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "option", [["--memory", "lots"], ["--memory", "0"], ["--memory", "120%"], ["--tracker", ":x"]]
)
def test_a_bad_value_is_named(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        verb.main(["--key", "k", *option])
    assert error.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_memory_is_read() -> None:
    assert verb.memory("512") == Memory(bytes=512_000_000)
    assert verb.memory("1.5GB") == Memory(bytes=1_500_000_000)
    assert verb.memory("50%") == Memory(share=0.5)
    assert Memory(bytes=7).limit_bytes() == 7
    assert 0 < Memory(share=0.1).limit_bytes() < Memory(share=0.9).limit_bytes()


def test_a_tracker_and_a_board_by_two_commands(tmp_path: Path) -> None:
    tracker = start_serve("--tracker-only", "--port", "0", folder=tmp_path)
    host, port = tracker.address
    board = start_serve(
        *("--tracker", f"{host}:{port}", "--key", "mine", "--port", "0"), folder=tmp_path
    )
    try:
        assert TRUSTS in tracker.lines[0]
        assert TRUSTS in board.lines[0]
        assert "mine" in board.lines[0]
        with RpcDevice(host, port, "mine").open(session_timeout_s=30, wait_s=30) as session:
            assert session.board == f"{board.address[0]}:{board.address[1]}"
        assert board.end(signal.SIGINT) == 130
        assert tracker.end(signal.SIGINT) == 130
        assert board.lines[-1] == tracker.lines[-1] == "interrupted"
        assert len(board.lines) == 2  # a session that ends well is not worth a line
    finally:
        tracker.process.kill()
        board.process.kill()


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = start_serve("--key", "k", "--port", "0", folder=tmp_path)
    port = first.address[1]
    try:
        assert verb.main(["--key", "k", "--port", str(port)]) == 2
        assert f"port {port} of 127.0.0.1 are taken" in capsys.readouterr().err
        second = start_serve(
            *("--key", "k", "--port", str(port), "--port-end", str(port + 20)), folder=tmp_path
        )
        assert port < second.address[1] <= port + 20
        second.end()
    finally:
        first.end()


def test_a_board_needs_little(tmp_path: Path) -> None:
    """No LLVM, and none of what only the host needs: a board has 1 GB of memory."""
    script = (
        "import sys\n"
        "import mobilenet_tvm.serve\n"
        "from mobilenet_tvm.devices.server import import_runtime\n"
        "import_runtime()\n"
        "from tvm._ffi.base import _LIB\n"
        "print(_LIB._name.rpartition('/')[2])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    library, modules = done.stdout.splitlines()
    assert library == "libtvm_runtime.so"
    host_only = {
        "onnx",
        "onnxruntime",
        "onnxslim",
        "xgboost",
        "scipy",
        "PIL",
        "elftools",
        "tornado",
    }
    assert not host_only & set(modules.split())


def test_a_board_installs_the_versions_that_the_host_has() -> None:
    repository = Path(__file__).resolve().parents[1]
    project = (repository / "pyproject.toml").read_text()
    wanted = (repository / "docs" / "board-requirements.txt").read_text().splitlines()
    for line in wanted:
        if not line.startswith("#"):
            assert f'"{line}"' in project
