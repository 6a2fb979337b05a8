"""Shapes and channel blocks of the layout NCHW[x]c, for any target."""

from __future__ import annotations

from typing import Any


def divisors(number: int, at_most: int) -> list[int]:
    """Divisors of ``number`` up to ``at_most``, ascending."""
    return [d for d in range(1, min(number, at_most) + 1) if number % d == 0]


def largest_block(channels: int, lanes: int) -> int:
    """Channels in one block: the largest divisor of ``channels`` that fits ``lanes``.

    It depends on nothing else, so the output of one layer is the input of the next as it is.
    """
    return divisors(channels, lanes)[-1]


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Static shape of a TE tensor as plain ints.

    Raises:
        ValueError: a dimension is symbolic.
    """
    from tvm.topi.utils import get_const_tuple

    shape = get_const_tuple(tensor.shape)
    if not all(isinstance(dim, int) for dim in shape):
        raise ValueError(f"shape {shape} is not static")
    return tuple(shape)
