"""Seeded weights that keep a network alive, the same bits on every machine.

Random weights with default BatchNorm statistics die on the way: after a dozen layers every
ReLU6 is all 0 or the logits no longer depend on the input, and parity on them proves nothing.
Here each BatchNorm carries the mean and variance that its convolution really produces,
predicted from the mean and variance of the activations before it (they are carried along,
channel by channel), so that every ReLU6 sees ``N(offset, scale**2)`` and clips at both ends.

Same bits everywhere: draws are PCG64's raw integers, whose stream numpy guarantees; weights
are small integers times one scale, and moments lie on a grid of 2**-8, so that every sum over
them is exact in float64 whatever the order in which a machine adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EPSILON = 1e-3  # TF-slim's
_GRID = 256.0
_UNIT = math.sqrt(3) / 1024  # makes the variance of a draw 1
_LOGIT_SPREAD = 2.5
# Range of BatchNorm's offset and scale. About 18 % of the activations end at 0 and 4 % at 6, so
# that both sides of the clip count. With offsets nearer to 0 more is clipped, and the network
# turns chaotic: offsets in (0, 2) more than double the rounding error in the logits.
_OFFSET = (1.0, 3.0)
_SCALE = (1.5, 2.5)


@dataclass(frozen=True)
class Moments:
    """Predicted mean and variance of a tensor's values, by channel: ``[C]`` each."""

    mean: Floats
    variance: Floats


@dataclass(frozen=True)
class BatchNorm:
    """The four parameters, ``[C] float64`` each."""

    scale: Floats
    offset: Floats
    mean: Floats
    variance: Floats


def image_moments(channels: int) -> Moments:
    """Moments of an input spread evenly over [-1, 1], where preprocessing puts photos."""
    return Moments(_on_grid(np.zeros(channels)), _on_grid(np.full(channels, 1 / 3)))


class Weights:
    """The stream of random weights of one model."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def _draw(self, *shape: int) -> Floats:
        """Odd integers, even over [-1023, 1023]: no zero, mean 0, variance 2**20 / 3."""
        raw: Any = self._bits.random_raw(math.prod(shape))
        drawn: Floats = (raw >> np.uint64(54)).astype(np.float64) * 2 - 1023
        return drawn.reshape(shape)

    def between(self, low: float, high: float, count: int) -> Floats:
        """``count`` values, even over [low, high]: ``[count]``."""
        return (self._draw(count) / 1023 + 1) * ((high - low) / 2) + low

    def filters(self, *shape: int) -> tuple[Floats, float]:
        """Integers of ``shape`` ``[O, I, ...]`` and the scale that makes them He weights."""
        fan_in = math.prod(shape[1:])
        return self._draw(*shape), math.sqrt(2 / fan_in) * _UNIT

    def batch_norm(self, mean: Floats, variance: Floats) -> BatchNorm:
        """A BatchNorm that turns values of these moments into ``N(offset, scale**2)``."""
        channels = mean.size
        return BatchNorm(
            scale=self.between(*_SCALE, channels),
            offset=self.between(*_OFFSET, channels),
            mean=mean,
            variance=variance,
        )

    def dense(self, classes: int, x: Moments, pooled: int) -> tuple[Floats, Floats]:
        """Weights ``[classes, C]`` and bias ``[classes]`` after a mean over ``pooled`` pixels.

        The logits of one input spread by about ``_LOGIT_SPREAD`` around a small bias: what all
        inputs share is taken off, so that the winning class depends on the input.
        """
        integers = self._draw(classes, x.mean.size)
        variance = math.fsum(x.variance.tolist()) / pooled
        scale = _LOGIT_SPREAD / math.sqrt(variance) * _UNIT
        bias = self.between(-0.5, 0.5, classes) - (integers @ x.mean) * scale
        return integers * scale, bias


def conv_moments(
    integers: Floats, scale: float, x: Moments, seen: Floats, *, depthwise: bool
) -> Moments:
    """Moments of a convolution's outputs, of weights ``scale * integers`` ``[O, I, k, k]``.

    ``seen`` ``[k, k]`` is the share of the outputs for which a tap lies inside the image and
    not in the padding (on 7x7 and less it matters). Values of different channels and pixels
    are taken as independent.
    """
    total = (integers * seen).sum(axis=(2, 3))  # [O, I]
    squares = (integers * integers * seen).sum(axis=(2, 3))
    if depthwise:
        mean, variance = total[:, 0] * x.mean, squares[:, 0] * x.variance
    else:
        mean, variance = total @ x.mean, squares @ x.variance
    return Moments(mean * scale, variance * scale**2)


def taps_seen(size: int, kernel: int, stride: int, pad: int) -> Floats:
    """Share of the outputs for which each tap of a kernel lies inside the image: ``[k, k]``.

    ``pad`` is the number of zeros before an axis of ``size``; the output has
    ``ceil(size / stride)`` values.
    """
    at = np.arange(0, size, stride) - pad  # where each output's first tap lies
    share = [np.mean((at + tap >= 0) & (at + tap < size)) for tap in range(kernel)]
    return _on_grid(np.outer(share, share))


def relu6_moments(norm: BatchNorm) -> Moments:
    """Moments of ``clip(z, 0, 6)`` where channel ``c`` of ``z`` is ``N(offset, scale**2)``."""
    pairs = [_clipped(o, s) for o, s in zip(norm.offset.tolist(), norm.scale.tolist(), strict=True)]
    mean, variance = np.array(pairs).T
    return Moments(_on_grid(mean), _on_grid(variance))


def _clipped(offset: float, scale: float, top: float = 6.0) -> tuple[float, float]:
    """Mean and variance of ``clip(N(offset, scale**2), 0, top)``, in closed form."""

    def below(t: float) -> tuple[float, float]:  # P(Z < t) and the density of Z at t
        return (1 + math.erf(t / math.sqrt(2))) / 2, math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    (p0, d0), (p1, d1) = below(-offset / scale), below((top - offset) / scale)
    inside = p1 - p0
    first = offset * inside + scale * (d0 - d1) + top * (1 - p1)
    second = (
        (offset**2 + scale**2) * inside
        + scale * (offset * d0 - (offset + top) * d1)
        + top**2 * (1 - p1)
    )
    return first, second - first**2


def _on_grid(values: Floats) -> Floats:
    rounded: Floats = np.round(values * _GRID) / _GRID
    return rounded
