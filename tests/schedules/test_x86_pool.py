"""Pooling in blocks of channels on x86 against numpy, and that it is ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain

RANDOM = np.random.default_rng(0)


def run(expression: Any, x: Any, value: Any, preset: str) -> Any:
    toolchain.activate()
    import tvm
    from tvm import relay
    from tvm.contrib import graph_executor

    import mobilenet_tvm.schedules  # noqa: F401  (registers ours)

    module = tvm.IRModule.from_expr(relay.Function([x], expression))
    with tvm.transform.PassContext(opt_level=3, config=toolchain.pass_config()):
        library = relay.build(module, target=targets.resolve(preset).target)
    executor = graph_executor.GraphModule(library["default"](tvm.cpu(0)))
    executor.set_input("x", value)
    executor.run()
    return executor.get_output(0).numpy()


@pytest.mark.parametrize("preset", ["x86-avx2", "x86-sse42"])
@pytest.mark.parametrize(("blocks", "lanes", "height", "width"), [(5, 8, 7, 7), (16, 4, 3, 11)])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_global(preset: str, blocks: int, lanes: int, height: int, width: int, kind: str) -> None:
    from tvm import relay

    shape = (2, blocks, height, width, lanes)
    value = RANDOM.uniform(-1, 1, shape).astype("float32")
    x = relay.var("x", shape=shape)
    pool = getattr(relay.nn, f"global_{kind}_pool2d")(x, layout=f"NCHW{lanes}c")
    got = run(relay.nn.relu(pool), x, value, preset)
    wanted = (value.mean if kind == "avg" else value.max)(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(got, np.maximum(wanted, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "strides", "padding", "include"),
    [
        ((2, 3), (2, 1), (0, 0, 0, 0), False),
        ((3, 3), (2, 2), (1, 1, 1, 1), True),
        ((9, 1), (1, 1), (0, 0, 0, 0), False),
    ],
)
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_window(
    pool: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    include: bool,
    kind: str,
) -> None:
    from tvm import relay

    shape = (1, 3, 9, 10, 8)
    value = RANDOM.uniform(-1, 1, shape).astype("float32")
    x = relay.var("x", shape=shape)
    how = {"pool_size": pool, "strides": strides, "padding": padding, "layout": "NCHW8c"}
    if kind == "avg":
        how["count_include_pad"] = include
    got = run(getattr(relay.nn, f"{kind}_pool2d")(x, **how), x, value, "x86-avx2")
    top, left, bottom, right = padding
    fill = 0.0 if kind == "avg" else -np.inf
    pads = ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0))
    image = np.pad(value, pads, constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(image, pool, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    wanted = (windows.mean if kind == "avg" else windows.max)(axis=(-2, -1))
    np.testing.assert_allclose(got, wanted, atol=1e-6)
