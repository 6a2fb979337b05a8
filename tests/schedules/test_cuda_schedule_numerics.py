"""Our CUDA templates compute what the definition says, in whatever order threads run.

The emulator runs the CUDA C that NVRTC compiles for the GPU; no GPU has run it yet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm.cuda import compilers

from .conftest import TOLERANCE, arrays
from .cuda_kernels import relay_outputs, template_outputs

# The process that has the emulator for its GPU is the other CUDA tests', too.
sys.path.append(str(Path(__file__).parents[1] / "cuda"))

from emulated_process import EmulatedProcess

PRESET = "cuda-sm80"
NO_PADDING = (1, (0, 0, 0, 0))


@pytest.fixture(scope="module")
def emulated() -> Iterator[EmulatedProcess]:
    """A process whose CUDA device is the emulator."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="pip install 'mobilenet-tvm[cuda]'")
    if compilers.find() is None:
        pytest.skip("no C++ compiler to build the CUDA plug-in with")
    process = EmulatedProcess()
    yield process
    process.close()


@pytest.fixture
def check(emulated: EmulatedProcess, references: dict[str, Any]) -> Callable[..., None]:
    """``check(kind, shapes, how, samples)``: the default and some configurations agree."""

    def check_layer(kind: str, shapes: Any, how: Any, samples: int = 2) -> None:
        data, weight = arrays(*shapes)
        further = () if kind == "pointwise" else how
        expected = references[kind](data, weight, *further)
        scale = references[kind](np.abs(data), np.abs(weight), *further).max()
        seed = sum(shapes[0]) + sum(shapes[1])
        found = emulated.call(template_outputs, kind, shapes, how, PRESET, samples, seed)
        assert found
        for config, output, reversed_output in found:
            assert output.shape == expected.shape, config
            error = np.abs(output - expected).max() / scale
            assert error <= TOLERANCE, f"{config}: relative error {error:.2g}"  # NaN fails it too
            np.testing.assert_array_equal(output, reversed_output, err_msg=config)

    return check_layer


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("batch", "channels", "height", "width"),
    [(3, 6, 7, 7), (1, 24, 14, 14), (1, 100, 5, 7), (1, 96, 1, 1), (1, 7, 6, 13)],
)
def test_depthwise(
    check: Callable[..., None],
    kernel: int,
    stride: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
) -> None:
    # As TensorFlow pads, and as PyTorch does.
    before = kernel // 2 - (stride == 2 and height > 1)
    how = stride, (before, before, kernel // 2, kernel // 2)
    check("depthwise", ((batch, channels, height, width), (channels, 1, kernel, kernel)), how)


@pytest.mark.parametrize(
    ("batch", "channels", "filters", "height", "width"),
    [
        (1, 64, 128, 14, 14),
        (3, 6, 24, 7, 7),
        (1, 24, 6, 5, 7),
        (2, 256, 32, 7, 7),
        (1, 3, 7, 2, 13),
        (1, 16, 48, 8, 48),
        (1, 32, 24, 19, 19),
        (1, 144, 24, 6, 12),
    ],
)
def test_pointwise(
    check: Callable[..., None], batch: int, channels: int, filters: int, height: int, width: int
) -> None:
    shapes = (batch, channels, height, width), (filters, channels, 1, 1)
    check("pointwise", shapes, NO_PADDING, 4)


@pytest.mark.parametrize(
    ("batch", "channels", "filters"), [(1, 960, 100), (2, 32, 7), (1, 6, 8), (3, 72, 20)]
)
def test_pointwise_of_one_pixel(
    check: Callable[..., None], batch: int, channels: int, filters: int
) -> None:
    check("pointwise", ((batch, channels, 1, 1), (filters, channels, 1, 1)), NO_PADDING)


@pytest.mark.parametrize(("channels", "filters"), [(3, 16), (1, 24), (4, 6)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, (0, 0, 1, 1)), (3, 2, (1, 1, 1, 1)), (5, 1, (2,) * 4)]
)
def test_stem(
    check: Callable[..., None],
    channels: int,
    filters: int,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
) -> None:
    check("stem", ((1, channels, 12, 10), (filters, channels, kernel, kernel)), (stride, padding))


def _network() -> tuple[str, dict[str, tuple[int, ...]]]:
    """A block of MobileNet V3 with a residual and squeeze-excite, behind a first convolution."""
    import tvm
    from tvm import relay

    random = np.random.default_rng(0)

    def conv(x: Any, filters: int, channels: int, size: int = 1, **how: Any) -> Any:
        weight = random.uniform(-0.5, 0.5, (filters, channels, size, size)).astype("float32")
        bias = random.uniform(-0.5, 0.5, (filters, 1, 1)).astype("float32")
        made = relay.nn.conv2d(
            x, relay.const(weight), channels=filters, kernel_size=(size, size), **how
        )
        return made + relay.const(bias)

    def hard_sigmoid(x: Any) -> Any:
        return relay.clip(x + relay.const(3.0), 0.0, 6.0) * relay.const(1 / 6)

    def hard_swish(x: Any) -> Any:
        return x * hard_sigmoid(x)

    image = relay.var("image", shape=(1, 3, 16, 16))
    x = hard_swish(conv(image, 16, 3, 3, strides=2, padding=1))
    y = relay.clip(conv(x, 48, 16), 0.0, 6.0)
    y = hard_swish(conv(y, 48, 1, 5, groups=48, padding=2))
    gate = relay.nn.relu(conv(relay.nn.global_avg_pool2d(y), 12, 48))
    y = y * hard_sigmoid(conv(gate, 48, 12))
    x = conv(y, 16, 48) + x
    x = relay.nn.avg_pool2d(x, pool_size=(1, 8))
    x = relay.nn.global_avg_pool2d(x)
    module = tvm.IRModule.from_expr(relay.Function([image], conv(x, 10, 16)))
    return tvm.ir.save_json(module), {"image": (1, 3, 16, 16)}


def test_all_that_is_fused_behind_a_convolution(emulated: EmulatedProcess) -> None:
    found, expected = emulated.call(relay_outputs, *_network(), PRESET)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
