"""Build one of our templates alone and run it beside a plain numpy reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.targets import Preset

Array = npt.NDArray[Any]

# One core that issues out of order, one that does not, and a 32-bit one.
ARM_TARGETS = {name: targets.resolve(name).target for name in ("rpi4", "rpi3", "armv7")}

# Relative to max |reference|: float32 sums of at most a few dozen products.
TOLERANCE = 2e-6


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def check(
    made: Any, configs: list[Any], reference: Callable[..., Any], shapes: Any, *how: Any
) -> None:
    """Every configuration of ``made`` agrees with ``reference`` on seeded data."""
    data, weight = arrays(*shapes)
    expected = reference(data, weight, *how)
    # What can cancel out counts: the sums of the products' absolute values.
    scale = reference(np.abs(data), np.abs(weight), *how).max()
    for config in configs:
        found = made.build(config)(data, weight)
        assert found.shape == expected.shape, str(config)
        error = np.abs(found - expected).max() / scale
        assert error <= TOLERANCE, f"{config}: relative error {error:.2g}"  # NaN fails it too


@pytest.fixture(params=("x86-avx512", "x86-avx2", "x86-sse42"))
def preset(request: pytest.FixtureRequest) -> Preset:
    """Every x86 preset that this machine can run."""
    found = targets.resolve(request.param)
    if not found.runs_here():
        missing = ", ".join(targets.missing_features(found.cpu_features))
        pytest.skip(f"this machine cannot run {request.param}: it lacks {missing}")
    return found


def depthwise_reference(
    data: Array, weight: Array, stride: int, padding: tuple[int, int, int, int]
) -> Array:
    """``[N, C, H, W]``, ``[C, 1, K, K]`` -> ``[N, C, OH, OW] float64``."""
    top, left, bottom, right = padding
    padded = np.pad(data.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    size = weight.shape[2]
    height = (padded.shape[2] - size) // stride + 1
    width = (padded.shape[3] - size) // stride + 1
    out = np.zeros((*data.shape[:2], height, width))
    for y in range(size):
        for x in range(size):
            window = padded[:, :, y : y + height * stride : stride, x : x + width * stride : stride]
            out += (
                window[:, :, :height, :width] * weight[:, 0, y, x].astype(np.float64)[:, None, None]
            )
    return out


def stem_reference(
    data: Array, weight: Array, stride: int, padding: tuple[int, int, int, int]
) -> Array:
    """``[N, C, H, W]``, ``[K, C, KH, KW]`` -> ``[N, K, OH, OW] float64``."""
    filters, channels = weight.shape[:2]
    # Every pair of input and output channel is a depthwise convolution of its own.
    pairs = depthwise_reference(
        np.tile(data, (1, filters, 1, 1)),
        weight.reshape(filters * channels, 1, *weight.shape[2:]),
        stride,
        padding,
    )
    n, _, height, width = pairs.shape
    return pairs.reshape(n, filters, channels, height, width).sum(axis=2)


def pointwise_reference(data: Array, weight: Array) -> Array:
    """``[N, C, H, W]``, ``[K, C, 1, 1]`` -> ``[N, K, H, W] float64``."""
    return np.einsum("nchw,kc->nkhw", data.astype(np.float64), weight[:, :, 0, 0].astype(float))


def _blocked(array: Array, block: int) -> Array:
    """``[N, C, H, W]`` -> ``[N, C/x, H, W, x]``."""
    n, c, h, w = array.shape
    return np.ascontiguousarray(array.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2))


def _plain(array: Array) -> Array:
    """``[N, C/x, H, W, x]`` -> ``[N, C, H, W]``."""
    n, c, h, w, x = array.shape
    return array.transpose(0, 1, 4, 2, 3).reshape(n, c * x, h, w)


class Kernel:
    """One template at one workload, as the tuner builds it: blocked in, blocked out."""

    def __init__(
        self,
        kind: str,
        target: Preset | str,
        data_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        stride: int = 1,
        padding: tuple[int, ...] = (0, 0, 0, 0),
    ) -> None:
        import tvm
        from tvm import autotvm

        from mobilenet_tvm.schedules import arm, cuda, x86

        self.kind = kind
        # A string is an ARM target: its schedules are built for this machine.
        here = isinstance(target, Preset)
        self.on_gpu = isinstance(target, Preset) and target.gpu is not None
        backend = cuda.BACKEND if self.on_gpu else x86.BACKEND if here else arm.BACKEND
        self.name = backend.templates[kind].task
        arguments = (
            ("TENSOR", data_shape, "float32"),
            ("TENSOR", weight_shape, "float32"),
            (stride, stride),
            padding,
            (1, 1),
            "NCHW",
            "NCHW",
            "float32",
        )
        given = target.tvm_target() if isinstance(target, Preset) else tvm.target.Target(target)
        self.task = autotvm.task.create(self.name, arguments, given)
        self.build_target = given if here else tvm.target.Target("llvm")

    @property
    def default(self) -> Any:
        """The untuned configuration."""
        from tvm import autotvm

        return autotvm.task.space.FallbackConfigEntity()

    def valid(self) -> list[int]:
        """Indices of the space's valid configurations."""
        space = self.task.config_space
        return [i for i in range(space.range_length) if space.is_index_valid(i)]

    def samples(self, count: int, seed: int = 0) -> list[Any]:
        """A few seeded valid configurations."""
        valid = self.valid()
        chosen = np.random.default_rng(seed).choice(len(valid), min(count, len(valid)), False)
        return [self.task.config_space.get(valid[i]) for i in chosen]

    def scheduled(self, config: Any) -> tuple[Any, list[Any]]:
        """The schedule and its ``[image, weights, output]``."""
        from tvm import autotvm

        with self.task.target, autotvm.task.ApplyConfig(config):
            schedule, tensors = self.task.func(*self.task.args)
        by_name = {tensor.op.name: tensor for tensor in tensors[1:]}
        weights = by_name.pop("kernel")
        (image,) = by_name.values()
        return schedule, [image, weights, tensors[0]]

    def packed(self, arguments: list[Any], data: Array, weight: Array) -> tuple[Array, Array]:
        """Plain arrays as the template reads them."""
        from tvm.topi.utils import get_const_tuple

        image_shape, weight_shape = (get_const_tuple(tensor.shape) for tensor in arguments[:2])
        outer, _, _, _, in_block, out_block = weight_shape
        # "OIHW<in>i<out>o", whatever the template made of it.
        _, c, y, x = weight.shape
        blocks = weight.reshape(outer, out_block, c // in_block, in_block, y, x)
        image = _blocked(data, image_shape[4]) if len(image_shape) == 5 else data
        return image, np.ascontiguousarray(blocks.transpose(0, 2, 4, 5, 3, 1))

    def build(self, config: Any) -> Callable[[Array, Array], Array]:
        """Compile; the result takes and gives plain ``[N, C, H, W]`` arrays."""
        import tvm
        from tvm.topi.utils import get_const_tuple

        schedule, arguments = self.scheduled(config)
        with self.build_target:
            function = tvm.build(schedule, arguments, target=self.build_target)

        def run(data: Array, weight: Array) -> Array:
            # NaN where nothing is written shows.
            empty = np.full(get_const_tuple(arguments[2].shape), np.nan, np.float32)
            device = tvm.cuda(0) if self.on_gpu else tvm.cpu(0)
            image, weights = self.packed(arguments, data, weight)
            *inputs, out = (tvm.nd.array(array, device) for array in (image, weights, empty))
            function(*inputs, out)
            return _plain(out.numpy())

        return run


@pytest.fixture
def make_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    """``Kernel`` in the state in which the tuner builds candidates."""
    toolchain.activate()
    from tvm import autotvm

    import mobilenet_tvm.schedules  # noqa: F401  (registers the templates)

    monkeypatch.setattr(autotvm.GLOBAL_SCOPE, "in_tuning", True)
    monkeypatch.setattr(autotvm.GLOBAL_SCOPE, "silent", True)
    return Kernel


@pytest.fixture
def references() -> dict[str, Callable[..., Array]]:
    """The plain references, by kind."""
    return {
        "depthwise": depthwise_reference,
        "pointwise": pointwise_reference,
        "stem": stem_reference,
    }
