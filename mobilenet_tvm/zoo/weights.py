"""Seeded weights that keep a network alive, the same bits on every machine.

Random weights with default BatchNorm statistics die on the way: after a dozen layers every
ReLU6 is all 0 or the logits no longer depend on the input, and parity on them proves nothing.
Here each BatchNorm carries the mean and variance that its convolution really produces,
predicted from the mean and variance of the activations before it (they are carried along,
channel by channel: ``filling``), so that every ReLU6 sees ``N(offset, scale**2)`` and clips at
both ends. Where a network has no BatchNorm, the weights' scale and the bias do the same.

Same bits everywhere: draws are PCG64's raw integers, whose stream numpy guarantees; weights
are small integers times one scale; moments lie on a grid of 2**-8, and sums over them are sums
of integers, exact whatever the order in which a machine adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Draws = NDArray[np.int16]
Integers = NDArray[np.int64]

_GRID = 256.0
UNIT = math.sqrt(3) / 1024  # makes the variance of a draw 1
_AT_ONCE = 1 << 22  # values in memory in a wide type


@dataclass(frozen=True)
class Aim:
    """What a layer is made to produce: offsets and scales (standard deviations), even within."""

    offset: tuple[float, float]
    scale: tuple[float, float]


# By what reads the layer. About 18 % of the activations of a ReLU6 end at 0 and 4 % at 6, so
# that both sides of the clip count. With offsets nearer to 0 more is clipped, and the network
# turns chaotic: offsets in (0, 2) more than double the rounding error in the logits.
AIMS = {
    "Clip": Aim((1.0, 3.0), (1.5, 2.5)),
    "Relu": Aim((0.5, 2.0), (1.5, 2.0)),  # a fifth ends at 0
    "HardSwish": Aim((0.5, 2.5), (1.5, 2.5)),  # all three of its pieces are in use
    # Gates between a half and 0.8, hardly one shut: with wider ones V3 turns chaotic, twice as
    # much rounding error in the logits.
    "HardSigmoid": Aim((0.0, 2.0), (1.0, 1.0)),
    "": Aim((-0.5, 0.5), (0.75, 1.25)),  # a linear bottleneck
    "output": Aim((-0.5, 0.5), (2.5, 2.5)),
}


@dataclass(frozen=True)
class Moments:
    """Predicted mean and variance of a tensor's values, by channel: ``[C]`` each.

    ``size`` is the tensor's height and width, 0 where it has none. After a global pooling of
    ``pooled`` pixels the variance is still that of one of them.
    """

    mean: Floats
    variance: Floats
    size: int
    pooled: int = 1


@dataclass(frozen=True)
class BatchNorm:
    """The four parameters, ``[C] float64`` each."""

    scale: Floats
    offset: Floats
    mean: Floats
    variance: Floats


def image_moments(channels: int, size: int) -> Moments:
    """Moments of an input spread evenly over [-1, 1], where preprocessing puts photos."""
    return Moments(on_grid(np.zeros(channels)), on_grid(np.full(channels, 1 / 3)), size)


class Weights:
    """The stream of random weights of one model."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def draw(self, *shape: int) -> Draws:
        """Odd integers, even over [-1023, 1023]: no zero, mean 0, variance 2**20 / 3."""
        drawn: Draws = np.empty(math.prod(shape), np.int16)
        for start in range(0, drawn.size, _AT_ONCE):
            part = drawn[start : start + _AT_ONCE]
            raw: Any = self._bits.random_raw(part.size)
            part[:] = (raw >> np.uint64(54)).astype(np.int16) * 2 - 1023
        return drawn.reshape(shape)

    def between(self, low: float, high: float, count: int) -> Floats:
        """``count`` values, even over [low, high]: ``[count]``."""
        drawn = self.draw(count).astype(np.float64)
        return (drawn / 1023 + 1) * ((high - low) / 2) + low

    def batch_norm(self, mean: Floats, variance: Floats, aim: Aim) -> BatchNorm:
        """A BatchNorm that turns values of these moments into ``N(offset, scale**2)``."""
        channels = mean.size
        return BatchNorm(
            scale=self.between(*aim.scale, channels),
            offset=self.between(*aim.offset, channels),
            mean=mean,
            variance=variance,
        )


def he_scale(integers: Draws) -> float:
    """What makes drawn ``integers`` ``[O, I, ...]`` He weights."""
    return math.sqrt(2 / math.prod(integers.shape[1:])) * UNIT


def scaled(integers: Draws, scale: float) -> NDArray[np.float32]:
    """``integers * scale`` in float32, rounded once."""
    result = np.empty(integers.shape, np.float32)
    flat, source = result.reshape(-1), integers.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):
        part = source[start : start + _AT_ONCE].astype(np.float64)
        flat[start : start + _AT_ONCE] = part * scale
    return result


def sums(integers: Draws, x: Moments, seen: Floats, groups: int = 1) -> tuple[Floats, Floats]:
    """Mean and variance ``[O]`` of a layer with weights ``integers`` ``[O, I / groups, k, k]``.

    ``seen`` ``[k, k]`` is the share of the outputs for which a tap lies inside the image and
    not in the padding (on 7x7 and less it matters). Values of different channels and pixels
    are taken as independent.
    """
    shares = np.round(seen * _GRID).astype(np.int64)
    means, variances = (
        np.round(values * _GRID).astype(np.int64).reshape(groups, -1)  # [groups, I / groups]
        for values in (x.mean, x.variance)
    )
    count = integers.shape[0]
    read_by = np.arange(count) // (count // groups)  # the group of each output
    mean, variance = np.empty(count, np.int64), np.empty(count, np.int64)
    at_once = max(_AT_ONCE // math.prod(integers.shape[1:]), 1)
    for start in range(0, count, at_once):
        rows = slice(start, start + at_once)
        part = integers[rows].astype(np.int64)
        taps = (part * shares).sum(axis=(2, 3))  # [rows, I / groups]
        squares = (part * part * shares).sum(axis=(2, 3))
        mean[rows] = _products(taps, means, read_by[rows])
        variance[rows] = _products(squares, variances, read_by[rows])
    return mean / _GRID**2, variance / _GRID**2


def _products(rows: Integers, values: Integers, group: Integers) -> Integers:
    """Each row times the values of its group: ``[R, I], [G, I], [R] -> [R]``."""
    if len(values) == 1:  # without a copy of the values for each row
        return np.asarray(rows @ values[0])
    return np.asarray((rows * values[group]).sum(axis=1))


def taps_seen(size: int, kernel: int, stride: int, pad: int, outputs: int | None = None) -> Floats:
    """Share of the outputs for which each tap of a kernel lies inside the image: ``[k, k]``.

    ``pad`` is the number of zeros before an axis of ``size``; the output has ``outputs``
    values, by default ``ceil(size / stride)``.
    """
    outputs = -(-size // stride) if outputs is None else outputs
    at = np.arange(outputs) * stride - pad  # where each output's first tap lies
    share = [np.mean((at + tap >= 0) & (at + tap < size)) for tap in range(kernel)]
    return on_grid(np.outer(share, share))


def on_grid(values: Floats) -> Floats:
    """``values`` to the nearest multiple of 2**-8."""
    rounded: Floats = np.round(values * _GRID) / _GRID
    return rounded
