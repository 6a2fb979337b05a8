"""A folder for the candidates of an artifact, gone afterwards even if the run was killed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from mobilenet_tvm.errors import DeviceError

_PREFIX = ".candidates-"
_LOCK = "held"


@contextlib.contextmanager
def folder_beside(artifact: Path) -> Iterator[Path]:
    """A new folder on the artifact's own disk, where renaming is atomic.

    Those that killed runs left beside it are deleted first.

    Raises:
        DeviceError: the place cannot be written.
    """
    try:
        artifact.parent.mkdir(parents=True, exist_ok=True)
        _sweep(artifact.parent)
        folder, lock = _held_folder(artifact.parent)
    except OSError as error:
        raise DeviceError(f"cannot write {artifact}: {error.strerror or error}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _held_folder(parent: Path) -> tuple[Path, filelock.BaseFileLock]:
    """A new folder and the lock in it, which the system lets go of when this run dies."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
        lock = filelock.FileLock(folder / _LOCK)
        with contextlib.suppress(filelock.Timeout, FileNotFoundError):
            lock.acquire(timeout=0)
            if (folder / _LOCK).exists():
                return folder, lock
            lock.release()
        # Between the lock's making and its taking another run took the folder for a left one.


def _sweep(parent: Path) -> None:
    """Delete the folders that no living run holds."""
    for folder in parent.glob(f"{_PREFIX}*"):
        if not (folder / _LOCK).exists():  # just being made
            continue
        lock = filelock.FileLock(folder / _LOCK)
        # What cannot be deleted is in nobody's way.
        with contextlib.suppress(filelock.Timeout, OSError):
            lock.acquire(timeout=0)
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
