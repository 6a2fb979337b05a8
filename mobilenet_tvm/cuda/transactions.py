"""What the memory makes of the addresses that the threads of a warp ask for at once.

By the CUDA C++ Programming Guide: "Device Memory Accesses" and "Shared Memory". Arrays are
``[request, thread of the warp, element of a vector]``.
"""

from __future__ import annotations

import numpy as np

from mobilenet_tvm.cuda.indices import Array

WARP = 32
_SECTOR_BYTES = 32
_BANKS = 32
_BANK_BYTES = 4
_NOBODY = np.iinfo(np.int64).min


def sectors(elements: Array, active: Array, element_bytes: int) -> tuple[Array, Array]:
    """Sectors that each request touches, and the fewest that hold as many bytes."""
    rows = np.where(active, elements, _NOBODY).reshape(len(elements), -1)
    different = np.sort(rows, axis=1)
    held = _first_of_each(different).sum(axis=1) * element_bytes
    touched = np.where(different == _NOBODY, _NOBODY, different * element_bytes // _SECTOR_BYTES)
    return _first_of_each(touched).sum(axis=1), -(-held // _SECTOR_BYTES)


def turns(elements: Array, active: Array, element_bytes: int) -> tuple[Array, Array]:
    """Turns that each request takes of shared memory, and the fewest.

    A thread that asks for 8 or 16 bytes is served with as many others as fill all banks.
    """
    thread_bytes = elements.shape[-1] * element_bytes
    if element_bytes > _BANK_BYTES:
        words = element_bytes // _BANK_BYTES
        parts = elements[..., None] * words + np.arange(words)
        elements = parts.reshape(*elements.shape[:2], -1)
    else:
        elements = elements * element_bytes // _BANK_BYTES
    together = WARP
    while together * thread_bytes > _BANKS * _BANK_BYTES and together > 1:
        together //= 2
    served = np.where(active, elements, _NOBODY).reshape(-1, together * elements.shape[-1])
    different = np.sort(served, axis=1)
    row, column = np.nonzero(_first_of_each(different))
    bank = different[row, column] % _BANKS
    in_bank = np.bincount(row * _BANKS + bank, minlength=len(served) * _BANKS)
    taken = in_bank.reshape(len(elements), -1, _BANKS).max(axis=2)
    return taken.sum(axis=1), (taken > 0).sum(axis=1)


def _first_of_each(rows: Array) -> Array:
    """Where each number that is an address stands for the first time in its sorted row."""
    first = np.ones(rows.shape, bool)
    first[:, 1:] = np.diff(rows, axis=1) != 0
    first &= rows != _NOBODY
    return first
