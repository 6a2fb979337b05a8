"""A user's own inputs: ``.npz`` files, one feed each, arrays by input name."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.kinds import Feed

_MAKE = "write it with numpy.savez(path, <input name>=array)"


def find_npz(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The ``.npz`` files among ``paths``, and those right in the folders among them, by name.

    Raises:
        UsageError: one is not there, or a folder has no ``.npz`` file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() == ".npz")
            if not inside:
                raise UsageError(f"no .npz file in {path}: {_MAKE}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"no file or folder {path}: give .npz files or a folder of them")
    return tuple(dict.fromkeys(found))


def read_npz(path: Path, specs: Sequence[TensorSpec]) -> Feed:
    """The arrays of ``path`` as one feed: every input by name, in its very shape and dtype.

    Pickled objects are never loaded.

    Raises:
        UsageError: the file is no ``.npz``, or is not what the inputs are, by name.
    """
    arrays = _load(path)
    names = [spec.name for spec in specs]
    unknown = [name for name in arrays if name not in names]
    if unknown:
        raise UsageError(
            f"{path} has an array {', '.join(unknown)}: the inputs are {', '.join(names)}"
        )
    for spec in specs:
        wanted = f"{list(spec.shape)} {spec.dtype}"
        if spec.name not in arrays:
            raise UsageError(f"{path} has no array {spec.name}: the input is {wanted}")
        array = arrays[spec.name]
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            raise UsageError(
                f"{path} has {spec.name} as {list(array.shape)} {array.dtype}, and the input is "
                f"{wanted}: one .npz is one feed, batch included"
            )
    return arrays


def _load(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as opened:
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise UsageError(f"{path} is no .npz: {_MAKE}")
            arrays = {name: opened[name] for name in opened.files}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):
            raise UsageError(
                f"{path} holds pickled objects, which are not loaded: save plain arrays"
            ) from None
        raise UsageError(f"{path} is no .npz: {_MAKE}") from None
    # A damaged archive: numpy and zlib raise a type of their own for each way.
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no .npz or is damaged ({type(error).__name__}): {_MAKE}"
        ) from None
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):  # numpy hands out as bytes what is no array
            raise UsageError(f"{path} is no .npz ({name} in it is no array): {_MAKE}")
    return arrays
