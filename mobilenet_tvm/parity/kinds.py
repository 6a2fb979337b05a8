"""The inputs that a parity check makes up: named kinds, each drawn from a seed.

An input depends on its kind, its number within that kind and the seed alone, so that a failing
one is made again by ``--kinds KIND --seed SEED``, whatever else ran beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError

Feed = dict[str, NDArray[Any]]

# A photo that was never scaled to [-1, 1]: it drives most ReLU6 into saturation.
LARGE: Final = 255.0

# Far beyond any pixel, and far enough from float32's 3.4e38 that what a MobileNet makes of it is
# finite: V1, V2 and V4 survive 1e36, V3 1e30, and even the squares in GoogLeNet's normalisation
# 1e15. A dtype whose own squares would overflow takes the root of its largest number instead
# (float16: 256).
HUGE: Final = 1e12

# What each is for floating point; integers fill the range of their dtype unless said otherwise.
KINDS: Final[dict[str, str]] = {
    "uniform": "uniform in [-1, 1], as a scaled photo",
    "normal": "normal, mean 0 and deviation 1",
    "zeros": "all zeros: the biases alone",
    "large": f"uniform in [-{LARGE:g}, {LARGE:g}]: ReLU6 saturates",
    "equal": "one value everywhere, drawn from [-1, 1]: only borders and biases differ",
    "huge": f"uniform in [-{HUGE:g}, {HUGE:g}] (integers: the two ends of their range)",
    "denormal": "subnormal numbers, below the dtype's smallest normal one (integers: -1, 0, 1)",
}

DEFAULT_KINDS: Final = ("uniform", "normal", "zeros", "large", "equal")

# Names that stand for several kinds.
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "default": DEFAULT_KINDS,
    "adversarial": ("zeros", "equal", "huge", "denormal"),
    "all": tuple(KINDS),
}

# There is only one of them.
FIXED: Final = frozenset({"zeros"})

# Where a correct float32 network may overflow, so that its reference says nothing.
MAY_OVERFLOW: Final = frozenset({"huge"})


def resolve(names: Sequence[str]) -> tuple[str, ...]:
    """Kinds by name, families of them taken apart, each once, in the order given.

    Raises:
        UsageError: there is no such kind.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in KINDS and name not in FAMILIES:
            raise UsageError(
                f"no inputs of kind {name}: take {', '.join(KINDS)}, or {', '.join(FAMILIES)}"
            )
        found |= dict.fromkeys(FAMILIES.get(name, (name,)))
    return tuple(found)


class MadeUp(NamedTuple):
    """A made-up input: its kind, and which one of that kind, from 0."""

    kind: str
    number: int

    @property
    def name(self) -> str:
        """``<kind> <number>``, as results call it."""
        return f"{self.kind} {self.number}"

    def feed(self, specs: Sequence[TensorSpec], seed: int) -> Feed:
        """The input itself, for the inputs ``specs`` of a model."""
        rng = np.random.default_rng((seed, self.number, *self.kind.encode()))
        return {
            spec.name: _array(rng, self.kind, spec.shape, np.dtype(spec.dtype)) for spec in specs
        }


def plan(kinds: Sequence[str], count: int | None = None) -> tuple[MadeUp, ...]:
    """Which ``count`` inputs to make: one of each kind, then the drawn ones in turn.

    ``count`` None is one of each.

    Raises:
        UsageError: so many different inputs cannot be had of these kinds.
    """
    count = len(kinds) if count is None else count
    drawn = [kind for kind in kinds if kind not in FIXED]
    if count > len(kinds) and not drawn:
        raise UsageError(
            f"there is one input of kind {', '.join(kinds)}, and {count} were asked for: name "
            "another kind as well, or fewer inputs"
        )
    numbers = dict.fromkeys(kinds, 0)
    found = []
    for kind in itertools.islice(itertools.chain(kinds, itertools.cycle(drawn)), count):
        found.append(MadeUp(kind, numbers[kind]))
        numbers[kind] += 1
    return tuple(found)


def generate(
    specs: Sequence[TensorSpec], kinds: Sequence[str], count: int | None, seed: int
) -> Iterator[tuple[str, str, Feed]]:
    """The inputs of ``plan`` as name, kind and feed, one made after the other.

    Raises:
        UsageError: so many different inputs cannot be had of these kinds.
    """
    for one in plan(kinds, count):
        yield one.name, one.kind, one.feed(specs, seed)


def _array(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    if kind == "zeros":
        return np.zeros(shape, dtype)
    if kind == "equal":
        return np.full(shape, _array(rng, "uniform", (1,), dtype)[0], dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if kind == "huge":
            return rng.choice(np.array([limits.min, limits.max], dtype), shape)
        if kind == "denormal":
            return rng.integers(max(limits.min, -1), 2, shape).astype(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    if kind == "normal":
        return rng.normal(size=shape).astype(dtype)
    return (rng.uniform(-1, 1, shape) * _limit(kind, dtype)).astype(dtype)


def _limit(kind: str, dtype: np.dtype[Any]) -> float:
    if kind == "denormal":
        return float(np.finfo(dtype).tiny)
    if kind == "huge":
        return min(HUGE, float(np.sqrt(np.finfo(dtype).max)))
    return LARGE if kind == "large" else 1.0
