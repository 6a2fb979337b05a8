"""Which other runtimes could run a model on this machine's GPU, and why the others cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence

from mobilenet_tvm.bench.peers import Absent, Peer, PeerRow

TF32 = "TF32"  # ends the label of a row whose factors have 10 bits


PEERS = {
    "onnxruntime": Peer(
        "ONNX Runtime",
        ("onnxruntime",),
        ("onnxruntime-gpu", "onnxruntime"),
        # Both are the module onnxruntime: the one that is installed last has its files.
        "pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]'",
        (("cuda-onnxruntime", "CUDA"),),
        (("cuda-onnxruntime-graph", "CUDA, graph"),),
    ),
    "tensorrt": Peer(
        "TensorRT",
        ("tensorrt", "cuda.bindings"),
        ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
        "pip install tensorrt-cu12 'cuda-bindings==12.9.*'",
        (("tensorrt", "FP32"), ("tensorrt-tf32", f"its default, {TF32}")),
        (("tensorrt-graph", "FP32, graph"),),
    ),
    "torch": Peer(
        "PyTorch",
        ("torch", "onnx2torch"),
        ("torch",),
        "pip install torch onnx2torch 'cuda-bindings==12.9.*'",
        (("torch", "eager"),),
        (("torch-compiled", "compiled, graph"),),
    ),
}


def is_tf32(label: str) -> bool:
    """Whether a row's label says that it computes in TF32."""
    return label.endswith(f", {TF32}")


def find_peers(names: Sequence[str], *, graphs: bool) -> tuple[list[PeerRow], list[Absent]]:
    """The rows of those of ``names`` (keys of ``PEERS``) that are installed, and the others.

    Nothing is imported but ONNX Runtime, which alone knows whether it was built for GPUs.
    """
    rows: list[PeerRow] = []
    absent: list[Absent] = []
    for name in names:
        peer = PEERS[name]
        why = _why_absent(name, peer)
        if why is not None:
            absent.append(Absent(peer.title, why, peer.command))
            continue
        title = f"{peer.title} {installed_version(peer)}".strip()
        kinds = (*peer.rows, *(peer.graph_rows if graphs else ()))
        rows += [PeerRow(name, kind, f"{title}, {how}") for kind, how in kinds]
    return rows, absent


def _why_absent(name: str, peer: Peer) -> str | None:
    missing = [module for module in peer.modules if not _importable(module)]
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    if name == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "the onnxruntime that is installed is built for CPUs alone"
    return None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing
        return False


def installed_version(peer: Peer) -> str:
    """Of the first of its distributions that is installed; empty where none is."""
    for distribution in peer.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
