"""Our templates inside Relay: fused epilogues, layouts, kernels of a whole model, other targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.records import extract_tasks
from mobilenet_tvm.targets import Preset

DEPTHWISE = "depthwise_conv2d_NCHWc.mobilenet_x86"
POINTWISE = "pointwise_conv2d_NCHWc.mobilenet_x86"
STEM = "stem_conv2d_NCHWc.mobilenet_x86"
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def ours() -> Iterator[None]:
    """Our schedules on before and after every test."""
    import mobilenet_tvm.schedules as schedules

    schedules.use("ours")
    yield
    schedules.use("ours")


def build(function: Any, target: str, opt_level: int = 3) -> Any:
    import tvm
    from tvm import autotvm, relay

    module = tvm.IRModule.from_expr(function)
    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        with tvm.transform.PassContext(opt_level=opt_level, config=toolchain.pass_config()):
            return relay.build(module, target=target)
    finally:
        autotvm.GLOBAL_SCOPE.silent = silent


def run(library: Any, **inputs: Any) -> Any:
    import tvm
    from tvm.contrib import graph_executor

    executor = graph_executor.GraphModule(library["default"](tvm.cpu(0)))
    for name, value in inputs.items():
        executor.set_input(name, value)
    executor.run()
    return executor.get_output(0).numpy()


def kernels(library: Any) -> list[str]:
    """Names of the kernels that one inference runs, in order."""
    nodes = json.loads(library.get_graph_json())["nodes"]
    return [node["attrs"]["func_name"] for node in nodes if node["op"] == "tvm_op"]


def block(kind: str, shape: tuple[int, ...], filters: int) -> tuple[Any, Any, Any]:
    """``(relay expression of x, x, weights)`` of one convolution of NCHW ``x``."""
    from tvm import relay

    x = relay.var("x", shape=shape)
    geometry = {"depthwise": (shape[1], 3, 1), "pointwise": (1, 1, 0), "stem": (1, 3, 1)}
    groups, size, pad = geometry[kind]
    weight = RANDOM.uniform(-1, 1, (filters, shape[1] // groups, size, size)).astype("float32")
    conv = relay.nn.conv2d(
        x,
        relay.const(weight),
        padding=pad,
        groups=groups,
        channels=filters,
        kernel_size=(size, size),
    )
    return conv, x, weight


def reference(kind: str, references: dict[str, Any], data: Any, weight: Any) -> Any:
    if kind == "pointwise":
        return references[kind](data, weight)
    return references[kind](data, weight, 1, (1, 1, 1, 1))


@pytest.mark.parametrize("kind", ["depthwise", "pointwise"])
@pytest.mark.parametrize("epilogue", ["bias_clip", "residual", "hard_swish"])
def test_the_epilogue_is_fused_and_right(
    preset: Preset, references: dict[str, Callable[..., Any]], kind: str, epilogue: str
) -> None:
    from tvm import relay

    shape = (2, 24, 9, 10)
    conv, x, weight = block(kind, shape, 24)
    data = RANDOM.uniform(-1, 1, shape).astype("float32")
    bias = RANDOM.uniform(-1, 1, 24).astype("float32")
    expected = reference(kind, references, data, weight) + bias[:, None, None]
    out = relay.nn.bias_add(conv, relay.const(bias))
    if epilogue == "bias_clip":
        out, expected = relay.clip(out, 0, 6), np.clip(expected, 0, 6)
    elif epilogue == "residual":
        out, expected = relay.add(out, x), expected + data
    else:
        six, three = relay.const(6.0), relay.const(3.0)
        out = relay.divide(out * relay.clip(out + three, 0, 6), six)
        expected = expected * np.clip(expected + 3, 0, 6) / 6
    library = build(relay.Function([x], out), preset.target)
    names = kernels(library)
    assert sum("conv2d" in name for name in names) == 1
    assert all("conv2d" in name or "layout_transform" in name for name in names), names
    assert np.abs(run(library, x=data) - expected).max() < 1e-5


def test_one_pixel_and_a_broadcast_after_it(references: dict[str, Callable[..., Any]]) -> None:
    """The end of squeeze-and-excite: [N, C, 1, 1] times [N, C, H, W]."""
    from tvm import relay

    conv, x, weight = block("pointwise", (1, 8, 1, 1), 24)
    features = RANDOM.uniform(-1, 1, (1, 24, 5, 7)).astype("float32")
    out = relay.multiply(relay.clip(conv, 0, 1), relay.const(features))
    data = RANDOM.uniform(-1, 1, (1, 8, 1, 1)).astype("float32")
    library = build(relay.Function([x], out), targets.resolve("x86").target)
    expected = np.clip(references["pointwise"](data, weight), 0, 1) * features
    assert np.abs(run(library, x=data) - expected).max() < 1e-5


def test_the_first_convolution_reads_the_image_as_it_comes(
    preset: Preset, references: dict[str, Callable[..., Any]]
) -> None:
    from tvm import relay

    shape = (2, 3, 9, 10)
    conv, x, weight = block("stem", shape, 24)
    data = RANDOM.uniform(-1, 1, shape).astype("float32")
    library = build(relay.Function([x], relay.clip(conv, 0, 6)), preset.target)
    first, *rest = kernels(library)
    assert "conv2d" in first
    assert all("layout_transform" in name for name in rest)  # back to NCHW, at the exit
    expected = np.clip(reference("stem", references, data, weight), 0, 6)
    assert np.abs(run(library, x=data) - expected).max() < 1e-5


@pytest.mark.parametrize("kind", ["depthwise", "pointwise", "stem"])
def test_without_layout_alteration_it_is_still_right(
    references: dict[str, Callable[..., Any]], kind: str
) -> None:
    from tvm import relay

    shape = (1, 3 if kind == "stem" else 24, 9, 10)
    conv, x, weight = block(kind, shape, 24)
    data = RANDOM.uniform(-1, 1, shape).astype("float32")
    library = build(relay.Function([x], relay.nn.relu(conv)), targets.resolve("x86").target, 1)
    expected = np.maximum(reference(kind, references, data, weight), 0)
    assert np.abs(run(library, x=data) - expected).max() < 1e-5


def test_padding_as_tall_as_the_kernel_is_left_to_tvm(
    references: dict[str, Callable[..., Any]],
) -> None:
    """There an Inf in the first row would turn outputs that do not see it into NaN."""
    from tvm import relay

    x = relay.var("x", shape=(1, 8, 6, 6))
    weight = np.ones((8, 1, 3, 3), "float32")
    conv = relay.nn.conv2d(
        x, relay.const(weight), padding=(3, 3, 3, 3), groups=8, channels=8, kernel_size=(3, 3)
    )
    data = np.ones((1, 8, 6, 6), "float32")
    data[0, 0, 0, 2] = np.inf
    found = run(build(relay.Function([x], conv), targets.resolve("x86").target), x=data)
    with np.errstate(invalid="ignore"):
        expected = references["depthwise"](data, weight, 1, (3, 3, 3, 3))
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))


def test_unequal_blocks_are_left_to_tvm(references: dict[str, Callable[..., Any]]) -> None:
    from tvm import relay

    data = RANDOM.uniform(-1, 1, (1, 16, 6, 6)).astype("float32")
    weight = RANDOM.uniform(-1, 1, (16, 1, 3, 3)).astype("float32")
    x = relay.var("x", shape=(1, 4, 6, 6, 4))
    packed = weight.reshape(2, 8, 1, 3, 3, 1).transpose(0, 2, 3, 4, 5, 1)
    conv = relay.nn.contrib_depthwise_conv2d_nchwc(
        x,
        relay.const(np.ascontiguousarray(packed)),
        padding=(1, 1),
        channels=16,
        kernel_size=(3, 3),
        groups=16,
        data_layout="NCHW4c",
        kernel_layout="OIHW1i8o",
        out_layout="NCHW8c",
    )
    blocked = data.reshape(1, 4, 4, 6, 6).transpose(0, 1, 3, 4, 2)
    library = build(relay.Function([x], conv), targets.resolve("x86").target)
    found = run(library, x=np.ascontiguousarray(blocked))
    found = found.transpose(0, 1, 4, 2, 3).reshape(1, 16, 6, 6)
    expected = references["depthwise"](data, weight, 1, (1, 1, 1, 1))
    assert np.abs(found - expected).max() < 1e-5


def tiny(**changes: Any) -> frontend.RelayModel:
    arguments = {"alpha": 0.25, "resolution": 32, "classes": 10, **changes}
    model = zoo.build("mobilenet_v1", **arguments)
    return frontend.to_relay(frontend.clean(frontend.from_proto(model, "tiny")))


@pytest.fixture(scope="module")
def tiny_v1() -> frontend.RelayModel:
    return tiny()


def count(names: list[str]) -> tuple[int, int]:
    """``(pads, layout transforms)`` among kernels."""
    pads = sum("pad" in name for name in names)
    return pads, sum("layout_transform" in name for name in names)


@pytest.mark.slow
def test_a_whole_model_has_one_layout(tiny_v1: frontend.RelayModel) -> None:
    """No pad kernel, and no layout transform but the one out of the blocks, at the exit."""
    preset = targets.resolve("x86")
    ours = kernels(build(tiny_v1.module["main"], preset.target))
    pads, transforms = count(ours)
    assert pads == 0, ours
    assert transforms <= 1, ours
    convolutions = [i for i, name in enumerate(ours) if "conv2d" in name]
    assert len(convolutions) >= 27
    assert convolutions[0] == 0
    assert count(ours[: convolutions[-1] + 1]) == (0, 0), ours


def test_stock_schedules_come_back_and_go(tiny_v1: frontend.RelayModel) -> None:
    from tvm import relay

    import mobilenet_tvm.schedules as schedules

    preset = targets.resolve("x86")
    names = {task.handle.name for task in extract_tasks(tiny_v1.module, preset)}
    assert {DEPTHWISE, POINTWISE, STEM} <= names
    names = {task.handle.name for task in extract_tasks(tiny_v1.module, preset, schedules="stock")}
    assert {"depthwise_conv2d_NCHWc.x86", "conv2d_NCHWc.x86"} <= names
    assert not {DEPTHWISE, POINTWISE, STEM} & names

    conv, x, _ = block("depthwise", (1, 16, 9, 9), 16)
    data = RANDOM.uniform(-1, 1, (1, 16, 9, 9)).astype("float32")
    schedules.use("ours")
    ours = build(relay.Function([x], conv), preset.target)
    schedules.use("stock")
    stock = build(relay.Function([x], conv), preset.target)
    assert np.allclose(run(ours, x=data), run(stock, x=data), atol=1e-5)
    sources = [library.get_lib().get_source() for library in (ours, stock)]
    assert sources[0] != sources[1]
    with pytest.raises(ValueError, match="ours or stock"):
        schedules.use("theirs")


def test_tvms_own_extraction_finds_our_tasks(tiny_v1: frontend.RelayModel) -> None:
    import tvm
    from tvm import autotvm

    preset = targets.resolve("x86")
    found = autotvm.task.extract_from_program(
        tiny_v1.module["main"], target=tvm.target.Target(preset.target), params=tiny_v1.params
    )
    theirs = {str(task.workload) for task in found}
    assert {DEPTHWISE, POINTWISE, STEM} <= {task.name for task in found}
    assert {task.key for task in extract_tasks(tiny_v1.module, preset)} <= theirs


@pytest.mark.parametrize(
    ("kernel", "how"),
    [
        (3, {"groups": 8, "dilation": 2}),
        (3, {"groups": 2}),
        (1, {"strides": 2}),
        (1, {"padding": 1}),
    ],
)
def test_other_convolutions_are_left_to_tvm(kernel: int, how: dict[str, int]) -> None:
    import tvm
    from tvm import relay

    x = relay.var("x", shape=(1, 8, 9, 9))
    weight = relay.const(np.ones((8, 8 // how.get("groups", 1), kernel, kernel), "float32"))
    conv = relay.nn.conv2d(x, weight, channels=8, kernel_size=(kernel, kernel), **how)
    module = relay.transform.InferType()(tvm.IRModule.from_expr(relay.Function([x], conv)))
    names = [task.handle.name for task in extract_tasks(module, targets.resolve("x86"))]
    assert not [name for name in names if "mobilenet" in name]


def test_the_block_follows_from_the_channels_alone(preset: Preset) -> None:
    import tvm

    from mobilenet_tvm.schedules.x86 import layout

    with tvm.target.Target(preset.target):
        assert layout.lanes() == preset.peak_lanes
        for channels in range(1, 200):
            block = layout.channel_block(channels)
            assert channels % block == 0
            assert block <= preset.peak_lanes
        assert layout.channel_block(32) == preset.peak_lanes
        assert layout.channel_block(17) == 1


def test_which_targets_are_x86() -> None:
    import tvm

    from mobilenet_tvm.schedules.x86.layout import is_x86

    assert is_x86(tvm.target.Target("llvm -mtriple=x86_64-linux-gnu"))
    assert not is_x86(tvm.target.Target("llvm -mtriple=aarch64-linux-gnu"))
    assert not is_x86(tvm.target.Target("c"))
