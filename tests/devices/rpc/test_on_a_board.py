"""An artifact on a board computes what it computes here; ``check`` and ``run`` say where it ran."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

import mobilenet_tvm
from mobilenet_tvm import check, frontend, targets, zoo
from mobilenet_tvm import run as run_verb
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import (
    ModelInfo,
    Preprocessing,
    read_manifest,
    sha256_bytes,
    sha256_file,
    write_manifest,
)
from mobilenet_tvm.build.pool import SET_THREADS
from mobilenet_tvm.devices.board import board_info
from mobilenet_tvm.devices.rpc import BoardLostError, BoardSession, RpcDevice
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.parity import check_artifact
from mobilenet_tvm.parity.bisect import bisect
from mobilenet_tvm.runtime import ForeignArtifactError, load_remote
from mobilenet_tvm.runtime.remote import open_remote, verify_board
from mobilenet_tvm.runtime.steps import Steps, _address, open_steps

from .conftest import Serve, open_session

ZOO = {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 32, "classes": 10}
Board = tuple[RpcDevice, Serve]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """V1 0.25-32 for this machine, with preprocessing."""
    path = tmp_path_factory.mktemp("network") / "v1.so"
    proto = zoo.build(**ZOO)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "v1")))
    info = ModelInfo("v1", sha256_bytes(proto.SerializeToString()), zoo=ZOO)
    compile_model(
        relay,
        targets.resolve("x86"),
        path,
        info=info,
        preprocessing=Preprocessing(32, 32, 32),
    )
    return path


@pytest.fixture
def artifact(network: Path, tmp_path: Path) -> Path:
    """A copy, free to be marked or broken."""
    for source in (network, network.with_suffix(".manifest.json")):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path / network.name


@pytest.fixture
def session(shared_board: Board) -> Iterator[BoardSession]:
    device, _ = shared_board
    with open_session(device) as one:
        yield one


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(11):
        pixels = random.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def where(shared_board: Board) -> list[str]:
    """The options that find the board."""
    device, _ = shared_board
    return ["--tracker", f"{device.host}:{device.port}", "--key", device.key]


def feed(artifact: Path, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        spec.name: random.uniform(-1, 1, spec.shape).astype(spec.dtype)
        for spec in read_manifest(artifact).inputs
    }


def test_it_computes_the_same_bits_as_here(session: BoardSession, network: Path) -> None:
    here, there = mobilenet_tvm.load(network), load_remote(session, network, threads=1)
    for seed in range(2):
        inputs = feed(network, seed)
        expected, found = here.run(inputs), there.run(inputs)
        assert list(found) == ["logits"]
        assert found["logits"].tobytes() == expected["logits"].tobytes()
    there.timer()()


def test_its_own_threads_are_set_there(session: BoardSession, network: Path) -> None:
    library, _ = open_remote(session, network)
    with session.calls(limit_s=60):
        library.get_function(SET_THREADS, query_imports=True)(2)
        with pytest.raises(AttributeError, match="no_such"):  # as in a library with no pool
            library.get_function("no_such", query_imports=True)
    inputs = feed(network)
    expected = mobilenet_tvm.load(network).run(inputs)["logits"]
    found = load_remote(session, network, threads=2).run(inputs)["logits"]
    assert found.tobytes() == expected.tobytes()


def test_an_input_that_does_not_fit_costs_no_session(session: BoardSession, network: Path) -> None:
    there = load_remote(session, network)
    with pytest.raises(UsageError, match="has shape"):
        there.run({"input": np.zeros((1, 3, 8, 8), np.float32)})
    assert there.run(feed(network))["logits"].shape == (1, 10)


def test_a_damaged_artifact_is_not_sent(session: BoardSession, artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes() + b"\0")
    with pytest.raises(UsageError, match="is not the file its manifest describes"):
        load_remote(session, artifact)


def test_an_artifact_for_another_board_is_refused(artifact: Path) -> None:
    manifest, here = read_manifest(artifact), board_info()
    verify_board(artifact, manifest, here, "b:1")
    other = msgspec.structs.replace(here, machine="aarch64", cpu="Cortex")
    with pytest.raises(ForeignArtifactError, match=r"x86_64 .*the board b:1 \(Cortex\) is aarch64"):
        verify_board(artifact, manifest, other, "b:1")
    poorer = msgspec.structs.replace(here, features=("sse2",))
    with pytest.raises(ForeignArtifactError, match=r"CPU features that the board .* lacks: sse4_1"):
        verify_board(artifact, manifest, poorer, "b:1")


def test_a_lost_board_is_one_line(
    session: BoardSession, shared_board: Board, network: Path
) -> None:
    _, server = shared_board
    there = load_remote(session, network)
    (child,) = server.children()
    os.kill(child, signal.SIGSEGV)
    with pytest.raises(BoardLostError, match=r"is lost: it crashed \(SIGSEGV\)") as lost:
        there.run(feed(network))
    assert lost.value.exit_code == 3
    assert "\n" not in str(lost.value)


def test_kernel_by_kernel_it_leaves_the_same_bits(session: BoardSession, network: Path) -> None:
    here, there = open_steps(network), open_steps(network, session)
    assert here.nodes == there.nodes
    inputs = feed(network)
    for mine, theirs in zip(here.run(inputs), there.run(inputs), strict=True):
        assert mine.tobytes() == theirs.tobytes()


def test_buffers_that_share_memory_are_known_there(session: BoardSession, network: Path) -> None:
    """What is poisoned hangs on it: never the buffer of a kernel's own input."""

    def shared(steps: Steps) -> list[list[bool]]:
        places = [_address(view) for view in steps._buffers()]
        return [[one == other for other in places] for one in places]

    here = shared(open_steps(network))
    assert sum(map(sum, here)) > len(here)  # the memory plan does share some
    assert shared(open_steps(network, session)) == here


def test_a_wrong_layer_is_found_there(session: BoardSession, tmp_path: Path) -> None:
    """The model says other weights than those that were compiled."""
    import onnx
    from onnx import numpy_helper

    proto = zoo.build(**ZOO)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "v1")))
    path = tmp_path / "v1.so"
    info = ModelInfo("v1", sha256_bytes(proto.SerializeToString()), zoo=ZOO)
    compile_model(relay, targets.resolve("x86"), path, info=info)
    node = next(node for node in proto.graph.node if node.name == "conv_pw_3")
    for tensor in proto.graph.initializer:
        if tensor.name == node.input[1]:
            values = numpy_helper.to_array(tensor).copy()
            values[0] *= 2
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, tmp_path / "other.onnx")
    digest = sha256_file(tmp_path / "other.onnx")
    manifest = read_manifest(path)
    changed = msgspec.structs.replace(manifest.model, digest=digest, zoo=None)
    write_manifest(path, msgspec.structs.replace(manifest, model=changed))
    found = bisect(path, feed(path), onnx=tmp_path / "other.onnx", session=session)
    assert found.culprit is not None
    assert "conv_pw_3" in found.culprit.title


def test_the_manifest_says_where_it_was_checked(session: BoardSession, artifact: Path) -> None:
    result = check_artifact(artifact, session=session, inputs=1)
    assert result
    parity = read_manifest(artifact).parity
    assert parity is not None
    assert parity.device is not None
    assert parity.device.board == session.board
    assert parity.device.cpu == targets.cpu_name()
    assert not parity.device.emulated
    check_artifact(artifact, inputs=1)
    parity = read_manifest(artifact).parity
    assert parity is not None
    assert parity.device is None


def test_many_photos_over_one_session(
    session: BoardSession, artifact: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted(photos.iterdir())
    told: list[int] = []
    there = check_artifact(
        artifact,
        session=session,
        images=images,
        agreement=True,
        inputs=0,
        progress=lambda done, total, tally: told.append(done),
    )
    here = check_artifact(artifact, images=images, agreement=True, inputs=0, jobs=1)
    assert there
    assert told == [8, 11]
    assert there.photo_agreement.as_dict() == here.photo_agreement.as_dict()


def test_the_check_verb(
    artifact: Path, where: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([str(artifact), *where, "--images", str(photos), "--bisect"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"board     {targets.cpu_name()} at 127.0.0.1:")
    assert f"11 photos, run on {targets.cpu_name()}: max error" in " ".join(said.split())
    assert "every layer agrees with onnxruntime" in said
    assert check.main([str(artifact), *where, "--inputs", "1", "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["device"]["cpu"] == targets.cpu_name()
    assert payload["device"]["emulated"] is False


def test_the_run_verb(
    artifact: Path, where: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(photos / "00.png")
    assert run_verb.main([str(artifact), photo]) == 0
    here = capsys.readouterr().out
    assert run_verb.main([str(artifact), photo, *where]) == 0
    first, *there = capsys.readouterr().out.splitlines()
    assert first.startswith(f"on {targets.cpu_name()} at ")
    assert there == here.splitlines()


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--key", "k"], 2, "--tracker: missing"),
        (["--tracker", "127.0.0.1:1"], 2, "--key: missing"),
        (["--device", "rpc"], 2, "--tracker and --key: missing"),
        (["--device", "qemu", "--key", "k"], 2, "leave them out"),
        (["--device", "qemu"], 2, "the emulated board is aarch64"),
        (["--tracker", "127.0.0.1:1", "--key", "k"], 3, "no tracker answers at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_found_is_one_line(
    artifact: Path,
    options: list[str],
    status: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check.main([str(artifact), *options]) == status
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_no_board_of_that_key_is_one_line(
    artifact: Path, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([str(artifact), *where[:2], "--key", "rpi9"]) == 3
    said = capsys.readouterr().err
    assert "has no board 'rpi9'" in said
    assert said.count("\n") == 1


def test_a_board_lost_in_a_check_is_exit_status_3(
    artifact: Path,
    where: list[str],
    shared_board: Board,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, server = shared_board

    done = threading.Event()

    def kill() -> None:
        """The session, once it is well under way."""
        while not done.wait(0.05):
            for child in server.children():
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    if time.time() - psutil.Process(child).create_time() > 1:
                        os.kill(child, signal.SIGILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        status = check.main([str(artifact), *where, "--inputs", "20000"])
    finally:
        done.set()
        killer.join()
    assert status == 3
    said = capsys.readouterr().err
    assert "is lost: it crashed (SIGILL)" in said
    assert said.count("\n") == 1
    with open_session(shared_board[0]) as session:
        assert session.info_now() is not None


def test_an_archive_is_not_for_a_board(session: BoardSession, artifact: Path) -> None:
    archive = artifact.with_suffix(".tar")
    artifact.rename(archive)
    with pytest.raises(UsageError, match="archive of objects"):
        load_remote(session, archive)


def test_a_library_that_is_no_artifact(session: BoardSession, artifact: Path) -> None:
    artifact.write_bytes(b"\x7fELF" + artifact.read_bytes()[4:20])
    manifest = read_manifest(artifact)
    write_manifest(artifact, msgspec.structs.replace(manifest, so_sha256=sha256_file(artifact)))
    with pytest.raises((UsageError, DeviceError)) as error:
        load_remote(session, artifact)
    assert not isinstance(error.value, BoardLostError)
