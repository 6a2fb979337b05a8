"""The least time that a kernel can take here: for its arithmetic, or for its bytes.

Both sides are measured on this machine, ``peak`` and ``bandwidth``, and what a kernel has to do is
read off the graph: multiply-adds of its convolution or dense layer, each activation and each
weight once. Where its bytes come from follows from how many others went by since they were
touched last (see docs/profile.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobilenet_tvm.bench.bandwidth import Bandwidth, Level
from mobilenet_tvm.build.manifest import LayerInfo

# A kernel whose weights are more than the layer's: their number does not tell the arithmetic.
_INDIRECT = "winograd"


@dataclass(frozen=True)
class Work:
    """What one kernel must do: FLOPs (two a multiply-add; None where it has no layer to count
    them of) and the bytes of the activations and weights that it reads, and of what it writes."""

    flops: int | None
    input_bytes: int
    weight_bytes: int
    output_bytes: int

    @property
    def moved_bytes(self) -> int:
        """All of them."""
        return self.input_bytes + self.weight_bytes + self.output_bytes


@dataclass(frozen=True)
class Bound:
    """``us`` that a kernel takes at least, and which side says so."""

    us: float
    by_flops: bool


def work_of(kernel: Any, info: LayerInfo) -> Work:
    """The work of a ``runtime.walk.WalkedKernel``, which the manifest describes as ``info``."""
    weights = [operand for operand in kernel.operands if operand.weight]
    return Work(
        flops=_flops(kernel, info),
        input_bytes=sum(one.size_bytes for one in kernel.operands if not one.weight),
        weight_bytes=sum(one.size_bytes for one in weights),
        output_bytes=kernel.output.size_bytes,
    )


def _flops(kernel: Any, info: LayerInfo) -> int | None:
    """Of every weight one multiply-add for each position of the output.

    That is so of any layer, dense, depthwise or not, and of several in one kernel, as long as all
    but the last work at the last one's positions.
    """
    if info.task is None or _INDIRECT in kernel.name:
        return None
    shape = kernel.output.shape
    channels = axis_sizes(info.layout, shape).get("C", shape[-1] if len(shape) <= 2 else 0)
    if not channels:
        return None
    positions = math.prod(shape) // channels
    # A bias has one number a channel, a factor one in all: both are no weights.
    counts = [math.prod(one.shape) for one in kernel.operands if one.weight]
    weights = sum(count for count in counts if count > channels)
    return 2 * positions * weights or None


def axis_sizes(layout: str, shape: Sequence[int]) -> dict[str, int]:
    """``NCHW16c`` -> the sizes of N, C, H and W, blocks counted in; nothing if it does not fit."""
    axes = re.findall("[A-Za-z]", layout)
    if len(axes) != len(shape):
        return {}
    sizes: dict[str, int] = {}
    for axis, size in zip(axes, shape, strict=True):
        sizes[axis.upper()] = sizes.get(axis.upper(), 1) * size
    return sizes


def model_bytes(kernels: Sequence[Any]) -> int:
    """Bytes of the memory that an inference touches: weights, and activations, which share some."""
    sizes: dict[int, int] = {}
    for kernel in kernels:
        for one in (*kernel.operands, kernel.output):
            sizes[one.storage] = max(sizes.get(one.storage, 0), one.size_bytes)
    return sum(sizes.values())


def bound_of(
    kernels: Sequence[Any], works: Sequence[Work], index: int, bandwidth: Bandwidth, peak: float
) -> Bound:
    """The roofline of one of ``kernels``.

    Args:
        kernels: of the model, in its order.
        works: theirs.
        index: of the one.
        bandwidth: measured with the model's bytes, on all threads that run it.
        peak: GFLOP/s of all these threads together.
    """
    work, memory_us = works[index], 0.0
    for operand in kernels[index].operands:
        if operand.maker is None:  # last touched an inference ago
            gbps = bandwidth.model_gbps
        else:
            between = sum(one.moved_bytes for one in works[operand.maker + 1 : index])
            gbps = bandwidth.gbps[level_of(operand.size_bytes + between, bandwidth)]
        memory_us += operand.size_bytes / gbps / 1e3
    level = level_of(work.output_bytes, bandwidth)
    memory_us += work.output_bytes / bandwidth.gbps[level] / 1e3
    flops_us = (work.flops or 0) / peak / 1e3
    return Bound(max(flops_us, memory_us), flops_us >= memory_us)


def level_of(size_bytes: int, bandwidth: Bandwidth) -> Level:
    """The first level that holds so many bytes."""
    levels = bandwidth.capacity_bytes.items()
    return next(level for level, capacity in levels if size_bytes <= capacity)
