"""Deliberate faults, each found and named: made in the Relay module, as an importer or a pass would
make them, and in the loops of one kernel, as a schedule would."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import check, frontend, targets, toolchain, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import Manifest, ModelInfo, sha256_bytes
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.frontend import RelayModel
from mobilenet_tvm.parity import check_artifact
from mobilenet_tvm.parity.bisect import Bisection, bisect, write_reproducer
from mobilenet_tvm.records import choose_records, extract_tasks, parse_line
from mobilenet_tvm.search import AutoTvmSearcher, Trial

pytestmark = pytest.mark.slow

ZOO = {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 32, "classes": 10}

# --- faults in the module


def in_relay(model: RelayModel, tensor: str, change: Callable[[Any, list[Any]], Any]) -> RelayModel:
    """A copy with ``change(call, arguments)`` in the place of the calls that make an ONNX tensor.

    ``change`` returns the new call, or None to leave it.
    """
    toolchain.activate()
    import tvm
    from tvm import relay

    changed = []

    class Mutator(relay.ExprMutator):
        def visit_call(self, call: Any) -> Any:
            arguments = [self.visit(argument) for argument in call.args]
            if str(call.span.source_name.name) == tensor:
                new = change(call, arguments)
                if new is not None:
                    changed.append(new)
                    return new
            return relay.Call(call.op, arguments, call.attrs, call.type_args, call.span)

    function = Mutator().visit(model.module["main"])
    assert changed, f"no call makes {tensor}"
    module = relay.transform.InferType()(tvm.IRModule.from_expr(function))
    return dataclasses.replace(model, module=module)


def padded_on_the_other_side(call: Any, arguments: list[Any]) -> Any:
    """SAME_LOWER in the place of SAME_UPPER."""
    from tvm import relay

    if call.op.name != "nn.conv2d":
        return None
    attrs = {str(field.name): call.attrs[field.name] for field in call.attrs.list_field_info()}
    top, left, bottom, right = map(int, attrs["padding"])
    assert (top, left) != (bottom, right), "this padding is symmetrical"
    return _with_span(
        relay.nn.conv2d(
            *arguments,
            strides=attrs["strides"],
            padding=(bottom, right, top, left),
            groups=int(attrs["groups"]),
            channels=attrs["channels"],
            kernel_size=attrs["kernel_size"],
        ),
        call,
    )


def without_bias(call: Any, arguments: list[Any]) -> Any:
    """The addition of the bias does nothing."""
    return arguments[0] if call.op.name == "nn.bias_add" else None


def with_two_filters_swapped(call: Any, arguments: list[Any]) -> Any:
    """Filters 3 and 5 in each other's place."""
    from tvm import relay

    if call.op.name != "nn.conv2d":
        return None
    weight = arguments[1].data.numpy().copy()
    weight[[3, 5]] = weight[[5, 3]]
    return relay.Call(
        call.op, [arguments[0], relay.const(weight)], call.attrs, call.type_args, call.span
    )


def _with_span(new: Any, call: Any) -> Any:
    from tvm import relay

    return relay.Call(new.op, new.args, new.attrs, new.type_args, call.span)


# --- faults in a kernel


@contextlib.contextmanager
def in_kernel(
    monkeypatch: Any, kernel: str, change: Callable[[Any], Any | None]
) -> Iterator[list[Any]]:
    """While it lasts, ``change(statement)`` is applied inside one kernel of what is built.

    It is asked for each statement, inner ones first, and returns another one or None. Yields the
    statements that it changed.
    """
    toolchain.activate()
    import tvm

    changed: list[Any] = []

    def replace(statement: Any) -> Any:
        new = change(statement)
        if new is not None:
            changed.append(statement)
        return new

    @tvm.tir.transform.prim_func_pass(opt_level=0)
    def fault(function: Any, module: Any, context: Any) -> Any:
        if function.attrs is None or str(function.attrs.get("global_symbol", "")) != kernel:
            return function
        kinds = ["tir.BufferStore", "tir.For"]
        body = tvm.tir.stmt_functor.ir_transform(function.body, None, replace, kinds)
        return function.with_body(body)

    config = toolchain.pass_config()
    # Phase 1: the loops are as the schedule made them, vectors and unrolling come later.
    monkeypatch.setattr(
        toolchain, "pass_config", lambda: {**config, "tir.add_lower_pass": [(1, fault)]}
    )
    try:
        yield changed
    finally:
        monkeypatch.setattr(toolchain, "pass_config", lambda: config)


def never_set_to_zero(statement: Any) -> Any:
    """The sums of a convolution begin with whatever lies in their buffer."""
    import tvm

    if isinstance(statement, tvm.tir.BufferStore) and _is_zero(statement.value):
        return tvm.tir.Evaluate(0)
    return None


def _is_zero(value: Any) -> bool:
    import tvm

    if isinstance(value, tvm.tir.Broadcast):
        value = value.value
    return isinstance(value, tvm.tir.FloatImm) and float(value) == 0


def one_round_short(loop_variable: str) -> Callable[[Any], Any]:
    """A loop, called by its variable, that ends before its last round: the tail of a tile."""
    import tvm

    def change(statement: Any) -> Any:
        if isinstance(statement, tvm.tir.For) and statement.loop_var.name == loop_variable:
            return tvm.tir.For(
                statement.loop_var,
                statement.min,
                statement.extent - 1,
                statement.kind,
                statement.body,
                statement.thread_binding,
                statement.annotations,
            )
        return None

    return change


# --- a network to break


@pytest.fixture(scope="module")
def proto() -> Any:
    return zoo.build(**ZOO)


@pytest.fixture(scope="module")
def relay(proto: Any) -> RelayModel:
    return frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))


@pytest.fixture(scope="module")
def build(proto: Any, relay: RelayModel, tmp_path_factory: Any) -> Callable[..., Path]:
    """Compiles the network, or a broken one, with a record for every task."""
    preset = targets.resolve("x86")
    tasks = extract_tasks(relay.module, preset)
    assert all(task.default is not None for task in tasks)
    lines = [
        AutoTvmSearcher(task, trials=1, seed=0).record_line(Trial(task.default, (1e-5,)))
        for task in tasks
    ]
    best = choose_records(tasks, [parse_line(line) for line in lines])

    def compile_it(model: RelayModel = relay) -> Path:
        path = tmp_path_factory.mktemp("net") / "tiny.so"
        info = ModelInfo("tiny", sha256_bytes(proto.SerializeToString()), zoo=ZOO)
        compile_model(model, preset, path, info=info, tasks=tasks, best=best)
        return path

    return compile_it


@pytest.fixture(scope="module")
def sound(build: Callable[..., Path]) -> Path:
    return build()


def feed_for(path: Path) -> dict[str, Any]:
    from mobilenet_tvm.build.manifest import read_manifest

    rng = np.random.default_rng(0)
    specs = read_manifest(path).inputs
    return {spec.name: rng.normal(size=spec.shape).astype(spec.dtype) for spec in specs}


def kernel_of(path: Path, tensor: str) -> str:
    from mobilenet_tvm.build.manifest import read_manifest

    manifest: Manifest = read_manifest(path)
    (layer,) = (layer for layer in manifest.layers if tensor in layer.tensors)
    return layer.kernel


def found_in(path: Path, node: str) -> Bisection:
    """The bisection, after what must be true of it wherever the fault is."""
    assert not check_artifact(path)
    result = bisect(path, feed_for(path))
    culprit = result.culprit
    assert culprit is not None, result.summary()
    assert culprit.nodes[0] == node
    assert node in result.summary()
    place = result.layers.index(culprit)
    assert all(layer.own <= 1e-5 and layer.after <= 1e-5 for layer in result.layers[:place])
    # What comes after it is wrong by consequence, and is not blamed.
    assert all(layer.own <= 1e-4 or np.isinf(layer.before) for layer in result.layers[place + 1 :])
    assert culprit.before <= 1e-5
    assert culprit.own > 1e-3
    for record in result.records:
        assert json.loads(record)["input"][1] == culprit.info.template
    return result


def test_a_sound_artifact_has_no_culprit(sound: Path) -> None:
    result = bisect(sound, feed_for(sound))
    assert result.culprit is None
    assert result.summary().startswith("every layer agrees with onnxruntime")
    # 27 convolutions, pooling, the classifier and its flattening.
    assert len(result.layers) == 30
    assert {layer.tensor for layer in result.layers} >= {"conv_dw_7/relu6/output", "logits"}
    assert 0 < result.worst[0].own <= 1e-5
    with pytest.raises(UsageError, match="there is nothing to reproduce"):
        write_reproducer(sound.parent, result)


RELAY_FAULTS = [
    ("conv_dw_5", padded_on_the_other_side, "elements are wrong"),
    ("conv_pw_6", without_bias, "elements are wrong"),
    ("conv_dw_4", with_two_filters_swapped, "only in channels 3, 5 of 32"),
]


@pytest.mark.parametrize(
    ("node", "fault", "fact"), RELAY_FAULTS, ids=["wrong pad", "dropped bias", "swapped channels"]
)
def test_a_fault_of_the_module_is_named(
    build: Callable[..., Path],
    relay: RelayModel,
    node: str,
    fault: Callable[[Any, list[Any]], Any],
    fact: str,
) -> None:
    tensor = f"{node}/bn/output"
    path = build(in_relay(relay, tensor, fault))
    result = found_in(path, f"Conv {node}")
    assert any(fact in one for one in result.where)
    # Padded otherwise it is no longer the layer that the record is of.
    assert len(result.records) == (fault is not padded_on_the_other_side)


def test_sums_that_begin_with_an_uninitialised_buffer_are_named(
    build: Callable[..., Path], sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = kernel_of(sound, "conv_pw_5/relu6/output")
    with in_kernel(monkeypatch, kernel, never_set_to_zero) as changed:
        path = build()
    assert changed
    found_in(path, "Conv conv_pw_5")


def test_a_tile_that_ends_one_short_is_named_and_reproduced(
    build: Callable[..., Path],
    sound: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = one_round_short("i3.inner")
    with in_kernel(monkeypatch, kernel_of(sound, "conv_pw_3/relu6/output"), short) as changed:
        path = build()
    assert changed
    result = found_in(path, "Conv conv_pw_3")
    assert result.culprit is not None
    assert result.culprit.poisoned
    assert any("NaN: never written" in fact for fact in result.where)
    assert len(result.records) == 1
    assert any(fact.startswith("only in column") for fact in result.where)

    # The verb says so, and its reproducer fails as long as the fault is there.
    folder = tmp_path / "wrong layer"
    arguments = [str(path), "--bisect", "--bisect-output", str(folder), "--json"]
    assert check.main(arguments) == 1
    payload = json.loads(capsys.readouterr().out)
    assert payload["bisect"]["culprit"]["nodes"][0] == "Conv conv_pw_3"
    assert payload["bisect"]["records"] == list(result.records)
    command = shlex.split(payload["bisect"]["reproducer"]["command"])
    assert command[:3] == ["python", "-m", "mobilenet_tvm.check"]
    alone = "tvmgen_default_fused_nn_contrib_conv2d_NCHWc_add_clip"
    with in_kernel(monkeypatch, alone, short) as changed:
        assert check.main([*command[3:], "--bisect"]) == 1
    assert changed
    said = capsys.readouterr()
    assert "plan autotvm, 1 records" in said.out
    assert "wrong     Conv conv_pw_3" in said.out
    assert check.main(command[3:]) == 0


def test_a_fault_of_the_frontend_is_named(
    proto: Any, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ONNX file itself is the reference, not what the frontend made of it."""
    from mobilenet_tvm.frontend import convs

    folded = convs._folded

    def one_forgotten(conv: Any, norm: Any, constants: Any) -> Any:
        weight, bias = folded(conv, norm, constants)
        return weight, bias * (norm.output[0] != "conv_dw_8/bn/output")

    monkeypatch.setattr(convs, "_folded", one_forgotten)
    broken = frontend.to_relay(frontend.clean(frontend.from_proto(proto, "tiny")))
    found_in(build(broken), "Conv conv_dw_8")


def test_a_manifest_that_lists_no_kernels_is_refused(sound: Path, tmp_path: Path) -> None:
    import msgspec

    from mobilenet_tvm.build.manifest import read_manifest, write_manifest

    path = tmp_path / "tiny.so"
    path.write_bytes(sound.read_bytes())
    write_manifest(path, msgspec.structs.replace(read_manifest(sound), layers=()))
    with pytest.raises(UsageError, match="does not list its kernels: compile it again"):
        bisect(path, feed_for(path))
