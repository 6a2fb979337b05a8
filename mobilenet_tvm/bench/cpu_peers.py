"""Other runtimes on the CPU: which are installed, in which rows they run, and why others do not.

ONNX Runtime comes with this package and runs in this Python. The others run in the peers'
Python (``elsewhere.peers_python``), which is this one by default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilenet_tvm.bench import conversions, elsewhere
from mobilenet_tvm.bench.alternate import Contender
from mobilenet_tvm.bench.installed import Installed, Question, ask
from mobilenet_tvm.bench.peers import Absent, Peer
from mobilenet_tvm.bench.results import PRECISIONS
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.toolchain import CACHE_VARIABLE, cache_dir

# In the order in which tables show them: the last one is what speeds are relative to.
CPU_PEERS = {
    "openvino": Peer(
        "OpenVINO",
        ("openvino",),
        ("openvino",),
        "pip install openvino",
        (("openvino", ""), ("openvino-default", "its default")),
    ),
    "litert": Peer(
        "LiteRT",
        ("ai_edge_litert", "litert_torch", "onnx2torch", "torch"),
        ("ai-edge-litert", "litert-torch", "onnx2torch", "torch"),
        "pip install ai-edge-litert litert-torch onnx2torch",
        (("litert", ""),),
    ),
    "ncnn": Peer(
        "ncnn",
        ("ncnn", "pnnx"),
        ("ncnn", "pnnx"),
        "pip install ncnn pnnx",
        (("ncnn", ""), ("ncnn-default", "its default f16")),
    ),
    "mnn": Peer("MNN", ("MNN",), ("MNN",), "pip install MNN", (("mnn", ""),)),
    "torch": Peer(
        "PyTorch",
        ("torch", "onnx2torch"),
        ("torch",),
        "pip install torch onnx2torch",
        (("cpu-torch", "TorchScript"), ("cpu-torch-compiled", "compiled")),
    ),
    "onnxruntime": Peer(
        "ONNX Runtime",
        ("onnxruntime",),
        ("onnxruntime",),
        "pip install onnxruntime",
        (("onnxruntime", ""),),
    ),
}

# TVM's own schedules with records of stock searches: rows of ``--tvm-logs`` (``stock_tuned``).
TVM_PEERS = {"tvm-autotvm": "TVM, stock AutoTVM", "tvm-ansor": "TVM, stock Ansor"}

# Peers that load a format of their own, and what makes it.
_CONVERTED = ("litert", "ncnn", "mnn")


@dataclass(frozen=True)
class Field:
    """Whom a model is held against, in the order of a table, and who is missing."""

    contenders: tuple[Contender, ...]
    absent: tuple[Absent, ...]


def find_cpu_peers(
    names: Sequence[str],
    model: Path,
    info: ModelInfo,
    *,
    python: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Field:
    """The rows of those of ``names`` (keys of ``CPU_PEERS``) that are installed, their models
    converted, and the others.

    Args:
        names: of peers.
        model: the ONNX file.
        info: the artifact's, for the shapes.
        python: the peers' Python; by default ``elsewhere.peers_python()``.
        on_step: called with what is done next.

    Raises:
        UsageError: the model cannot be used, or the peers' Python does not run.
    """
    from mobilenet_tvm.bench.gpu_peers import installed_version

    contenders: list[Contender] = []
    absent: list[Absent] = []
    python = python or elsewhere.peers_python()
    others = [name for name in names if name != "onnxruntime"]
    folder, found = model, Installed((), {}, "", False)
    unwritable: OSError | None = None
    if others:
        on_step("looking for other runtimes")
        found = ask(python, _question(others))
        try:
            folder = conversions.stage(model, info)
        except OSError as error:  # ONNX Runtime and the artifacts do without
            unwritable = error
    for name in names:
        peer = CPU_PEERS[name]
        if name == "onnxruntime":
            title = f"{peer.title} {installed_version(peer)}".strip()
            contenders.append(Contender(title, "onnxruntime", str(model), peer=name))
            continue
        missing = [module for module in peer.modules if module not in found.modules]
        command = _command(peer, python)
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            why = f"{' and '.join(missing)} {verb} not installed"
            absent.append(Absent(peer.title, why, command))
            continue
        if unwritable is not None:
            absent.append(_no_cache(peer, unwritable))
            continue
        path = folder
        if name in _CONVERTED:
            on_step(f"converting the model for {peer.title}")
            versions = {d: found.versions[d] for d in peer.distributions if d in found.versions}
            try:
                path = conversions.convert(name, folder, python, versions)
            except OSError as error:
                absent.append(_no_cache(peer, error))
                continue
            except (DeviceError, UsageError) as error:
                absent.append(Absent(peer.title, f"it fails here: {error}", command))
                continue
        rows, missing_rows = _rows(name, peer, found, str(path), python)
        contenders += rows
        absent += missing_rows
    return Field(tuple(contenders), tuple(absent))


def _no_cache(peer: Peer, error: OSError) -> Absent:
    """A peer whose model has nowhere to lie."""
    where = error.filename or cache_dir()
    why = f"its model cannot be written to {where}: {error.strerror or error}"
    return Absent(peer.title, why, f"set {CACHE_VARIABLE} to a folder that can be written")


def _rows(
    name: str, peer: Peer, found: Installed, path: str, python: str
) -> tuple[list[Contender], list[Absent]]:
    """The ways in which an installed peer runs, and those in which it cannot."""
    version = found.versions.get(peer.distributions[0], "")
    title = f"{peer.title} {version}".strip()
    rows, absent = [], []
    for kind, how in peer.rows:
        label = f"{title}, {how}" if how else title
        precision = "f32"
        if kind == "cpu-torch-compiled" and not found.compiler:
            absent.append(Absent(label, "torch.compile needs a C++ compiler", "install g++"))
            continue
        if kind == "ncnn-default":
            precision = "f16"
        if kind == "openvino-default":
            precision = found.openvino_default
            if precision not in PRECISIONS or precision == "f32":
                continue  # here its default is the row above
            label = f"{label} {precision}"
        rows.append(Contender(label, kind, path, peer=name, precision=precision, python=python))
    return rows, absent


def _question(names: Sequence[str]) -> Question:
    peers = [CPU_PEERS[name] for name in names]
    modules = {module for peer in peers for module in peer.modules}
    distributions = {one for peer in peers for one in peer.distributions}
    return Question(tuple(sorted(modules)), tuple(sorted(distributions)))


def _command(peer: Peer, python: str) -> str:
    """What installs a peer where it is looked for."""
    return peer.command if python == sys.executable else f"{python} -m {peer.command}"
