"""The client waits for nothing for ever, and says in one line what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.devices import relay, rpc
from mobilenet_tvm.devices.board import FUNCTION
from mobilenet_tvm.devices.rpc import BoardLostError, RpcDevice
from mobilenet_tvm.devices.tracker import TrackerError, TrackerLink, parse_address, show
from mobilenet_tvm.errors import DeviceError

from .conftest import OwnTracker, Serve, StartServe, free_port, open_session, still_serves

Board = tuple[RpcDevice, Serve]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("board:9190", ("board", 9190)),
        ("10.0.0.7:1", ("10.0.0.7", 1)),
        ("board", ("board", 9190)),
        ("[::1]:80", ("::1", 80)),
        ("::1", ("::1", 9190)),
    ],
)
def test_an_address_is_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert parse_address(show(address)) == address


@pytest.mark.parametrize("text", ["", ":9190", "board:", "board:x", "board:0", "board:65536"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no HOST:PORT"):
        parse_address(text)


def test_no_tracker_is_one_line() -> None:
    device = RpcDevice("127.0.0.1", free_port(), "any")
    with pytest.raises(
        TrackerError, match=r"no tracker answers at 127\.0\.0\.1:.*start one"
    ) as error:
        device.require_boards()
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3
    begin = time.monotonic()
    with pytest.raises(TrackerError, match="no tracker answers"):
        open_session(device, wait_s=1)
    assert time.monotonic() - begin < 5


def test_another_server_is_no_tracker(shared_board: Board) -> None:
    _, server = shared_board
    with pytest.raises(TrackerError):
        RpcDevice(*server.address, "shared").boards()


@contextlib.contextmanager
def _mute(says: bytes = b"") -> Iterator[tuple[str, int]]:
    """Listens, takes connections, says ``says`` and nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    connection.sendall(says)
                    held.append(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[:2]
        for connection in held:
            connection.close()


def test_a_tracker_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain.activate()
    with _mute() as address, pytest.raises(TrackerError, match="no answer in time"):
        TrackerLink(address, timeout_s=0.3)
    with _mute(b"HTTP/1.1 400\r\n") as address, pytest.raises(TrackerError, match="is no TVM RPC"):
        TrackerLink(address, timeout_s=5)
    nonsense = struct.pack("<i", 0x2F271) + struct.pack("<i", 1 << 30)
    with _mute(nonsense) as address, pytest.raises(TrackerError, match="no tracker answers"):
        TrackerLink(address, timeout_s=5).ask(6)


def test_an_unknown_key_names_those_that_are_known(shared_board: Board) -> None:
    device, _ = shared_board
    other = RpcDevice(device.host, device.port, "rpi9")
    with pytest.raises(DeviceError, match=r"has no board 'rpi9' \(it knows .*shared") as error:
        other.require_boards()
    assert error.value.exit_code == 3
    with pytest.raises(DeviceError, match="has no board 'rpi9'"):
        open_session(other, wait_s=0.5)


@contextlib.contextmanager
def _offered(tracker: OwnTracker, key: str, address: tuple[str, int]) -> Iterator[RpcDevice]:
    """A board that the tracker knows, at ``address``."""
    toolchain.activate()
    from tvm.rpc.base import TrackerCode

    link = TrackerLink(tracker.address, timeout_s=5)
    host, port = address
    link.ask(TrackerCode.UPDATE_INFO, {"key": f"server:{key}", "addr": [host, port]})
    for number in range(20):
        link.ask(TrackerCode.PUT, key, (port, f"{key}:{number}"), host)
    yield RpcDevice(*tracker.address, key)
    link.close()


def test_a_board_that_hangs_at_the_door_is_given_up(
    tracker: OwnTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "_GREETING_S", 0.5)
    begin = time.monotonic()
    with (
        _mute() as address,
        _offered(tracker, "mute", address) as device,
        pytest.raises(DeviceError, match=f"{address[1]}, which the tracker names, does not answer"),
    ):
        open_session(device, wait_s=2)
    assert time.monotonic() - begin < 10


def test_a_board_that_hangs_after_its_greeting_is_given_up(
    tracker: OwnTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "_GREETING_S", 0.5)
    greeting = struct.pack("<ii", 0xFF271, 6) + b"server"
    with (
        _mute(greeting) as address,
        _offered(tracker, "polite", address) as device,
        pytest.raises(DeviceError, match="did not answer in time"),
    ):
        open_session(device, wait_s=2)


def test_a_board_that_is_switched_off_is_said(tracker: OwnTracker) -> None:
    with (
        _offered(tracker, "off", ("127.0.0.1", free_port())) as device,
        pytest.raises(DeviceError, match=r"does not answer \(.*refused"),
    ):
        open_session(device, wait_s=1)


@pytest.mark.parametrize("kernel", ["hang", "nap"])
def test_a_call_has_a_limit(shared_board: Board, bad_library: Path, kernel: str) -> None:
    device, _ = shared_board
    with open_session(device) as session:
        begin = time.monotonic()
        with (
            pytest.raises(BoardLostError, match="did not answer in time") as lost,
            session.calls(limit_s=1),
        ):
            # The upload has a limit of its own, which must not undo this one.
            session.upload(bad_library)[kernel]()
        assert time.monotonic() - begin < 5
    assert lost.value.reason == "timeout"
    still_serves(device, bad_library)


def test_a_limit_is_over_with_its_block(shared_board: Board, bad_library: Path) -> None:
    device, _ = shared_board
    with open_session(device) as session:
        with session.calls(limit_s=1):
            module = session.upload(bad_library)
        time.sleep(1.5)
        with session.calls(limit_s=30):
            assert module["fine"]() == 7


def test_a_frozen_board_is_given_up(shared_board: Board, bad_library: Path) -> None:
    """As one whose power was cut: nothing comes, the connection does not end."""
    device, server = shared_board
    with open_session(device) as session:
        module = session.upload(bad_library)
        (child,) = server.children()
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(BoardLostError) as lost, session.calls(limit_s=1):
            module["fine"]()
        assert lost.value.reason == "timeout"
    still_serves(device, bad_library)  # a stopped session is killed, too


def test_an_upload_to_a_frozen_board_is_given_up(
    shared_board: Board, bad_library: Path, tmp_path: Path
) -> None:
    device, server = shared_board
    large = tmp_path / "large.so"
    large.write_bytes(bytes(50_000_000))
    with open_session(device) as session:
        (child,) = server.children()
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(BoardLostError) as lost:
            session.upload(large, limit_s=2)
        assert lost.value.reason == "timeout"
    still_serves(device, bad_library)


def test_a_call_that_fails_there_loses_nothing(
    shared_board: Board, bad_library: Path, tmp_path: Path
) -> None:
    device, _ = shared_board
    text = tmp_path / "text.so"
    text.write_text("no library")
    with open_session(device) as session:
        with pytest.raises(DeviceError, match="Failed to load dynamic shared library") as error:
            session.upload(text)
        assert not isinstance(error.value, BoardLostError)
        with pytest.raises(DeviceError):
            session.function("no.such.function")
        with session.calls():
            assert session.upload(bad_library)["fine"]() == 7


def test_errors_of_ours_pass_through(shared_board: Board) -> None:
    device, _ = shared_board
    with open_session(device) as session:
        with pytest.raises(ZeroDivisionError), session.calls():
            _ = 1 / 0
        assert session.info_now() is not None


def test_an_upload_never_takes_a_name_twice(shared_board: Board, bad_library: Path) -> None:
    device, _ = shared_board
    with open_session(device) as session, session.calls(limit_s=30):
        first, second = session.upload(bad_library), session.upload(bad_library)
        assert first["fine"]() == second["fine"]() == 7


def test_arrays_go_there_and_back(shared_board: Board) -> None:
    toolchain.activate()
    import tvm

    device, _ = shared_board
    given = np.random.default_rng(0).normal(size=(3, 1000, 1000)).astype(np.float32)
    with open_session(device) as session, session.calls(limit_s=60):
        assert np.array_equal(tvm.nd.array(given, session.device()).numpy(), given)


def test_the_board_says_what_it_is(shared_board: Board) -> None:
    device, _ = shared_board
    with open_session(device) as session:
        info = session.info()
        assert info is not None
        assert session.cpu_name() == info.cpu == targets.cpu_name()
        assert set(info.features) == targets.cpu_features()
        assert session.timing == "measured"
        assert json.loads(session.function(FUNCTION)()) == json.loads(
            msgspec.json.encode(session.info_now())
        ) | {"load_average": pytest.approx(os.getloadavg()[0], abs=20)} | {
            "available_bytes": pytest.approx(info.available_bytes, rel=0.9),
            "frequency_mhz": pytest.approx(info.frequency_mhz, rel=0.9)
            if info.frequency_mhz
            else None,
            "temperature_c": pytest.approx(info.temperature_c, rel=0.9)
            if info.temperature_c
            else None,
        }


def test_an_emulated_board_says_so_to_every_client(
    tracker: OwnTracker, serve: StartServe, bad_library: Path
) -> None:
    serve("--tracker", tracker.text, "--key", "fake", "--port", "0", "--emulated", "cortex-a72")
    with open_session(RpcDevice(*tracker.address, "fake")) as session:
        assert session.timing == "emulated"
        assert session.cpu_name() == "cortex-a72 (emulated)"


def test_a_stock_server_will_do(tracker: OwnTracker, bad_library: Path) -> None:
    toolchain.activate()
    from tvm.rpc.server import Server

    port = free_port()
    stock = Server("127.0.0.1", port, port + 1, tracker_addr=tracker.address, key="stock")
    try:
        device = RpcDevice(*tracker.address, "stock")
        with open_session(device) as session:
            assert session.info() is None
            assert "stock" in session.cpu_name()
            with session.calls(limit_s=30):
                assert session.upload(bad_library)["fine"]() == 7
        with open_session(device, timeout_s=2) as session:
            with pytest.raises(BoardLostError) as lost, session.calls(limit_s=30):
                session.upload(bad_library)["nap"]()
            assert lost.value.reason == "timeout"
    finally:
        stock.terminate()


def test_sessions_of_several_threads_do_not_meet(
    tracker: OwnTracker, serve: StartServe, bad_library: Path
) -> None:
    for _ in range(2):
        serve("--tracker", tracker.text, "--key", "threads", "--port", "0")
    device = RpcDevice(*tracker.address, "threads")
    results: dict[str, Any] = {}

    def work(kernel: str) -> None:
        try:
            with open_session(device) as session, session.calls(limit_s=20):
                results[kernel] = session.upload(bad_library)[kernel]()
        except BoardLostError as error:
            results[kernel] = error.reason

    threads = [threading.Thread(target=work, args=(kernel,)) for kernel in ("crash", "fine")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {"crash": "crash", "fine": 7}


def test_close_ends_a_call_of_another_thread(shared_board: Board, bad_library: Path) -> None:
    device, _ = shared_board
    session = open_session(device)
    module = session.upload(bad_library)
    threading.Timer(0.5, session.close).start()
    begin = time.monotonic()
    with pytest.raises(BoardLostError), session.calls():
        module["hang"]()
    assert time.monotonic() - begin < 5
    still_serves(device, bad_library)


def test_a_ctrl_c_does_not_wait_for_the_board(shared_board: Board, bad_library: Path) -> None:
    device, _ = shared_board
    script = (
        "import sys, pathlib, time\n"
        "from mobilenet_tvm.cli.frame import run_verb\n"
        "from mobilenet_tvm.devices.rpc import RpcDevice\n"
        "def run(args, out):\n"
        f"    device = RpcDevice('127.0.0.1', {device.port}, 'shared')\n"
        "    with device.open(session_timeout_s=100, wait_s=30) as session, session.calls():\n"
        f"        module = session.upload(pathlib.Path({str(bad_library)!r}))\n"
        "        print('hanging', flush=True)\n"
        "        module['hang']()\n"
        "sys.exit(run_verb('x', 'x', lambda parser: None, run, []))\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "hanging\n"
    time.sleep(1)
    begin = time.monotonic()
    client.send_signal(signal.SIGINT)
    _, errors = client.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert client.returncode == 130
    assert errors.strip() == "interrupted"
    still_serves(device, bad_library)


def test_only_tvm_of_this_process_may_use_the_way_to_the_board() -> None:
    ours, theirs = socket.socketpair()
    way = relay.Relay(ours, b"welcome")
    with socket.create_connection(way.address) as stranger:
        said = b"client:guess"
        stranger.sendall(struct.pack("<ii", 0xFF271, len(said)) + said)
        assert stranger.recv(10) == b""
    with socket.create_connection(way.address) as friend:
        said = f"client:{way.key}".encode()
        friend.sendall(struct.pack("<ii", 0xFF271, len(said)) + said)
        assert friend.recv(10) == b"welcome"
        theirs.sendall(b"news")
        assert friend.recv(10) == b"news"
    way.close()
    theirs.close()
