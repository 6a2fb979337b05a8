"""One module with schedules of both searchers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mobilenet_tvm
from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.build import Plan, UnusablePlanError, compile_model
from mobilenet_tvm.build.compile import layout_transforms
from mobilenet_tvm.build.dispatch import AnsorRecords
from mobilenet_tvm.build.layouts import mixed
from mobilenet_tvm.build.manifest import Manifest, ModelInfo, read_manifest, sha256_bytes
from mobilenet_tvm.cli.interrupts import InterruptedInTvmError
from mobilenet_tvm.frontend.layout import convolutions
from mobilenet_tvm.records import parse_line

INFO = ModelInfo("net", sha256_bytes(b"net"))


def build(network: Any, path: Path, positions: tuple[int, ...], best: Any = None) -> Manifest:
    return compile_model(
        network.relay,
        targets.resolve("x86"),
        path,
        info=INFO,
        tasks=network.tasks,
        best=network.best if best is None else best,
        plan=Plan("mix", positions, 0.0),
    )


def error_of(network: Any, path: Path) -> float:
    """Against ONNX Runtime, of max |reference|."""
    import onnxruntime

    (given,) = network.relay.inputs
    data = np.random.default_rng(1).uniform(-1, 1, given.shape).astype(np.float32)
    (found,) = mobilenet_tvm.load(path).run({given.name: data}).values()
    session = onnxruntime.InferenceSession(network.onnx.SerializeToString())
    (expected,) = session.run(None, {given.name: data})
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def fused_kernels(network: Any, positions: tuple[int, ...]) -> list[str]:
    """Operators of each fused function as ``relay.build`` would lower them."""
    toolchain.activate()
    import tvm
    from tvm import autotvm, relay

    import mobilenet_tvm.schedules

    assert mobilenet_tvm.schedules
    found: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, relay.Call) and isinstance(node.op, relay.Function):
            names: list[str] = []
            relay.analysis.post_order_visit(
                node.op.body,
                lambda call: names.append(call.op.name) if isinstance(call, relay.Call) else None,
            )
            found.append("+".join(names))

    module = mixed(network.relay.module, positions)
    records = [r for r in network.best.values() if r.searcher == "ansor"]
    config = {**toolchain.pass_config(), "relay.backend.use_auto_scheduler": True}
    autotvm.GLOBAL_SCOPE.silent = True
    try:
        with AnsorRecords(records, []), tvm.transform.PassContext(opt_level=3, config=config):
            built, _ = relay.optimize(module, targets.resolve("x86").target)
    finally:
        autotvm.GLOBAL_SCOPE.silent = False
    relay.analysis.post_order_visit(built["main"], visit)
    return found


def test_the_chosen_convolutions_move_and_no_other(shortcut: Any) -> None:
    module = mixed(shortcut.relay.module, (1, 3))
    layouts = [str(call.attrs.data_layout) for call in convolutions(module)]
    assert layouts == ["NCHW", "NHWC", "NCHW", "NHWC"]
    typed = module["main"].checked_type
    assert [tuple(map(int, t.shape)) for t in typed.arg_types] == [(1, 16, 8, 8)]
    assert tuple(map(int, typed.ret_type.shape)) == (1, 32, 8, 8)


@pytest.mark.parametrize(
    ("positions", "kernel"),
    [
        # The shortcut comes from NCHW, the branch is Ansor's; and the other way round.
        ((2,), "nn.conv2d+add+add"),
        ((0, 1), "nn.contrib_conv2d_NCHWc+add+add"),
        ((0,), "nn.contrib_conv2d_NCHWc+add+add"),
        ((2, 3), "nn.conv2d+add+add"),
    ],
)
def test_an_addition_stays_with_its_convolution(
    shortcut: Any, positions: tuple[int, ...], kernel: str
) -> None:
    assert kernel in fused_kernels(shortcut, positions)


@pytest.mark.slow
@pytest.mark.parametrize("positions", [(), (0, 1, 2, 3), (2,), (0, 1)])
def test_every_plan_computes_the_same(
    shortcut: Any, tmp_path: Path, positions: tuple[int, ...], capfd: Any
) -> None:
    manifest = build(shortcut, tmp_path / "net.so", positions)
    assert error_of(shortcut, tmp_path / "net.so") < 1e-4
    wanted = {"autotvm"} if not positions else {"ansor", "autotvm"}
    assert set(manifest.tuning.searchers) == (wanted if len(positions) < 4 else {"ansor"})
    assert manifest.tuning.tuned == manifest.tuning.tasks >= 3
    assert manifest.tuning.layout_transforms >= (1 if positions else 0)
    said = "".join(capfd.readouterr())
    assert not said  # TVM has a page to say of every workload without a record


@pytest.mark.slow
@pytest.mark.parametrize("positions", [(0, 1, 2, 3), (2,)])
def test_any_random_schedules_agree(
    shortcut: Any, other_shortcuts: list[Any], tmp_path: Path, positions: tuple[int, ...]
) -> None:
    digests = set()
    for number, network in enumerate((shortcut, *other_shortcuts)):
        path = tmp_path / f"{number}.so"
        digests.add(build(network, path, positions).so_sha256)
        assert error_of(network, path) < 1e-4
    assert len(digests) == 3


@pytest.mark.slow
def test_a_mix_of_the_tiny_mobilenet_agrees(tiny_v1: Any, tmp_path: Path) -> None:
    positions = (0, 1, 2, 7, 8, 11, 12, 26, 27)
    manifest = build(tiny_v1, tmp_path / "mix.so", positions)
    assert error_of(tiny_v1, tmp_path / "mix.so") < 1e-4
    # One for each border, the image's and the logits' included, and two around the pooling.
    assert manifest.tuning.layout_transforms == 10
    assert manifest.tuning.searchers == ("ansor", "autotvm")
    assert manifest.tuning.tuned == manifest.tuning.tasks


@pytest.mark.slow
def test_the_verb_builds_measures_and_chooses(shortcut: Any, tmp_path: Path, capsys: Any) -> None:
    """``compile --logs`` with logs of both searchers, all for real."""
    from mobilenet_tvm import compile as verb

    model = tmp_path / "net.onnx"
    model.write_bytes(shortcut.onnx.SerializeToString())
    logs = tmp_path / "logs"
    logs.mkdir()
    for searcher in ("autotvm", "ansor"):
        lines = [r.line + "\n" for r in shortcut.best.values() if r.searcher == searcher]
        (logs / f"net.{searcher}.jsonl").write_text("".join(lines))
    options = ["--onnx", str(model), "--logs", str(logs), "-o", str(tmp_path), "--require-tuned"]
    assert verb.main([*options, "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    manifest = read_manifest(Path(payload["artifact"]))
    told = {one.name: one for one in manifest.decision}
    assert set(told) == {"autotvm", "ansor"}  # no transform would pay for itself
    assert all(one.parity_passed and one.median_ms for one in told.values())
    (chosen,) = (one for one in told.values() if one.chosen)
    assert chosen.ratio == 1
    assert manifest.tuning.searchers == (chosen.name,)
    assert manifest.tuning.layout_transforms == chosen.layout_transforms
    assert payload["tuned"] == payload["tasks"] >= 3
    assert payload["parity"]["passed"]
    assert error_of(shortcut, Path(payload["artifact"])) < 1e-4


def state() -> tuple[Any, ...]:
    from tvm import auto_scheduler, autotvm

    return (
        auto_scheduler.DispatchContext.current,
        autotvm.task.DispatchContext.current,
        autotvm.GLOBAL_SCOPE.silent,
    )


def test_a_layer_without_a_record_is_an_error(shortcut: Any, tmp_path: Path, capfd: Any) -> None:
    before = state()
    lost = next(t for t in shortcut.tasks if t.searcher == "ansor" and "depthwise" in t.label)
    best = {key: record for key, record in shortcut.best.items() if key != lost.key}
    with pytest.raises(UnusablePlanError, match="no Ansor record fits fused_nn_conv2d") as caught:
        build(shortcut, tmp_path / "net.so", (0, 1), best)
    assert "\n" not in str(caught.value)
    assert state() == before
    assert list(tmp_path.iterdir()) == []
    # What is Ansor's alone is missed only where it is used.
    fused = build(shortcut, tmp_path / "net.so", (0,), best)
    assert set(fused.tuning.searchers) == {"ansor", "autotvm"}
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("error", [InterruptedInTvmError, KeyError])
def test_what_is_no_fault_of_the_plan_is_not_called_one(
    shortcut: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Ctrl-C in one of TVM's callbacks must end the verb, not go on with the next plan."""

    def interrupted(*_args: Any) -> None:
        raise error

    before = state()
    monkeypatch.setattr(AnsorRecords, "query", interrupted)
    with pytest.raises(error):
        build(shortcut, tmp_path / "net.so", (0, 1))
    assert state() == before


@pytest.mark.parametrize("step", [["SP", 99, 0, 4, [4], 1], ["SP", 0]])
def test_a_record_that_cannot_be_applied_is_an_unusable_plan(
    shortcut: Any, tmp_path: Path, step: list[Any]
) -> None:
    """A step that splits a loop which is not there, and one that TVM cannot even read."""
    of = next(t for t in shortcut.tasks if t.searcher == "ansor" and "depthwise" in t.label)
    fields = json.loads(shortcut.best[of.key].line)
    fields["i"][1][1] = [step]
    damaged = parse_line(json.dumps(fields))
    with pytest.raises(UnusablePlanError, match="plan mix cannot be built: ") as caught:
        build(shortcut, tmp_path / "net.so", (0, 1), {**shortcut.best, of.key: damaged})
    assert "\n" not in str(caught.value)


def test_ansors_weights_are_rewritten_while_compiling(shortcut: Any) -> None:
    """No kernel of the module transforms constant weights."""
    kernels = fused_kernels(shortcut, (0, 1, 2, 3))
    assert not any("auto_scheduler_layout_transform" in kernel for kernel in kernels)


def test_layout_transforms_are_counted_in_the_graph() -> None:
    nodes = [
        {"op": "null", "name": "layout_transform"},
        {"op": "tvm_op", "attrs": {"func_name": "tvmgen_default_fused_layout_transform_3"}},
        {"op": "tvm_op", "attrs": {"func_name": "fused_layout_transform_nn_batch_flatten"}},
        {"op": "tvm_op", "attrs": {"func_name": "tvmgen_default_fused_nn_conv2d_add"}},
    ]
    assert layout_transforms(json.dumps({"nodes": nodes})) == 2
