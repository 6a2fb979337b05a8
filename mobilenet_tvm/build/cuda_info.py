"""What the manifest says of an artifact's kernels for a GPU, and their source beside it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from mobilenet_tvm.cuda.kernel import KernelInfo
from mobilenet_tvm.errors import UsageError


class CudaInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The kernels for a GPU, all in one image within the ``.so``.

    ``arch`` is ``sm_80``, ``compute_capability`` the same as ``8.0``. The image holds machine code
    for that, and with ``ptx`` also what the driver of any newer GPU compiles. ``image_digest`` is
    ``sha256:<hex>`` of the image, ``source`` the name of the file beside the ``.so`` that holds
    the CUDA C which it was compiled from, ``source_digest`` that file's. ``kernels`` are in the
    image's order, none where a launch depends on shapes that are not known before it runs.
    """

    arch: str
    compute_capability: str
    ptx: bool
    image_digest: str
    source: str
    source_digest: str
    kernels: tuple[KernelInfo, ...] = ()

    @property
    def capability(self) -> tuple[int, int]:
        """``(8, 0)`` of ``8.0``."""
        major, minor = self.compute_capability.split(".")
        return int(major), int(minor)


def source_name(artifact: Path) -> str:
    """``name.so`` -> ``name.cu``."""
    return artifact.name.removesuffix(artifact.suffix) + ".cu"


def source_digest(source: str) -> str:
    """``sha256:<hex>`` of a source as ``write_source`` writes it."""
    return "sha256:" + hashlib.sha256(source.encode()).hexdigest()


def write_source(path: Path, source: str) -> None:
    """Write a source, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(source.encode())
    temporary.replace(path)


def read_source(artifact: Path, info: CudaInfo) -> str:
    """The CUDA C of an artifact, which must be what its manifest says.

    Raises:
        UsageError: it is missing or another.
    """
    path = artifact.with_name(info.source)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{artifact} has no {info.source} beside it, which the emulator runs: copy it there, "
            "or compile again"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    found = "sha256:" + hashlib.sha256(raw).hexdigest()
    if found != info.source_digest:
        raise UsageError(
            f"{path} is not the source that the manifest of {artifact.name} describes (digest "
            f"{found[:19]}..., expected {info.source_digest[:19]}...): copy all files again, or "
            "compile again"
        )
    return raw.decode()
