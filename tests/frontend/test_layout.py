"""All convolutions in NHWC, or some: and the model computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import frontend, toolchain, zoo
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.frontend.layout import convolutions, to_nhwc


@pytest.fixture(scope="module")
def tiny() -> RelayModel:
    """MobileNet V1 0.25-32: 27 convolutions and one that stands for the dense layer."""
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    return frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))


@pytest.fixture(scope="module")
def run(tiny: RelayModel) -> Callable[[Any], Any]:
    """``run(module)``: the output for one random input, ``[1, 10] float32``."""
    toolchain.activate()
    import tvm
    from tvm import relay
    from tvm.contrib.graph_executor import GraphModule

    (given,) = tiny.inputs
    image = np.random.default_rng(0).uniform(-1, 1, given.shape).astype("float32")

    def call(module: Any) -> Any:
        config = toolchain.pass_config()
        with tvm.transform.PassContext(opt_level=1, config=config):
            built = relay.build(module, target="llvm")
        executor = GraphModule(built["default"](tvm.cpu(0)))
        executor.set_input(given.name, image)
        executor.run()
        return executor.get_output(0).numpy()

    return call


@pytest.fixture(scope="module")
def expected(tiny: RelayModel, run: Callable[[Any], Any]) -> Any:
    return run(tiny.module)


def layouts(module: Any) -> list[str]:
    return [str(call.attrs.data_layout) for call in convolutions(module)]


def transforms(module: Any) -> int:
    """Layout transforms of activations; those of weights and biases are folded."""
    from tvm import relay

    count = 0

    def visit(node: Any) -> None:
        nonlocal count
        if isinstance(node, relay.Call) and getattr(node.op, "name", "") == "layout_transform":
            count += len(relay.analysis.free_vars(node)) > 0

    relay.analysis.post_order_visit(module["main"], visit)
    return count


def test_convolutions_are_counted_in_the_model_s_order(tiny: RelayModel) -> None:
    calls = convolutions(tiny.module)
    assert len(calls) == 28
    assert [int(call.attrs.groups) for call in calls[:5]] == [1, 8, 1, 16, 1]
    assert [int(call.attrs.strides[0]) for call in calls[:4]] == [2, 1, 1, 2]


def test_all_are_moved_and_compute_the_same(
    tiny: RelayModel, run: Callable[[Any], Any], expected: Any
) -> None:
    module = to_nhwc(tiny.module)
    assert layouts(module) == ["NHWC"] * 28
    assert {str(call.attrs.kernel_layout) for call in convolutions(module)} == {"HWIO", "HWOI"}
    assert transforms(module) <= 2  # at the input and at the output
    assert layouts(tiny.module) == ["NCHW"] * 28
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("only", "between"),
    [
        pytest.param({0, 1, 2}, 2, id="the first"),
        # The pooling layer between these two stays as it is.
        pytest.param({26, 27}, 4, id="the last"),
        pytest.param({5}, 2, id="one"),
        pytest.param({4, 5, 11, 12}, 4, id="two groups"),
    ],
)
def test_only_the_chosen_ones_are_moved(tiny: RelayModel, only: set[int], between: int) -> None:
    module = to_nhwc(tiny.module, only)
    found = layouts(module)
    assert {index for index, layout in enumerate(found) if layout == "NHWC"} == only
    assert {layout for index, layout in enumerate(found) if index not in only} == {"NCHW"}
    assert transforms(module) == between


def test_mixed_layouts_compute_the_same(
    tiny: RelayModel, run: Callable[[Any], Any], expected: Any
) -> None:
    module = to_nhwc(tiny.module, {0, 4, 5, 11, 12, 27})
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-5)


def test_none_chosen_moves_none(tiny: RelayModel, run: Callable[[Any], Any], expected: Any) -> None:
    module = to_nhwc(tiny.module, ())
    assert layouts(module) == ["NCHW"] * 28
    assert transforms(module) == 0


def test_all_chosen_by_number_is_all(tiny: RelayModel) -> None:
    import tvm

    assert tvm.ir.structural_equal(to_nhwc(tiny.module, range(28)), to_nhwc(tiny.module))


def test_next_conversion_knows_nothing_of_the_one_before(tiny: RelayModel) -> None:
    """TVM counts the layers to skip in a global context."""
    to_nhwc(tiny.module, {3})
    assert layouts(to_nhwc(tiny.module)) == ["NHWC"] * 28
