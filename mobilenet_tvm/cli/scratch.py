"""Folders that are gone afterwards, even if the run was killed."""

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
    with _held(artifact.parent, _PREFIX, f"cannot write {artifact}") as folder:
        yield folder


@contextlib.contextmanager
def held_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder ``<prefix>...`` in ``parent``. Those that killed runs left are deleted first.

    Raises:
        DeviceError: the place cannot be written.
    """
    with _held(parent, prefix, f"cannot make a folder in {parent}") as folder:
        yield folder


@contextlib.contextmanager
def _held(parent: Path, prefix: str, cannot: str) -> Iterator[Path]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent, prefix)
        folder, lock = _new_folder(parent, prefix)
    except OSError as error:
        raise DeviceError(f"{cannot}: {error.strerror or error}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _new_folder(parent: Path, prefix: str) -> tuple[Path, filelock.BaseFileLock]:
    """A new folder and the lock in it, which the system lets go of when this run dies."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        lock = filelock.FileLock(folder / _LOCK)
        with contextlib.suppress(filelock.Timeout, FileNotFoundError):
            lock.acquire(timeout=0)
            if (folder / _LOCK).exists():
                return folder, lock
            lock.release()
        # Between the lock's making and its taking another run took the folder for a left one.


def _sweep(parent: Path, prefix: str) -> None:
    """Delete the folders that no living run holds."""
    for folder in parent.glob(f"{prefix}*"):
        if not (folder / _LOCK).exists():  # just being made
            continue
        lock = filelock.FileLock(folder / _LOCK)
        # What cannot be deleted is in nobody's way.
        with contextlib.suppress(filelock.Timeout, OSError):
            lock.acquire(timeout=0)
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
