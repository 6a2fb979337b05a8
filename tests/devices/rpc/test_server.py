"""A server loses sessions in every way there is, says why, and serves on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from mobilenet_tvm import toolchain
from mobilenet_tvm.devices.rpc import BoardLostError, RpcDevice
from mobilenet_tvm.errors import DeviceError

from .conftest import OwnTracker, Serve, StartServe, open_session, still_serves

Board = tuple[RpcDevice, Serve]


@pytest.mark.parametrize(
    ("kernel", "why"),
    [("crash", "SIGSEGV"), ("illegal", "SIGILL"), ("give_up", "SIGABRT"), ("leave", "status 7")],
)
def test_a_session_that_dies_ends_alone(
    shared_board: Board, bad_library: Path, kernel: str, why: str
) -> None:
    device, server = shared_board
    with open_session(device) as session:
        with pytest.raises(BoardLostError, match=why) as lost, session.calls(limit_s=30):
            session.upload(bad_library)[kernel]()
        assert lost.value.reason == "crash"
        with pytest.raises(BoardLostError, match=why):
            session.info_now()
    server.wait_line(rf"session lost after .*{why}.*; serving on")
    still_serves(device, bad_library)


def test_a_session_that_hangs_is_killed_at_its_time_out(
    shared_board: Board, bad_library: Path
) -> None:
    device, server = shared_board
    begin = time.monotonic()
    with (
        open_session(device, timeout_s=1.5) as session,
        pytest.raises(BoardLostError, match=r"its 1\.5 s are over") as lost,
        session.calls(),
    ):
        session.upload(bad_library)["hang"]()
    assert lost.value.reason == "timeout"
    assert time.monotonic() - begin < 10
    server.wait_line(r"session lost after .*its 1\.5 s are over; serving on")
    still_serves(device, bad_library)


def test_an_idle_session_is_told_of_its_time_out(shared_board: Board) -> None:
    device, _ = shared_board
    with open_session(device, timeout_s=0.5) as session:
        time.sleep(1.5)
        with pytest.raises(BoardLostError) as lost:
            session.info_now()
    assert lost.value.reason == "timeout"


def test_a_session_that_eats_memory_is_killed(shared_board: Board, bad_library: Path) -> None:
    device, server = shared_board
    with (
        open_session(device) as session,
        pytest.raises(BoardLostError, match="more than 500 MB") as lost,
        session.calls(limit_s=60),
    ):
        session.upload(bad_library)["eat"]()
    assert lost.value.reason == "memory"
    server.wait_line("session lost after .*more than 500 MB of memory; serving on")
    still_serves(device, bad_library)


def test_a_client_that_vanishes_leaves_no_kernel_running(
    shared_board: Board, bad_library: Path
) -> None:
    device, server = shared_board
    script = (
        "import sys, pathlib\n"
        "from mobilenet_tvm.devices.rpc import RpcDevice\n"
        "device = RpcDevice('127.0.0.1', int(sys.argv[1]), 'shared')\n"
        "session = device.open(session_timeout_s=100, wait_s=30)\n"
        "module = session.upload(pathlib.Path(sys.argv[2]))\n"
        "print('hanging', flush=True)\n"
        "module['hang']()\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script, str(device.port), str(bad_library)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "hanging\n"
    time.sleep(1)
    client.kill()
    client.wait()
    client.stdout.close()
    server.wait_line("its client went away while it ran something; serving on", 15)
    assert server.children() == []
    still_serves(device, bad_library)


def test_what_a_session_uploaded_is_gone_with_it(
    tracker: OwnTracker, serve: StartServe, bad_library: Path, tmp_path: Path
) -> None:
    serve("--tracker", tracker.text, "--key", "clean", "--port", "0")
    device = RpcDevice(*tracker.address, "clean")
    for kernel in ("fine", "crash"):
        with open_session(device) as session:
            module = session.upload(bad_library)
            assert len(list(tmp_path.rglob("*.so"))) == 1
            try:
                with session.calls():
                    module[kernel]()
            except BoardLostError:
                assert kernel == "crash"
        still_serves(device, bad_library)  # by then the folder of the one before is gone
        deadline = time.monotonic() + 10
        while list(tmp_path.rglob("*.so")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(tmp_path.rglob("*.so")) == []


def test_a_killed_server_takes_its_session_along_and_the_next_one_cleans_up(
    tracker: OwnTracker, serve: StartServe, bad_library: Path, tmp_path: Path
) -> None:
    arguments = ("--tracker", tracker.text, "--key", "killed", "--port", "0")
    server = serve(*arguments)
    device = RpcDevice(*tracker.address, "killed")
    session = open_session(device)
    module = session.upload(bad_library)
    (child,) = server.children()
    threading.Timer(0.5, server.process.kill).start()
    with pytest.raises(BoardLostError) as lost, session.calls(limit_s=30):
        module["nap"]()
    assert lost.value.reason == "connection"
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)
    (left,) = tmp_path.rglob("*.so")  # nobody was there to remove it
    # The client may wait for the board while that is started again.
    waiting = threading.Thread(target=still_serves, args=(device, bad_library))
    waiting.start()
    serve(*arguments)
    waiting.join(60)
    assert not waiting.is_alive()
    assert not left.exists()
    assert device.boards() == 1


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_tracker_is_found_again_after_a_restart(serve: StartServe, bad_library: Path) -> None:
    tracker = OwnTracker()
    server = serve("--tracker", tracker.text, "--key", "loyal", "--port", "0")
    device = RpcDevice(*tracker.address, "loyal")
    still_serves(device, bad_library)
    tracker.kill()
    server.wait_line("tracker .* is away, trying on", 15)
    time.sleep(2)
    assert sum("is away" in line for line in server.lines) == 1  # said once
    tracker.start()
    server.wait_line("tracker .* is back", 30)
    still_serves(device, bad_library)
    tracker.kill()


def test_a_session_outlives_a_restart_of_the_tracker(serve: StartServe, bad_library: Path) -> None:
    tracker = OwnTracker()
    server = serve("--tracker", tracker.text, "--key", "loyal", "--port", "0")
    device = RpcDevice(*tracker.address, "loyal")
    with open_session(device) as session:
        module = session.upload(bad_library)
        tracker.kill()
        server.wait_line("tracker .* is away", 15)
        tracker.start()
        server.wait_line("tracker .* is back", 30)
        assert device.boards() == 1  # known, and busy
        with session.calls(limit_s=30):
            assert module["fine"]() == 7
        with pytest.raises(DeviceError, match="the one board loyal stayed busy"):
            open_session(device, wait_s=1)
    still_serves(device, bad_library)
    tracker.kill()


def test_a_server_waits_for_its_tracker(serve: StartServe, bad_library: Path) -> None:
    tracker = OwnTracker()
    tracker.kill()
    server = serve("--tracker", tracker.text, "--key", "early", "--port", "0")
    server.wait_line("tracker .* is away, trying on")
    tracker.start()
    still_serves(RpcDevice(*tracker.address, "early"), bad_library)
    tracker.kill()


def test_two_servers_share_a_key_and_a_third_client_waits(
    tracker: OwnTracker, serve: StartServe, bad_library: Path
) -> None:
    for _ in range(2):
        serve("--tracker", tracker.text, "--key", "pair", "--port", "0")
    device = RpcDevice(*tracker.address, "pair")
    with open_session(device) as first, open_session(device) as second:
        assert first.board != second.board
        assert device.boards() == 2
        with pytest.raises(DeviceError, match="all 2 boards pair stayed busy"):
            open_session(device, wait_s=1)
        got: list[str] = []

        def wait() -> None:
            with open_session(device) as third:
                got.append(third.board)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.5)
        assert got == []
        first.close()
        waiting.join(30)
        assert got == [first.board]
        with second.calls(limit_s=30):  # unharmed
            assert second.upload(bad_library)["fine"]() == 7


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: board\r\n\r\n",
        struct.pack("<ii", 0xFF271, -1),
        struct.pack("<ii", 0xFF271, 1 << 30),
        struct.pack("<ii", 0xFF271, 12) + b"client:other",
        struct.pack("<ii", 0xFF271, 30) + b"client:shared -timeout=soon   ",
        b"",
    ],
    ids=["http", "negative", "long", "other key", "no number", "hangs up"],
)
def test_a_stranger_gets_no_session(shared_board: Board, bad_library: Path, said: bytes) -> None:
    device, server = shared_board
    before = len(server.lines)
    with socket.create_connection(server.address, 10) as stranger:
        stranger.sendall(said)
        answer = b""
        # It may be sent away before it has said all.
        with contextlib.suppress(OSError):
            stranger.shutdown(socket.SHUT_WR)
            while part := stranger.recv(100):
                answer += part
    assert answer in (b"", struct.pack("<i", 0xFF273))  # "I have another key"
    deadline = time.monotonic() + 10
    while len(server.lines) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "no session" in server.lines[before]
    still_serves(device, bad_library)


def test_a_stranger_that_says_nothing_is_sent_away(shared_board: Board, bad_library: Path) -> None:
    device, server = shared_board
    with socket.create_connection(server.address, 10):
        server.wait_line("no session: timed out", 20)
        still_serves(device, bad_library)


def test_a_stock_client_is_served_and_told(shared_board: Board, bad_library: Path) -> None:
    device, _ = shared_board
    toolchain.activate()
    from tvm import rpc

    tracker = rpc.connect_tracker(device.host, device.port)
    remote = tracker.request("shared", session_timeout=2)
    remote.upload(str(bad_library), "mine.so")
    module = remote.load_module("mine.so")
    assert module["fine"]() == 7
    with pytest.raises(Exception, match="RPCSessionTimeoutError"):
        module["hang"]()
    del module, remote
    remote = tracker.request("shared")
    remote.upload(str(bad_library), "mine.so")
    with pytest.raises(Exception, match=r"it crashed \(SIGSEGV\)"):
        remote.load_module("mine.so")["crash"]()
    tracker.close()
    still_serves(device, bad_library)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "ctrl-c"), (signal.SIGTERM, "term")])
def test_a_signal_ends_server_and_session(
    tracker: OwnTracker,
    serve: StartServe,
    bad_library: Path,
    tmp_path: Path,
    number: signal.Signals,
    name: str,
) -> None:
    server = serve("--tracker", tracker.text, "--key", name, "--port", "0")
    device = RpcDevice(*tracker.address, name)
    session = open_session(device)
    module = session.upload(bad_library)
    (child,) = server.children()
    threading.Timer(0.5, os.kill, (server.process.pid, number)).start()
    with pytest.raises(BoardLostError) as lost, session.calls(limit_s=30):
        module["hang"]()
    assert lost.value.reason == "connection"
    assert server.process.wait(20) == 130
    assert not _runs(child)
    assert list(tmp_path.iterdir()) == []
    assert device.boards() == 0
