"""From Relay to one self-contained shared library and its manifest."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

import mobilenet_tvm
from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.build import Coverage, compile_model, coverage, pool
from mobilenet_tvm.build import compile as compiling
from mobilenet_tvm.build.manifest import (
    Manifest,
    ModelInfo,
    Preprocessing,
    read_manifest,
    sha256_bytes,
    sha256_file,
)
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Record, Task, extract_tasks, parse_line
from mobilenet_tvm.search import AutoTvmSearcher, Trial

SHAPE = (1, 3, 32, 32)


def relay_model(model: Any = None) -> frontend.RelayModel:
    model = model or zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    return frontend.to_relay(frontend.clean(frontend.from_proto(model, "tiny")))


def small_relay() -> frontend.RelayModel:
    """One ReLU: compiles in a tenth of a second."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return relay_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))


INFO = ModelInfo("tiny", sha256_bytes(b"tiny"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, Any]:
    """V1 0.25-32, untuned: the ``.so``, its manifest, the ONNX model."""
    model = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    path = tmp_path_factory.mktemp("built") / "new" / "tiny.x86.so"
    relay = relay_model(model)
    preset = targets.resolve("x86")
    manifest = compile_model(
        relay,
        preset,
        path,
        info=INFO,
        tasks=extract_tasks(relay.module, preset),
        preprocessing=Preprocessing(32, 32, 36),
        labels=[f"label {index}" for index in range(10)],
    )
    return path, manifest, model


@pytest.mark.slow
def test_the_manifest_tells_it_all(built: tuple[Path, Manifest, Any]) -> None:
    path, manifest, _ = built
    assert read_manifest(path) == manifest
    assert manifest.name == "tiny.x86"
    assert manifest.so_sha256 == sha256_file(path)
    assert [(spec.name, spec.shape, spec.dtype) for spec in manifest.inputs] == [
        ("input", SHAPE, "float32")
    ]
    assert [(spec.name, spec.shape, spec.dtype) for spec in manifest.outputs] == [
        ("logits", (1, 10), "float32")
    ]
    preset = targets.resolve("x86")
    assert (manifest.target.preset, manifest.target.target) == (preset.name, preset.target)
    assert (manifest.target.arch, manifest.target.cpu_features) == ("x86_64", preset.cpu_features)
    assert manifest.toolchain.tvm == "0.19.0"
    assert manifest.toolchain.llvm.startswith("22.")
    assert (manifest.tuning.tuned, manifest.tuning.log_digest) == (0, None)
    assert manifest.tuning.tasks > 10
    assert manifest.labels is not None
    assert len(manifest.labels) == 10
    assert manifest.parity is None
    assert manifest.latency == ()
    assert sorted(item.name for item in path.parent.iterdir()) == [
        "tiny.x86.manifest.json",
        "tiny.x86.so",
    ]


@pytest.mark.slow
def test_the_library_needs_no_other(built: tuple[Path, Manifest, Any]) -> None:
    with built[0].open("rb") as stream:
        elf = ELFFile(stream)
        needed = [tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
        symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())
    assert needed == []
    exported = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"}
    assert "__tvm_dev_mblob" in exported  # graph and parameters
    assert any("conv2d" in name for name in exported)
    # All else that it must have is the C library's: mathematics, memory, and what threads take.
    outside = [s for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name]
    wanted = {s.name for s in outside if s["st_info"]["bind"] != "STB_WEAK"}
    assert {s.name for s in outside} - wanted <= {"TVMGetLastError"}
    assert wanted <= pool.SYMBOLS | {
        "expf",
        "exp",
        "tanhf",
        "powf",
        "memset",
        "memcpy",
        "memmove",
        "malloc",
        "free",
    }


@pytest.mark.slow
def test_it_loads_and_agrees_with_onnx_runtime(built: tuple[Path, Manifest, Any]) -> None:
    import onnxruntime

    path, _, model = built
    data = np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32)
    found = mobilenet_tvm.load(path).run({"input": data})["logits"]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"input": data})
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert found.argmax() == expected.argmax()


@pytest.mark.slow
def test_it_runs_with_tvms_runtime_alone(built: tuple[Path, Manifest, Any], tmp_path: Path) -> None:
    """In a fresh process, another folder, from a copy, with no part of this package."""
    import onnxruntime

    path, _, model = built
    copy = tmp_path / "renamed.so"
    copy.write_bytes(path.read_bytes())
    data = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
    np.save(tmp_path / "in.npy", data)
    code = """
import sys, numpy as np, tvm
from tvm.contrib import graph_executor
library = tvm.runtime.load_module("./renamed.so")
executor = graph_executor.GraphModule(library["default"](tvm.cpu(0)))
executor.set_input("input", np.load("in.npy"))
executor.run()
np.save("out.npy", executor.get_output(0).numpy())
assert not [name for name in sys.modules if name.startswith("mobilenet_tvm")]
"""
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60, capture_output=True
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"input": data})
    error = np.abs(np.load(tmp_path / "out.npy") - expected).max() / np.abs(expected).max()
    assert error < 1e-4


def test_linking_needs_no_compiler_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = small_relay()
    monkeypatch.setenv("PATH", "/nonexistent")
    path = tmp_path / "small.so"
    compile_model(relay, targets.resolve("x86"), path, info=INFO)
    assert path.read_bytes().startswith(b"\x7fELF")


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    relay, preset = small_relay(), targets.resolve("x86")
    digests = [
        compile_model(relay, preset, tmp_path / name / "small.so", info=INFO).so_sha256
        for name in "ab"
    ]
    assert digests[0] == digests[1]


def test_other_presets_compile_here(tmp_path: Path) -> None:
    relay = small_relay()
    for name in ("x86-avx512", "x86-avx2", "x86-sse42"):
        manifest = compile_model(relay, targets.resolve(name), tmp_path / f"{name}.so", info=INFO)
        assert manifest.target.preset == name


@pytest.mark.parametrize("place", ["/proc/none/x.so", "{tmp}/file/x.so", "{tmp}/folder.so"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.so").mkdir()
    path = Path(place.format(tmp=tmp_path))
    with pytest.raises(DeviceError, match="cannot write") as caught:
        compile_model(small_relay(), targets.resolve("x86"), path, info=INFO)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob(".*"))


def test_a_failing_linker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = dataclasses.replace(targets.resolve("x86"), linker=("ld.lld", "--no-such-option"))
    with pytest.raises(DeviceError, match=r"linking x\.so failed: .*no-such-option"):
        compile_model(small_relay(), preset, tmp_path / "x.so", info=INFO)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(DeviceError, match="pip install ziglang"):
        compiling.link(_Library(), tmp_path / "x.so", targets.resolve("x86"))
    assert list(tmp_path.iterdir()) == []


class _Library:
    def export_library(self, path: str, fcompile: Any) -> None:
        fcompile(path, [])


def conv_relay(kernel: int, groups: int, channels: int = 16) -> frontend.RelayModel:
    """One convolution on 16 pixels across, padded to keep them."""
    from onnx import TensorProto, helper, numpy_helper

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size, 16, 16])
        for name, size in (("x", channels), ("y", 16))
    ]
    weight = np.ones((16, channels // groups, kernel, kernel), np.float32)
    pads = [kernel // 2] * 4
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups, pads=pads)
    graph = helper.make_graph(
        [node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")]
    )
    return relay_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))


def record_of(task: Task, config: int) -> Record:
    searcher = AutoTvmSearcher(task, trials=1, seed=0)
    return parse_line(searcher.record_line(Trial(config, (1e-5,))))


@pytest.mark.parametrize(
    ("kernel", "groups", "channels"),
    [(3, 16, 16), (1, 1, 16), (3, 1, 3), (3, 1, 16)],
    ids=["depthwise", "pointwise", "stem", "stock"],
)
def test_a_record_is_what_the_layer_is_built_with(
    tmp_path: Path, kernel: int, groups: int, channels: int
) -> None:
    relay, preset = conv_relay(kernel, groups, channels), targets.resolve("x86")
    (task,) = extract_tasks(relay.module, preset)
    others = [config for config in task.candidates if config != task.default]
    digests = set()
    for config in (task.default, others[0], others[-1]):
        best = {} if config is None else {task.key: record_of(task, config)}
        path = tmp_path / f"{config}.so"
        manifest = compile_model(relay, preset, path, info=INFO, tasks=(task,), best=best)
        assert manifest.tuning.tuned == len(best)
        digests.add(manifest.so_sha256)
    assert len(digests) == 3


@pytest.mark.parametrize(("lent", "served"), [(False, "record"), (True, "transfer")])
def test_the_manifest_says_what_serves_a_layer(tmp_path: Path, lent: bool, served: str) -> None:
    relay, preset = conv_relay(1, 1), targets.resolve("x86")
    (task,) = extract_tasks(relay.module, preset)
    config = next(config for config in task.candidates if config != task.default)
    best = {task.key: record_of(task, config)}
    manifest = compile_model(
        relay,
        preset,
        tmp_path / "x.so",
        info=INFO,
        tasks=(task,),
        best=best,
        transferred={task.key} if lent else (),
    )
    assert manifest.tuning.transferred == ((0,) if lent else ())
    assert (manifest.tuning.tuned, manifest.tuning.tasks) == (0 if lent else 1, 1)
    assert manifest.tuning.records == (best[task.key].line,)
    assert {one.served for one in manifest.layers if one.task} == {served}
    untuned = compile_model(relay, preset, tmp_path / "y.so", info=INFO, tasks=(task,))
    assert {one.served for one in untuned.layers if one.task} == {"default"}
    assert untuned.so_sha256 != manifest.so_sha256  # it was built with what was lent


def test_the_manifest_says_whose_schedules_it_has(tmp_path: Path) -> None:
    relay, preset = conv_relay(1, 1), targets.resolve("x86")
    (task,) = extract_tasks(relay.module, preset, schedules="stock")
    best = {task.key: record_of(task, task.candidates[0])}
    manifest = compile_model(
        relay,
        preset,
        tmp_path / "x.so",
        info=INFO,
        tasks=(task,),
        best=best,
        schedules="stock",
    )
    assert (manifest.tuning.schedules, manifest.tuning.tuned) == ("stock", 1)
    assert {one.template for one in manifest.layers if one.task} == {"conv2d_NCHWc.x86"}


def test_a_record_that_tvm_never_asks_for_does_not_count(tmp_path: Path) -> None:
    relay, preset = conv_relay(3, 16), targets.resolve("x86")
    (task,) = extract_tasks(relay.module, preset)
    (foreign,) = extract_tasks(conv_relay(5, 16).module, preset)
    mistaken = dataclasses.replace(task, key=foreign.key)
    best = {foreign.key: record_of(foreign, foreign.candidates[0])}
    path = tmp_path / "x.so"
    manifest = compile_model(relay, preset, path, info=INFO, tasks=(mistaken,), best=best)
    assert (manifest.tuning.tasks, manifest.tuning.tuned) == (1, 0)
    assert manifest.tuning.log_digest is None


def test_coverage_counts_the_models_own_tasks() -> None:
    relay = relay_model()
    tasks = extract_tasks(relay.module, targets.resolve("x86"))
    record = Record(tasks[0].key, 0, 1e-3, 0, "")
    foreign = Record("another", 0, 1e-3, 0, "")
    none = coverage(tasks, {})
    some = coverage(tasks, {tasks[0].key: record, "another": foreign})
    assert not none
    assert str(some) == f"1 of {len(tasks)} tasks tuned"
    assert tasks[0].label not in some.missing
    assert len(some.missing) == len(tasks) - 1
    assert Coverage(2, 2, ())
