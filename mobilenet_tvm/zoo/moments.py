"""Mean and variance of what operators without weights make of normal values."""

from __future__ import annotations

import math

import numpy as np

from mobilenet_tvm.zoo.weights import BatchNorm, Floats, Moments, on_grid

# How far max pooling of so many pixels lifts the mean, in standard deviations. Measured: noise
# gives 1.0 and 1.6, photos, whose neighbouring pixels are alike, 0.4 and 0.8. The variance
# stays what it was, between 0.6 and 1.4 of it.
_LIFT = {4: 0.75, 9: 1.2}


def activated(op: str, offset: Floats, scale: Floats, size: int) -> Moments:
    """Moments of ``op(z)`` where channel ``c`` of ``z`` is ``N(offset, scale**2)``.

    ``op`` is Clip (to [0, 6]), Relu, HardSwish, HardSigmoid or "" for none.
    """
    if op == "":
        return Moments(on_grid(offset), on_grid(scale**2), size)
    if op == "HardSwish":
        mean, variance = _hard_swish(offset, scale)
    else:
        shift, top, unit = {"Clip": (0, 6, 1), "Relu": (0, 1e9, 1), "HardSigmoid": (3, 6, 6)}[op]
        pairs = zip((offset + shift).tolist(), scale.tolist(), strict=True)
        mean, variance = np.array([_clipped(o, s, top) for o, s in pairs]).T
        mean, variance = mean / unit, variance / unit**2
    return Moments(on_grid(mean), on_grid(variance), size)


def relu6_moments(norm: BatchNorm) -> Moments:
    """Moments of ReLU6 behind ``norm``."""
    return activated("Clip", norm.offset, norm.scale, 1)


def _clipped(offset: float, scale: float, top: float) -> tuple[float, float]:
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


def _hard_swish(offset: Floats, scale: Floats) -> tuple[Floats, Floats]:
    """Mean and variance ``[C]`` of ``z * clip(z + 3, 0, 6) / 6``, on a fine sum over z."""
    t = np.linspace(-6, 6, 513)
    density = np.exp(-t * t / 2)
    density /= density.sum()
    z = offset[:, None] + scale[:, None] * t
    y = z * np.clip(z + 3, 0, 6) / 6
    mean: Floats = (y * density).sum(axis=1)
    variance: Floats = (y * y * density).sum(axis=1) - mean**2
    return mean, variance


def pooled_max(x: Moments, count: int, size: int) -> Moments:
    """Moments of the greatest of ``count`` neighbouring values of ``x``."""
    return Moments(on_grid(x.mean + _LIFT[count] * np.sqrt(x.variance)), x.variance, size)


def added(x: Moments, y: Moments) -> Moments:
    """Moments of ``x + y``, taken as independent."""
    return Moments(x.mean + y.mean, x.variance + y.variance, x.size)


def multiplied(x: Moments, y: Moments) -> Moments:
    """Moments of ``x * y``, taken as independent."""
    mean = x.mean * y.mean
    square = (x.variance + x.mean**2) * (y.variance + y.mean**2)
    return Moments(on_grid(mean), on_grid(square - mean**2), x.size)


def concatenated(parts: list[Moments]) -> Moments:
    """Moments of ``parts`` side by side."""
    return Moments(
        np.concatenate([p.mean for p in parts]),
        np.concatenate([p.variance for p in parts]),
        parts[0].size,
    )


def flattened(x: Moments) -> Moments:
    """Moments of ``x`` ``[C, H, W]`` as ``[C * H * W]``."""
    count = x.size**2
    return Moments(np.repeat(x.mean, count), np.repeat(x.variance, count), 0, x.pooled)


def response_normalized(x: Moments, alpha: float, beta: float, bias: float) -> Moments:
    """Moments of ``x`` behind an LRN, whose divisor is taken as constant."""
    square = math.fsum((x.variance + x.mean**2).tolist()) / x.mean.size
    divisor = (bias + alpha * square) ** beta
    return Moments(on_grid(x.mean / divisor), on_grid(x.variance / divisor**2), x.size)
