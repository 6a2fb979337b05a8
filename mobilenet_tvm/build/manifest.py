"""The manifest beside every artifact: what it is, what it needs, what was checked.

``<name>.so`` is described by ``<name>.manifest.json``. Plain frozen values, read and written
by msgspec, so that a damaged or foreign file is refused with the field's name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from mobilenet_tvm.build.cuda_info import CudaInfo
from mobilenet_tvm.errors import UsageError

FORMAT_VERSION = 3

# What a layer is scheduled by: a record of its own, the nearest shape's, or the untuned default.
Serving = Literal["record", "transfer", "default"]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: ``shape`` as a tuple of ints, ``dtype`` as numpy names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a photo becomes the input: ``(pixel / 255 - mean) / std``, NCHW, centre crop.

    ``resize_shorter`` is the length in pixels that the photo's shorter side is scaled to before
    the centre crop of ``height`` x ``width``; ``color`` is the channel order the model wants.
    """

    height: int
    width: int
    resize_shorter: int
    color: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


class ModelInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the model came from.

    ``digest`` is ``sha256:<hex>`` of the ONNX bytes as they were read or built; for a zoo model
    ``zoo`` holds the keyword arguments of ``zoo.build`` that make it again; for a file
    ``path`` holds where it was read.
    """

    name: str
    digest: str
    path: str | None = None
    zoo: dict[str, Any] | None = None
    batch: int | None = None
    shape: tuple[int, ...] | None = None


class TargetInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the machine must be: ``arch`` as ``platform.machine()`` says, CPU feature names as
    archspec names them (``avx512f``, ``fma`` ...). ``cuda_arch`` (``sm_80``) is the GPU that its
    kernels run on, None where that is the CPU."""

    preset: str
    target: str
    arch: str
    cpu_features: tuple[str, ...]
    cuda_arch: str | None = None


class ToolchainInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Versions that made the artifact."""

    mobilenet_tvm: str
    tvm: str
    llvm: str


class TuningInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Coverage of the build: ``tuned`` of the ``tasks`` of the plan had a record of their own.

    ``records`` are the records used, TVM's own lines, in the order applied, and ``log_digest``
    ``sha256:<hex>`` of them; ``searchers`` are those that these records are of. ``transferred``
    are indices into them: their configurations are those of the nearest shape that was measured,
    and the times in their lines are estimates. They are not among the ``tuned``; what is neither
    runs the untuned default. ``schedules`` says whose templates it has, ``ours`` or ``stock``
    (TVM's). ``layout_transforms`` counts the kernels of one inference that change a layout.
    """

    tasks: int
    tuned: int
    log_digest: str | None = None
    searchers: tuple[str, ...] = ()
    layout_transforms: int = 0
    records: tuple[str, ...] = ()
    transferred: tuple[int, ...] = ()
    schedules: Literal["ours", "stock"] = "ours"


class LayerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel of the artifact, in the order in which they run.

    ``kernel`` is its name in TVM's graph. ``tensors`` are the ONNX tensors that are computed in
    it, the results of its fused layers; ``output`` is the one that leaves it, None where that
    is not known, laid out as ``layout`` says (``NCHW16c``; empty where it is no activation).
    ``task`` is the label of the layer that decides its schedule, ``template`` AutoTVM's template
    for it. ``records`` are indices into ``TuningInfo.records``: none where the layer is
    untuned, several where Ansor has a task for each epilogue of such a layer. ``served`` says the
    same in words: by a ``record`` of its own, by a ``transfer`` of the nearest shape's, or by the
    untuned ``default``; None where it is no layer that can be tuned.
    """

    kernel: str
    tensors: tuple[str, ...] = ()
    output: str | None = None
    layout: str = ""
    task: str | None = None
    searcher: str | None = None
    template: str | None = None
    records: tuple[int, ...] = ()
    served: Serving | None = None


class CandidateInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One build that this artifact was chosen from, or did not have to be compared with.

    ``name`` is the plan's (see ``build.plans``). ``median_ms`` of one inference is None where
    it was not measured, and so is ``ratio``: its time over the chosen one's, from paired rounds.
    ``layout_transforms`` is None if it was not built, ``parity_passed`` if it was not checked.
    """

    name: str
    chosen: bool
    why: str
    median_ms: float | None = None
    ratio: float | None = None
    layout_transforms: int | None = None
    parity_passed: bool | None = None


class NpzInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``.npz`` file of inputs: its name, and ``sha256:<hex>`` of its bytes."""

    name: str
    digest: str


class DeviceInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an artifact ran on: a board's name and its CPU, or this machine's and its GPU, and
    whether an emulator played it."""

    board: str
    cpu: str
    emulated: bool


class ParityInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of the parity check: errors are relative to max |reference| of each output.

    ``reference`` is the one that decided, ``references`` all that ran, each with its version.
    ``inputs`` counts those made up, ``kinds`` says how many of each kind; with ``seed`` they are
    made again. ``images`` counts the photos compared, ``near_ties`` those of another best class
    within the tolerance, ``unreadable`` the pictures that could not be opened. ``worst`` names
    the input of ``max_error``. ``device`` is the board it ran on, None for the machine that
    checked it.
    """

    passed: bool
    reference: str
    tolerance: float
    max_error: float
    inputs: int
    images: int
    top1_agreement: float | None = None
    top5_agreement: float | None = None
    references: tuple[str, ...] = ()
    kinds: dict[str, int] = {}
    seed: int | None = None
    npz: tuple[NpzInfo, ...] = ()
    near_ties: int = 0
    unreadable: int = 0
    worst: str | None = None
    device: DeviceInfo | None = None


class LatencyInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured latency (never emulated or estimated), in milliseconds, on ``machine``."""

    machine: str
    threads: int
    median_ms: float
    p5_ms: float
    p95_ms: float


class CLibrary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a program must know of a static library: what its names begin with, the header beside
    it, and how many bytes an inference writes to."""

    prefix: str
    header: str
    workspace_bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a user of ``<name>.so`` must know. See the module's docstring.

    ``so_sha256`` is of the file that it describes, ``c_library`` there where that is a ``.a``,
    ``cuda`` where it has kernels for a GPU.
    """

    format_version: int
    name: str
    model: ModelInfo
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: TargetInfo
    toolchain: ToolchainInfo
    tuning: TuningInfo
    so_sha256: str
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    parity: ParityInfo | None = None
    latency: tuple[LatencyInfo, ...] = ()
    decision: tuple[CandidateInfo, ...] = ()
    layers: tuple[LayerInfo, ...] = ()
    c_library: CLibrary | None = None
    cuda: CudaInfo | None = None


def manifest_path(artifact: Path) -> Path:
    """``dir/name.so`` (or ``.tar``, ``.a``) -> ``dir/name.manifest.json``."""
    name = artifact.name.removesuffix(".so").removesuffix(".tar").removesuffix(".a")
    return artifact.with_name(name + ".manifest.json")


def sha256_file(path: Path) -> str:
    """``sha256:<hex>`` of a file's bytes."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return "sha256:" + digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """``sha256:<hex>`` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def read_manifest(artifact: Path) -> Manifest:
    """Read the manifest beside ``artifact``.

    Raises:
        UsageError: the ``.so`` or its manifest is missing, damaged or of another format.
    """
    path = manifest_path(artifact)
    if not artifact.is_file():
        raise UsageError(f"no artifact at {artifact}: make one with python -m mobilenet_tvm.tune")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{artifact} has no manifest {path.name} beside it: ship the two files together"
        ) from None
    try:
        version = msgspec.json.decode(raw, type=dict).get("format_version")
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{path} has format {version}, this version reads {FORMAT_VERSION}: "
                "compile the model again"
            )
        return msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is damaged ({error}): compile the model again") from None


def write_manifest(artifact: Path, manifest: Manifest) -> Path:
    """Write the manifest beside ``artifact``, whole or not at all."""
    path = manifest_path(artifact)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_bytes(text + b"\n")
    temporary.replace(path)
    return path
