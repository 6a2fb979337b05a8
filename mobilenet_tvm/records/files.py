"""Files that belong together, written together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from mobilenet_tvm.errors import DeviceError


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files, each whole, and none where one of them does not fit on the disk.

    They take their places in the order given once all are on the disk, so a kill in between
    leaves none damaged. Folders are made.

    Raises:
        DeviceError: the disk is full or failed, or the place cannot be written.
    """
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    path = next(iter(files))
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporaries[path].open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
    except OSError as error:
        raise DeviceError(
            f"cannot write {path}: {error.strerror}; what was there is kept: make room, or name "
            "another place"
        ) from None
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
