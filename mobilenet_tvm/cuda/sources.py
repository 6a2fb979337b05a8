"""Which CUDA C a cubin was compiled from, for the emulator: it runs the source.

Beside every image that is built while emulating, its source is kept in the cache, where any
process of this machine finds it; an artifact brings its own (``add``).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mobilenet_tvm import toolchain

_added: dict[str, str] = {}


def digest(image: bytes) -> str:
    """SHA-256 of an image, hexadecimal."""
    return hashlib.sha256(image).hexdigest()


def _folder() -> Path:
    return toolchain.cache_dir() / "cuda" / "sources"


def remember(source: str, image: bytes) -> None:
    """Keep the source of ``image`` for all processes of this machine."""
    path = _folder() / f"{digest(image)}.cu"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(source)
    temporary.replace(path)


def add(source: str, image_digest: str) -> None:
    """Tell this process the source of the image with that digest."""
    _added[image_digest] = source


def find(image_digest: str) -> str | None:
    """The source of the image with that digest, None where it is not known."""
    if image_digest in _added:
        return _added[image_digest]
    path = _folder() / f"{image_digest}.cu"
    return path.read_text() if path.exists() else None
