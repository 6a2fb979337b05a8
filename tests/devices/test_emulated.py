"""Emulated boards serve as real ones do: what runs there is right or wrong, and never timed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from mobilenet_tvm import check, frontend, targets, toolchain, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import ModelInfo, read_manifest, sha256_bytes
from mobilenet_tvm.devices import qemu
from mobilenet_tvm.devices.emulated import emulated_boards, tracker
from mobilenet_tvm.devices.rpc import BoardLostError, RpcDevice
from mobilenet_tvm.runtime import ForeignArtifactError, load_remote

from .rpc.conftest import BAD_SOURCE, open_session

pytestmark = pytest.mark.slow

ZOO = {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 32, "classes": 10}


@pytest.fixture(scope="module")
def boards() -> Iterator[RpcDevice]:
    if not qemu.is_set_up():
        pytest.skip(f"the emulated board is {qemu.why_not()}")
    with emulated_boards("cortex-a72") as device:
        yield device


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What misbehaves, for aarch64."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad.c").write_text(BAD_SOURCE)
    arguments = ["cc", "-target", "aarch64-linux-gnu.2.17", "-shared", "-O1"]
    toolchain.zig(*arguments, "-o", str(folder / "bad.so"), str(folder / "bad.c"))
    return folder / "bad.so"


def _compiled(folder: Path, preset: str) -> Path:
    proto = zoo.build(**ZOO)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "v1")))
    info = ModelInfo("v1", sha256_bytes(proto.SerializeToString()), zoo=ZOO)
    compile_model(relay, targets.resolve(preset), folder / "v1.so", info=info)
    return folder / "v1.so"


def test_a_board_with_the_cpu_that_was_asked_for(boards: RpcDevice) -> None:
    assert boards.timing == "emulated"
    deadline = time.monotonic() + 10  # what listens may not yet be in the tracker's list
    while boards.boards() == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert boards.boards() == 1
    with open_session(boards) as session:
        info = session.info()
        assert info is not None
        assert (info.machine, info.emulated) == ("aarch64", "cortex-a72")
        assert {"asimd", "crc32"} <= set(info.features)
        assert not {"asimddp", "sse2"} & set(info.features)  # no dot products, nothing of the host


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [("crash", "crash"), ("illegal", "crash"), ("give_up", "crash"), ("hang", "timeout")],
)
def test_it_loses_sessions_and_serves_on(
    boards: RpcDevice, library: Path, kernel: str, reason: str
) -> None:
    with open_session(boards, timeout_s=5) as session:
        with pytest.raises(BoardLostError) as lost, session.calls(limit_s=30):
            session.upload(library)[kernel]()
        assert lost.value.reason == reason
    with open_session(boards) as session, session.calls(limit_s=30):
        assert session.upload(library)["fine"]() == 7


def test_the_memory_of_a_session_is_bounded(library: Path) -> None:
    """Where RLIMIT_AS is not."""
    if not qemu.is_set_up():
        pytest.skip(f"the emulated board is {qemu.why_not()}")
    board = qemu.runtime(set_up=False)
    with tracker() as (host, port):
        serve = ["-m", "mobilenet_tvm.serve", "--tracker", f"{host}:{port}", "--key", "small"]
        process = board.popen([*serve, "--port", "0", "--memory", "600"], cpu="cortex-a72")
        try:
            with (
                open_session(RpcDevice(host, port, "small"), wait_s=60) as session,
                pytest.raises(BoardLostError, match="more than 600 MB") as lost,
                session.calls(limit_s=60),
            ):
                session.upload(library)["eat"]()
            assert lost.value.reason == "memory"
        finally:
            process.kill()
            process.wait()


def test_parity_and_bisection(
    boards: RpcDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _compiled(tmp_path, "rpi4")
    where = ["--tracker", f"{boards.host}:{boards.port}", "--key", boards.key]
    assert check.main([str(path), *where, "--inputs", "2", "--bisect"]) == 0
    said = capsys.readouterr().out
    assert "run on cortex-a72 (emulated)" in said
    assert "every layer agrees with onnxruntime" in said
    assert " ms" not in said
    parity = read_manifest(path).parity
    assert parity is not None
    assert parity.device is not None
    assert parity.device.emulated
    assert read_manifest(path).latency == ()


def test_an_artifact_for_a_newer_core_is_refused(boards: RpcDevice, tmp_path: Path) -> None:
    path = _compiled(tmp_path, "rpi5")
    with (
        open_session(boards) as session,
        pytest.raises(ForeignArtifactError, match=r"cortex-a72 .* lacks: .*asimddp"),
    ):
        load_remote(session, path)


def test_check_brings_its_own_board(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not qemu.is_set_up():
        pytest.skip(f"the emulated board is {qemu.why_not()}")
    path = _compiled(tmp_path, "rpi5")
    assert check.main([str(path), "--device", "qemu", "--inputs", "1"]) == 0
    assert "(emulated) at 127.0.0.1:" in capsys.readouterr().out


def test_servers_of_ones_own_die_with_their_owner() -> None:
    script = (
        "import time\n"
        "from mobilenet_tvm.devices.emulated import tracker\n"
        "with tracker() as address:\n"
        "    print(address[1], flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    int(owner.stdout.readline())
    (server,) = psutil.Process(owner.pid).children()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    _, alive = psutil.wait_procs([server], timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_arrays_are_of_the_host_s_byte_order(boards: RpcDevice) -> None:
    import tvm

    given = np.arange(10, dtype=np.float32)
    with open_session(boards) as session, session.calls(limit_s=30):
        assert np.array_equal(tvm.nd.array(given, session.device()).numpy(), given)
