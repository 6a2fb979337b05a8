"""Our ARM templates inside Relay: one layout, defaults by core, and what stays TVM's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.records import extract_tasks

DEPTHWISE = "depthwise_conv2d_NCHWc.mobilenet_arm"
POINTWISE = "pointwise_conv2d_NCHWc.mobilenet_arm"
STEM = "stem_conv2d_NCHWc.mobilenet_arm"
OURS = {DEPTHWISE, POINTWISE, STEM}
PRESETS = ("rpi4", "cortex-a55", "armv7")


@pytest.fixture(autouse=True)
def ours() -> Iterator[None]:
    """Our schedules on before and after every test."""
    import mobilenet_tvm.schedules as schedules

    schedules.use("ours")
    yield
    schedules.use("ours")


def small(name: str, **changes: Any) -> frontend.RelayModel:
    arguments = {"resolution": 32, "classes": 10, **changes}
    model = zoo.build(name, **arguments)
    return frontend.to_relay(frontend.clean(frontend.from_proto(model, name)))


def kernels(relay_model: frontend.RelayModel, target: str) -> list[str]:
    """Names of the kernels that one inference runs, in order."""
    import tvm
    from tvm import autotvm, relay

    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        with tvm.transform.PassContext(
            opt_level=3,
            config=toolchain.pass_config(),
            disabled_pass=list(toolchain.DISABLED_PASSES),
        ):
            library = relay.build(relay_model.module, target=target)
    finally:
        autotvm.GLOBAL_SCOPE.silent = silent
    nodes = json.loads(library.get_graph_json())["nodes"]
    return [node["attrs"]["func_name"] for node in nodes if node["op"] == "tvm_op"]


def convolution(shape: tuple[int, ...], weight: tuple[int, ...], **how: Any) -> Any:
    import tvm
    from tvm import relay

    x = relay.var("x", shape=shape)
    values = np.random.default_rng(0).uniform(-1, 1, weight).astype("float32")
    conv = relay.nn.conv2d(
        x, relay.const(values), channels=weight[0], kernel_size=weight[2:], **how
    )
    return relay.transform.InferType()(tvm.IRModule.from_expr(relay.Function([x], conv)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset"),
    [("mobilenet_v1", name) for name in PRESETS]
    + [("mobilenet_v2", "rpi4"), ("mobilenet_v3_small", "rpi3")],
)
def test_nothing_stands_between_two_convolutions(name: str, preset: str) -> None:
    changes = {"alpha": 0.25} if name == "mobilenet_v1" else {}
    found = kernels(small(name, **changes), targets.resolve(preset).target)
    convolutions = [i for i, kernel in enumerate(found) if "conv2d" in kernel]
    assert len(convolutions) >= 27
    assert convolutions[0] == 0
    between = found[: convolutions[-1] + 1]
    assert not [kernel for kernel in between if "layout_transform" in kernel or "_pad" in kernel]


@pytest.mark.parametrize("preset", PRESETS)
def test_all_tasks_of_a_mobilenet_are_ours_and_have_their_default(preset: str) -> None:
    tasks = extract_tasks(small("mobilenet_v3_small").module, targets.resolve(preset))
    assert {task.handle.name for task in tasks} == OURS
    for task in tasks:
        assert task.default in task.candidates, task.label
        assert len(task.candidates) < 2000, task.label
    stock = extract_tasks(
        small("mobilenet_v3_small").module, targets.resolve(preset), schedules="stock"
    )
    assert not OURS & {task.handle.name for task in stock}


def test_cores_that_issue_in_order_are_told_apart() -> None:
    from tvm import autotvm

    model = small("mobilenet_v1", resolution=224)
    chosen, spaces = {}, {}
    for preset in ("rpi4", "rpi3", "cortex-a55", "rpi5", "neoverse-n1"):
        for task in extract_tasks(model.module, targets.resolve(preset)):
            if task.label in ("pointwise 1x1 512->512 @ 14x14", "depthwise 3x3 512 @ 14x14"):
                fallback = autotvm.task.space.FallbackConfigEntity()
                with task.handle.target, autotvm.task.ApplyConfig(fallback):
                    task.handle.func(*task.handle.args)
                knobs = {name: fallback[name].val for name in task.handle.config_space.space_map}
                chosen[preset, task.label.split()[0]] = knobs
                spaces[preset, task.label.split()[0]] = len(task.candidates)
    for kind in ("depthwise", "pointwise"):
        assert chosen["rpi4", kind] == chosen["rpi5", kind] == chosen["neoverse-n1", kind]
    assert chosen["rpi3", "depthwise"] != chosen["rpi4", "depthwise"]
    assert chosen["cortex-a55", "pointwise"]["lanes"] == 2
    assert chosen["rpi4", "pointwise"]["lanes"] == 4
    # Half loads are worth trying only where they are issued beside an FMA.
    assert spaces["rpi3", "pointwise"] > spaces["rpi4", "pointwise"]


@pytest.mark.parametrize("preset", PRESETS)
def test_other_convolutions_stay_tvms_in_our_layout(preset: str) -> None:
    target = targets.resolve(preset)
    # Several taps over many channels, strides without taps, dilation: blocks of four in and out.
    for how in (
        {"weight": (64, 32, 3, 3), "padding": 1, "strides": 2},
        {"weight": (64, 32, 1, 1), "strides": 2},
        {"weight": (32, 32, 3, 3), "padding": 2, "dilation": 2},
    ):
        (task,) = extract_tasks(convolution((1, 32, 14, 14), **how), target)
        assert task.handle.name == "conv2d_NCHWc.x86"
        assert task.candidates
        for index in task.candidates:
            config = task.handle.config_space.get(index)
            assert (config["tile_ic"].size[-1], config["tile_oc"].size[-1]) == (4, 4)


@pytest.mark.parametrize("preset", PRESETS)
def test_grouped_convolutions_are_tvms_and_their_candidates_sound(preset: str) -> None:
    module = convolution((1, 12, 7, 9), (24, 6, 3, 3), groups=2, padding=1)
    (task,) = extract_tasks(module, targets.resolve(preset))
    assert task.handle.name == "group_conv2d_nchw.arm_cpu"
    space = task.handle.config_space
    assert task.default in task.candidates
    assert len(task.candidates) < space.range_length
    for index in task.candidates:
        config = space.get(index)
        assert 6 % config["tile_ic"].size[-1] == 0
        assert 12 % config["tile_oc"].size[-1] == 0


def test_stock_templates_with_orders_and_annotations_have_a_default_too() -> None:
    """spatial_pack's knobs are no sizes and no numbers."""
    module = convolution((1, 16, 8, 8), (16, 16, 3, 3), padding=1, strides=2)
    tasks = extract_tasks(module, targets.resolve("rpi4"), schedules="stock")
    names = {task.handle.name: task for task in tasks}
    assert names["conv2d_nchw_spatial_pack.arm_cpu"].default == 0


def test_foreign_blocks_are_left_to_tvm() -> None:
    """Of hand-written Relay; a block of the weights is no register tile there."""
    import tvm
    from tvm import relay

    x = relay.var("x", shape=(1, 2, 6, 6, 8))
    weight = relay.const(np.ones((2, 2, 1, 1, 8, 8), "float32"))
    conv = relay.nn.contrib_conv2d_nchwc(
        x,
        weight,
        channels=16,
        kernel_size=(1, 1),
        data_layout="NCHW8c",
        kernel_layout="OIHW8i8o",
        out_layout="NCHW8c",
    )
    module = tvm.IRModule.from_expr(relay.Function([x], conv))
    with tvm.transform.PassContext(opt_level=3, config=toolchain.pass_config()):
        library = relay.build(module, target=targets.resolve("rpi4").target)
    (node,) = [n for n in json.loads(library.get_graph_json())["nodes"] if n["op"] == "tvm_op"]
    assert "conv2d" in node["attrs"]["func_name"]


@pytest.mark.parametrize(
    ("target", "arm", "wide", "in_order"),
    [
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72", True, True, False),
        ("llvm -keys=arm_cpu,cpu -mtriple=aarch64-linux-gnu -mcpu=cortex-a53", True, True, True),
        ("llvm -keys=arm_cpu,cpu -mtriple=aarch64-apple-macos -mcpu=apple-m1", True, True, False),
        ("llvm -keys=arm_cpu,cpu -mtriple=armv7l-linux-gnueabihf -mattr=+neon", True, False, True),
        ("llvm -keys=arm_cpu,cpu -mtriple=armv7l-linux-gnueabihf", False, False, True),
        ("llvm -mtriple=x86_64-linux-gnu", False, False, False),
    ],
)
def test_what_a_target_is(target: str, arm: bool, wide: bool, in_order: bool) -> None:
    import tvm

    from mobilenet_tvm.schedules.arm import target as of

    with tvm.target.Target(target) as current:
        assert of.is_arm(current) is arm
        assert of.is_64_bit(current) is wide
        if arm:
            assert of.in_order() is in_order
            assert of.registers() == (32 if wide else 16)
        assert [of.channel_block(channels) for channels in (24, 6, 100, 7)] == [4, 2, 4, 1]
