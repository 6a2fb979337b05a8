"""Pooling in blocks of channels on x86 against numpy, and whose schedule it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import targets, toolchain

RANDOM = np.random.default_rng(0)
# (preset, channels in a block)
PRESETS = [("x86-sse42", 4), ("x86-avx2", 8), ("x86-avx512", 16)]
BEHIND = np.float32(0.25)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tags of the pools that our schedules are made for, as it happens."""
    toolchain.activate()
    from mobilenet_tvm.schedules.x86 import pool

    made: list[str] = []
    real: Callable[..., Any] = pool.schedule_template

    def schedule_template(outs: Any, tag: str, *rest: Any) -> Any:
        made.append(tag)
        return real(outs, tag, *rest)

    monkeypatch.setattr(pool, "schedule_template", schedule_template)
    return made


def run(pool: Callable[[Any], Any], value: Any, preset: str) -> Any:
    """What a pool of ``value`` gives with two operators behind it: see ``behind``."""
    missing = targets.missing_features(targets.resolve(preset).cpu_features)
    if missing:
        pytest.skip(f"this CPU has no {missing[0]}, which {preset} needs")
    toolchain.activate()
    import tvm
    from tvm import relay
    from tvm.contrib import graph_executor

    import mobilenet_tvm.schedules  # noqa: F401  (registers ours)

    x = relay.var("x", shape=value.shape)
    expression = relay.nn.relu(pool(x)) - relay.const(BEHIND)
    module = tvm.IRModule.from_expr(relay.Function([x], expression))
    with tvm.transform.PassContext(opt_level=3, config=toolchain.pass_config()):
        library = relay.build(module, target=targets.resolve(preset).target)
    executor = graph_executor.GraphModule(library["default"](tvm.cpu(0)))
    executor.set_input("x", value)
    executor.run()
    return executor.get_output(0).numpy()


def behind(pooled: Any) -> Any:
    """The operators behind a pool."""
    return np.maximum(pooled, 0) - BEHIND


@pytest.mark.parametrize(("preset", "lanes"), PRESETS)
@pytest.mark.parametrize(("blocks", "height", "width"), [(5, 7, 7), (16, 3, 11)])
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_global(
    preset: str, lanes: int, blocks: int, height: int, width: int, kind: str, ours: list[str]
) -> None:
    from tvm import relay

    value = RANDOM.uniform(-1, 1, (2, blocks, height, width, lanes)).astype("float32")
    pool = getattr(relay.nn, f"global_{kind}_pool2d")
    got = run(lambda x: pool(x, layout=f"NCHW{lanes}c"), value, preset)
    assert [tag[:13] for tag in ours] == ["adaptive_pool"]
    wanted = (value.mean if kind == "avg" else value.max)(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(got, behind(wanted), atol=1e-6)


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_an_adaptive_pool_to_one_pixel_is_ours_and_to_more_is_not(
    kind: str, ours: list[str]
) -> None:
    from tvm import relay

    value = RANDOM.uniform(-1, 1, (1, 3, 6, 8, 8)).astype("float32")
    pool = getattr(relay.nn, f"adaptive_{kind}_pool2d")
    for size, count in (((3, 2), 0), ((1, 2), 0), ((1, 1), 1)):
        high, wide = 6 // size[0], 8 // size[1]
        got = run(lambda x: pool(x, output_size=size, layout="NCHW8c"), value, "x86-avx2")  # noqa: B023
        assert len(ours) == count
        parts = value.reshape(1, 3, size[0], high, size[1], wide, 8)
        wanted = (parts.mean if kind == "avg" else parts.max)(axis=(3, 5))
        np.testing.assert_allclose(got, behind(wanted), atol=1e-6)


@pytest.mark.parametrize(("preset", "lanes"), PRESETS)
@pytest.mark.parametrize(
    ("pool", "strides", "padding", "include", "ceil"),
    [
        ((2, 3), (2, 1), (0, 0, 0, 0), False, False),
        ((3, 3), (2, 2), (1, 1, 1, 1), True, False),
        ((3, 3), (2, 2), (1, 0, 1, 2), False, False),
        ((3, 3), (2, 2), (0, 0, 0, 0), False, True),
        ((9, 1), (1, 1), (0, 0, 0, 0), False, False),
        ((2, 10), (1, 1), (0, 0, 0, 0), False, False),
    ],
)
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_window(
    preset: str,
    lanes: int,
    pool: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    include: bool,
    ceil: bool,
    kind: str,
    ours: list[str],
) -> None:
    from tvm import relay

    value = RANDOM.uniform(-1, 1, (1, 3, 9, 10, lanes)).astype("float32")
    how = {"pool_size": pool, "strides": strides, "padding": padding, "ceil_mode": ceil}
    if kind == "avg":
        how["count_include_pad"] = include
    operator = getattr(relay.nn, f"{kind}_pool2d")
    got = run(lambda x: operator(x, layout=f"NCHW{lanes}c", **how), value, preset)
    assert [tag[:4] for tag in ours] == ["pool"]
    top, left, bottom, right = padding
    pads = ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0))
    # What lies outside is no number, unless it counts as 0.
    image = np.pad(value, pads, constant_values=0 if include and kind == "avg" else np.nan)
    if ceil:  # the last window may hang over
        more = ((0, 0), (0, 0), (0, strides[0] - 1), (0, strides[1] - 1), (0, 0))
        image = np.pad(image, more, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(image, pool, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    wanted = (np.nanmean if kind == "avg" else np.nanmax)(windows, axis=(-2, -1))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, behind(wanted), atol=1e-6)
