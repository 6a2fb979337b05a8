"""An artifact on a board: sent there over a session, checked against the board, run as here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from mobilenet_tvm.build.cuda_info import read_source
from mobilenet_tvm.build.manifest import Manifest
from mobilenet_tvm.devices.board import BoardInfo
from mobilenet_tvm.devices.rpc import BoardSession
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.runtime import gpus
from mobilenet_tvm.runtime.module import (
    ForeignArtifactError,
    Module,
    machine_of,
    set_threads,
    verify_file,
)

Array = npt.NDArray[Any]

# Of one inference or the loading: V1 1.0-224 takes 4 s under qemu, and some hundred MB of weights
# take a while over a slow network.
CALL_S: Final = 300.0


class RemoteModule(Module):
    """A compiled model on a board. Made by ``load_remote``; its methods raise as ``Module``'s.

    Raises:
        BoardLostError: the session died: the model crashed, hung, or the board went away.
    """

    def __init__(self, executor: Any, manifest: Manifest, session: BoardSession) -> None:
        super().__init__(executor, manifest)
        self._session = session

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference on the board. See ``Module.run``."""
        with self._session.calls(limit_s=CALL_S):
            return super().run(inputs)

    def set_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Check and send the inputs without running. See ``Module.run``."""
        with self._session.calls(limit_s=CALL_S):
            super().set_inputs(inputs)

    def timer(self) -> Callable[[], None]:
        """As ``Module.timer``, the way to the board and back included: nothing to measure by."""
        once = super().timer()

        def run() -> None:
            with self._session.calls(limit_s=CALL_S):
                once()

        return run


def load_remote(session: BoardSession, artifact: Path, threads: int | None = None) -> RemoteModule:
    """Send an artifact to the board and load it there, after comparing it with the board.

    Args:
        session: it must live as long as the module.
        artifact: the ``.so``, with its ``.manifest.json`` beside it.
        threads: of the artifact's thread pool, as for ``runtime.load``; None leaves it as is.

    Raises:
        UsageError: the artifact is damaged, or for another machine or CPU than the board, or it
            cannot have so many threads.
        BoardLostError: the session died.
        DeviceError: the board cannot load it.
    """
    from tvm.contrib import graph_executor

    library, manifest = open_remote(session, artifact)
    with session.calls(limit_s=CALL_S):
        if threads is not None:
            set_threads(library, threads, session.function("runtime.config_threadpool"))
        executor = graph_executor.GraphModule(library["default"](session.device()))
    return RemoteModule(executor, manifest, session)


def open_remote(session: BoardSession, artifact: Path) -> tuple[Any, Manifest]:
    """The artifact's TVM module on the board, and its manifest. Raises as ``load_remote``."""
    manifest = verify_file(artifact)
    if artifact.suffix == ".tar":
        raise UsageError(
            f"{artifact} is an archive of objects, to be linked on its own machine: boards run "
            "shared libraries"
        )
    if artifact.suffix == ".a":
        raise UsageError(
            f"{artifact} is a static library, which no TVM runtime loads: check and run it without "
            "a board, under qemu-user where it must be"
        )
    if session.gpu != (manifest.target.cuda_arch is not None):
        what = "the board's CPU" if session.gpu else "its GPU"
        raise UsageError(
            f"{artifact} (preset {manifest.target.preset}) is for {what}: open the board with "
            f"RpcDevice(..., gpu={not session.gpu})"
        )
    info = session.info()
    if info is not None:  # a stock server says nothing of its machine
        verify_board(artifact, manifest, info, session.board)
        if manifest.cuda is not None and info.gpu is not None and info.gpu.emulated:
            digest = manifest.cuda.image_digest.removeprefix("sha256:")
            session.add_source(read_source(artifact, manifest.cuda), digest)
    return session.upload(artifact, limit_s=CALL_S), manifest


def verify_board(path: Path, manifest: Manifest, info: BoardInfo, board: str) -> None:
    """Refuse an artifact that the board cannot run.

    Raises:
        ForeignArtifactError: it is for another architecture, for a CPU with more features, or for
            another GPU.
        UsageError: the file is no shared library.
    """
    machine = machine_of(path, manifest, info.machine)
    where = f"the board {board} ({info.cpu})"
    if machine != info.machine:
        raise ForeignArtifactError(
            f"{path} is for {machine} (preset {manifest.target.preset}), {where} is "
            f"{info.machine}: compile it with a --target for that board"
        )
    missing = [name for name in manifest.target.cpu_features if name not in info.features]
    if missing:
        raise ForeignArtifactError(
            f"{path} needs CPU features that {where} lacks: {', '.join(missing)} (preset "
            f"{manifest.target.preset}): compile it with a --target for that board"
        )
    arch = manifest.target.cuda_arch
    if arch is None:
        return
    if info.gpu is None:
        raise ForeignArtifactError(
            f"{path} needs a GPU (preset {manifest.target.preset}), and {where} serves none: start "
            "python -m mobilenet_tvm.serve where there is one"
        )
    needed, ptx = gpus.capability_of(arch), manifest.cuda is not None and manifest.cuda.ptx
    if not info.gpu.emulated and not gpus.can_run(needed, info.gpu.capability, ptx=ptx):
        has = ".".join(map(str, info.gpu.capability))
        raise ForeignArtifactError(
            f"{path} is for compute capability {'.'.join(map(str, needed))} (preset "
            f"{manifest.target.preset}), and {info.gpu.name} of the board {board} has {has}: "
            "compile it with a --target for that"
        )
