"""Loading refuses what does not fit, by name; running gives what ONNX Runtime gives."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import mobilenet_tvm
from mobilenet_tvm import frontend, targets, toolchain
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import (
    Manifest,
    ModelInfo,
    ParityInfo,
    read_manifest,
    sha256_bytes,
    sha256_file,
    write_manifest,
)
from mobilenet_tvm.errors import CheckFailedError, UsageError
from mobilenet_tvm.parity import check_artifact

SHAPE = (2, 3, 8, 8)


def network() -> Any:
    """Two inputs, a depthwise and a pointwise convolution, two outputs."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {"dw": (3, 1, 3, 3), "pw": (5, 3, 1, 1)}
    initializers = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Add", ["image", "shift"], ["sum"]),
        helper.make_node("Conv", ["sum", "dw"], ["deep"], group=3, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["deep", "pw"], ["points"]),
        helper.make_node("Relu", ["points"], ["active"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE),
            helper.make_tensor_value_info("shift", TensorProto.FLOAT, (3, 1, 1)),
        ],
        [
            helper.make_tensor_value_info("active", TensorProto.FLOAT, (2, 5, 8, 8)),
            helper.make_tensor_value_info("deep", TensorProto.FLOAT, (2, 3, 8, 8)),
        ],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def compiled(model: Any, path: Path) -> Path:
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(model, path.stem)))
    info = ModelInfo(path.stem, sha256_bytes(model.SerializeToString()))
    compile_model(relay, targets.resolve("x86"), path, info=info)
    return path


def expected(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(network(), tmp_path_factory.mktemp("runtime") / "net.so")


@pytest.fixture
def artifact(original: Path, tmp_path: Path) -> Path:
    """A copy, free to be broken."""
    for source in original.parent.iterdir():
        shutil.copy(source, tmp_path)
    return tmp_path / "net.so"


@pytest.fixture(scope="module")
def module(original: Path) -> mobilenet_tvm.Module:
    return mobilenet_tvm.load(original)


@pytest.fixture
def inputs() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "image": random.uniform(-1, 1, SHAPE).astype(np.float32),
        "shift": random.uniform(-1, 1, (3, 1, 1)).astype(np.float32),
    }


def edit(artifact: Path, change: Callable[[Manifest], dict[str, Any]]) -> None:
    manifest = read_manifest(artifact)
    write_manifest(artifact, msgspec.structs.replace(manifest, **change(manifest)))


def refused(artifact: Path, **how: Any) -> str:
    """What loading says; always one line."""
    with pytest.raises(UsageError) as caught:
        mobilenet_tvm.load(artifact, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- running


def test_it_gives_what_onnx_runtime_gives(
    module: mobilenet_tvm.Module, inputs: dict[str, Any]
) -> None:
    found = module.run(inputs)
    reference = expected(network(), inputs)
    assert list(found) == ["active", "deep"]
    for name, array in reference.items():
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - array).max() <= 1e-5 * np.abs(array).max()


def test_results_are_the_callers_own(module: mobilenet_tvm.Module, inputs: dict[str, Any]) -> None:
    first = module.run(inputs)
    kept = first["deep"].copy()
    module.run({name: array + 1 for name, array in inputs.items()})
    assert np.array_equal(first["deep"], kept)
    first["deep"][:] = 0
    assert np.array_equal(module.run(inputs)["deep"], kept)


def test_the_timer_runs_on_the_inputs_last_set(
    module: mobilenet_tvm.Module, inputs: dict[str, Any]
) -> None:
    module.set_inputs(inputs)
    module.timer()()
    assert np.array_equal(module._executor.get_output(1).numpy(), module.run(inputs)["deep"])


@pytest.mark.parametrize("how", ["transposed", "strided", "list", "fortran"])
def test_any_memory_layout_will_do(
    module: mobilenet_tvm.Module, inputs: dict[str, Any], how: str
) -> None:
    wanted = module.run(inputs)
    image = inputs["image"]
    changed = {
        "transposed": np.ascontiguousarray(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "strided": np.repeat(image, 2, axis=3)[..., ::2],
        "fortran": np.asfortranarray(image),
        "list": [np.float32(image[0]), np.float32(image[1])],
    }[how]
    found = module.run({**inputs, "image": changed})
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": None}, "input image [2, 3, 8, 8] float32 is missing"),
        ({"picture": 1}, "no input is called picture: the inputs are image, shift"),
        ({3: 1}, "no input is called 3: the inputs are image, shift"),
        (
            {"image": np.zeros((1, 3, 8, 8), np.float32)},
            "input image has shape [1, 3, 8, 8], the artifact was compiled for [2, 3, 8, 8]",
        ),
        (
            {"image": np.zeros(SHAPE)},
            "input image is float64, the artifact takes float32: convert it with "
            ".astype('float32')",
        ),
        ({"image": np.zeros(SHAPE, ">f4")}, "input image is >f4, the artifact takes float32"),
        ({"shift": np.zeros((3, 1, 1), np.uint8)}, "input shift is uint8"),
    ],
)
def test_wrong_inputs_are_refused_by_name(
    module: mobilenet_tvm.Module, inputs: dict[str, Any], change: dict[Any, Any], told: str
) -> None:
    given = {name: value for name, value in {**inputs, **change}.items() if value is not None}
    with pytest.raises(UsageError) as caught:
        module.run(given)
    assert told in str(caught.value)


def test_two_modules_in_one_process(
    module: mobilenet_tvm.Module, artifact: Path, inputs: dict[str, Any]
) -> None:
    other = mobilenet_tvm.load(artifact)
    wanted = module.run(inputs)["deep"]
    shifted = {**inputs, "shift": inputs["shift"] + 1}
    assert not np.allclose(other.run(shifted)["deep"], wanted)
    assert np.array_equal(module.run(inputs)["deep"], wanted)
    assert np.array_equal(other.run(inputs)["deep"], wanted)


# --- loading


def test_a_flipped_byte_is_found(artifact: Path) -> None:
    raw = bytearray(artifact.read_bytes())
    raw[len(raw) // 2] ^= 1
    artifact.write_bytes(raw)
    told = refused(artifact)
    assert "is not the file its manifest describes" in told
    assert read_manifest(artifact).so_sha256[:19] in told


def test_no_library_at_all_is_found(artifact: Path) -> None:
    artifact.write_bytes(b"hello")
    edit(artifact, lambda _: {"so_sha256": sha256_file(artifact)})
    assert "is no shared library" in refused(artifact)


def test_another_architecture_is_refused(artifact: Path, tmp_path: Path) -> None:
    source = tmp_path / "empty.c"
    source.write_text("int empty(void) { return 0; }\n")
    made = tmp_path / "empty.so"
    toolchain.zig(
        "cc", "-target", "aarch64-linux-gnu", "-shared", "-nostdlib", "-o", str(made), str(source)
    )
    made.replace(artifact)
    edit(artifact, lambda _: {"so_sha256": sha256_file(artifact)})
    assert "is for aarch64" in refused(artifact)  # the file alone gives it away


def test_a_manifest_for_another_architecture_is_refused(artifact: Path) -> None:
    edit(artifact, lambda m: {"target": msgspec.structs.replace(m.target, arch="armv7l")})
    assert "is for armv7l (preset x86" in refused(artifact)


def test_a_missing_cpu_feature_is_named(artifact: Path) -> None:
    features = ("sse4_2", "avx1024", "telepathy")
    edit(artifact, lambda m: {"target": msgspec.structs.replace(m.target, cpu_features=features)})
    told = refused(artifact)
    assert "lacks: avx1024, telepathy (preset x86" in told
    assert "--target x86" in told


PASSED = ParityInfo(True, "onnxruntime", 1e-4, 1e-6, 3, 0)


def test_require_checked(artifact: Path) -> None:
    with pytest.raises(CheckFailedError, match=r"was never checked: run python -m .*\.check"):
        mobilenet_tvm.load(artifact, require_checked=True)
    edit(artifact, lambda _: {"parity": msgspec.structs.replace(PASSED, passed=False)})
    with pytest.raises(CheckFailedError, match="failed its parity check"):
        mobilenet_tvm.load(artifact, require_checked=True)
    mobilenet_tvm.load(artifact)
    edit(artifact, lambda _: {"parity": PASSED})
    assert mobilenet_tvm.load(artifact, require_checked=True).manifest.parity == PASSED


def test_a_library_that_changed_after_its_check_is_refused(artifact: Path) -> None:
    edit(artifact, lambda _: {"parity": PASSED})
    mobilenet_tvm.load(artifact, require_checked=True)
    with artifact.open("ab") as stream:  # still loads, still computes the same
        stream.write(b"\0")
    assert "is not the file its manifest describes" in refused(artifact, require_checked=True)


def test_compiling_again_takes_the_mark_of_a_check_away(artifact: Path) -> None:
    edit(artifact, lambda _: {"parity": PASSED})
    compiled(network(), artifact)
    with pytest.raises(CheckFailedError, match="was never checked"):
        mobilenet_tvm.load(artifact, require_checked=True)


def test_a_check_that_fails_takes_an_earlier_mark_away(artifact: Path, tmp_path: Path) -> None:
    model = network()
    source = tmp_path / "net.onnx"
    source.write_bytes(model.SerializeToString())
    assert check_artifact(artifact, onnx=source, tolerance=1e-4)
    assert mobilenet_tvm.load(artifact, require_checked=True)
    assert not check_artifact(artifact, onnx=source, tolerance=0.0)
    with pytest.raises(CheckFailedError, match="failed its parity check"):
        mobilenet_tvm.load(artifact, require_checked=True)


@pytest.mark.parametrize("threads", [0, -1])
def test_a_foolish_number_of_threads_is_refused(artifact: Path, threads: int) -> None:
    assert f"threads is {threads}" in refused(artifact, threads=threads)


def test_a_relative_path_and_text_will_do(
    artifact: Path, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(artifact.parent)
    assert set(mobilenet_tvm.load(os.path.join(".", "net.so"), threads=1).run(inputs)) == {
        "active",
        "deep",
    }
    assert "no artifact at gone.so" in refused(Path("gone.so"))
