from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mobilenet_tvm.build.manifest import ModelInfo, sha256_bytes
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity import compare, onnx_runner, onnxruntime_runner, reference_onnx

RNG = np.random.default_rng(1)
RUNNERS = [onnxruntime_runner, onnx_runner]


def network(nodes, weights, input_shape, opset=13):
    """One input ``x``, one output ``y`` of unknown shape."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def convolution(kernel, group=1, **attributes):
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=group, kernel_shape=[kernel] * 2, **attributes
    )
    ramp = np.arange(4 * (4 // group) * kernel**2, dtype=np.float32) / 10
    weight = np.sin(ramp).reshape(4, 4 // group, kernel, kernel)
    return network([node], {"w": weight}, ["N", 4, "H", "W"]).SerializeToString()


@pytest.mark.parametrize(
    ("auto_pad", "dilation"),
    # ONNX Runtime has no SAME with dilations.
    [("SAME_UPPER", 1), ("SAME_LOWER", 1), ("VALID", 1), ("VALID", 2), ("NOTSET", 2)],
)
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "group"),
    [(9, 3, 2, 1), (8, 3, 2, 4), (10, 5, 1, 4), (10, 5, 3, 2), (4, 1, 2, 1)],
)
def test_the_two_references_agree_on_convolutions(auto_pad, dilation, size, kernel, stride, group):
    data = convolution(
        kernel, group, auto_pad=auto_pad, strides=[stride] * 2, dilations=[dilation] * 2
    )
    shapes = {"x": (2, 4, size, size + 3)}
    x = {"x": weights(*shapes["x"])}
    result = compare(onnxruntime_runner(data, shapes)(x), onnx_runner(data, shapes)(x), 1e-6)
    assert result, str(result)


def test_same_padding_counts_the_dilated_kernel():
    # Rows: stride 2 over 8 takes 4 steps, 6 + 5 - 8 = 3 pads; columns: 9 takes 5, 8 + 5 - 9 = 4.
    common = {"kernel": 3, "strides": [2, 2], "dilations": [2, 2]}
    shapes = {"x": (1, 4, 8, 9)}
    x = {"x": weights(*shapes["x"])}
    for auto_pad, pads in (("SAME_UPPER", [1, 2, 2, 2]), ("SAME_LOWER", [2, 2, 1, 2])):
        same = onnx_runner(convolution(**common, auto_pad=auto_pad), shapes)(x)
        assert compare(same, onnxruntime_runner(convolution(**common, pads=pads), shapes)(x), 1e-6)


@pytest.mark.parametrize("opset", [9, 13, 15])
def test_batch_normalization_takes_the_stored_statistics(opset):
    names = ["x", "scale", "bias", "mean", "variance"]
    node = helper.make_node("BatchNormalization", names, ["y"], epsilon=1e-3, momentum=0.9)
    stored = {name: weights(4) for name in names[1:]}
    stored["variance"] = np.abs(stored["variance"]) + 0.5
    data = network([node], stored, [2, 4, 5, 5], opset).SerializeToString()
    x = {"x": weights(2, 4, 5, 5)}
    shapes = {"x": (2, 4, 5, 5)}
    result = compare(onnxruntime_runner(data, shapes)(x), onnx_runner(data, shapes)(x), 1e-6)
    assert result, str(result)


def test_onnx_still_needs_its_operators_mended():
    # When this fails, mobilenet_tvm/parity/evaluator.py has an operator to let go.
    conv = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])
    padded = network([conv], {"w": weights(4, 4, 3, 3)}, [1, 4, 8, 8])
    names = ["x", "scale", "bias", "mean", "variance"]
    node = helper.make_node("BatchNormalization", names, ["y"], momentum=0.9)
    stored = {name: np.abs(weights(4)) + 0.5 for name in names[1:]}
    normal = network([node], stored, [1, 4, 8, 8], opset=9)
    for model in (padded, normal):
        x = {"x": weights(1, 4, 8, 8)}
        data = model.SerializeToString()
        mended = onnx_runner(data, {"x": (1, 4, 8, 8)})(x)
        (stock,) = ReferenceEvaluator(model).run(None, x)
        assert not compare({"y": stock}, mended, 1e-3)


@pytest.mark.parametrize("runner", RUNNERS)
def test_dynamic_dimensions_are_fixed(runner):
    pool = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    model = network([pool], {}, ["N", 4, "H", "W"])
    shapes = {"x": (3, 4, 5, 6)}
    x = weights(3, 4, 5, 6)
    outputs = runner(model.SerializeToString(), shapes)({"x": x})
    assert outputs["y"] == pytest.approx(x.mean(axis=(2, 3), keepdims=True), abs=1e-6)
    assert outputs["y"].dtype == np.float32


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_stored_batch_size_is_replaced(runner, tiny_model):
    shape = (2, 3, 32, 32)
    reference = runner(tiny_model.SerializeToString(), {"input": shape})
    assert reference({"input": weights(*shape)})["logits"].shape == (2, 10)


@pytest.mark.parametrize("runner", RUNNERS)
def test_stored_inner_shapes_do_not_count(runner):
    nodes = [
        helper.make_node("Relu", ["x"], ["inner"]),
        helper.make_node("Shape", ["inner"], ["y"]),
    ]
    model = network(nodes, {}, [1, 4])
    model.graph.value_info.append(helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 4]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, [2]))
    outputs = runner(model.SerializeToString(), {"x": (3, 4)})({"x": weights(3, 4)})
    assert outputs["y"].tolist() == [3, 4]


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_wrong_inputs_are_refused_by_name(runner, tiny_model):
    with pytest.raises(UsageError, match="takes input, the artifact image"):
        runner(tiny_model.SerializeToString(), {"image": (1, 3, 32, 32)})


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_model_the_reference_cannot_run_is_one_line(runner, capfd):
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="elsewhere")
    model = network([node], {}, [1])
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(UsageError, match=r"does not run this model.*try the reference") as caught:
        runner(model.SerializeToString(), {"x": (1,)})({"x": weights(1)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_fails_without_noise_of_its_own(capfd):
    data = convolution(3, auto_pad="SAME_UPPER", dilations=[2, 2])
    with pytest.raises(UsageError, match="Dilation not supported"):
        onnxruntime_runner(data, {"x": (1, 4, 8, 8)})({"x": weights(1, 4, 8, 8)})
    assert capfd.readouterr() == ("", "")


def test_the_references_say_who_they_are(tiny_model):
    data, shapes = tiny_model.SerializeToString(), {"input": (1, 3, 32, 32)}
    assert onnxruntime_runner(data, shapes).name.startswith("onnxruntime 1.")
    assert onnx_runner(data, shapes).name == f"onnx {onnx.__version__}"


@pytest.mark.parametrize(
    ("file", "name", "shape"),
    [
        ("mobilenet_v1_1.0_224_imagenet1001.onnx", "input", (1, 3, 224, 224)),
        ("mobilenet_v2_1.0_160_dogs19.onnx", "input", (1, 3, 160, 160)),
        ("mobilenet_v3_small_0.35_textangle.onnx", "x", (2, 3, 48, 192)),
    ],
)
def test_the_two_references_agree_on_real_models(shared_models, file, name, shape):
    data = (shared_models / file).read_bytes()
    x = {name: RNG.uniform(-1, 1, shape).astype(np.float32)}
    slow = onnx_runner(data, {name: shape})(x)
    result = compare(onnxruntime_runner(data, {name: shape})(x), slow, 2e-5)
    assert result, str(result)
    assert result.warnings == ()


def test_a_zoo_model_is_built_again(make_manifest, tiny_model):
    assert reference_onnx(make_manifest()) == tiny_model.SerializeToString()


def test_a_zoo_model_that_changed_is_refused(make_manifest):
    manifest = make_manifest()
    old = msgspec.structs.replace(manifest.model, digest="sha256:0")
    with pytest.raises(UsageError, match="as this version builds it"):
        reference_onnx(msgspec.structs.replace(manifest, model=old))


@pytest.fixture
def file_manifest(make_manifest, tiny_model, tmp_path):
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_model.SerializeToString())
    digest = sha256_bytes(path.read_bytes())
    return path, make_manifest(model=ModelInfo(name="tiny", digest=digest, path=str(path)))


def test_the_remembered_file_is_read(file_manifest):
    path, manifest = file_manifest
    assert reference_onnx(manifest) == path.read_bytes()


def test_a_changed_file_is_refused(file_manifest, tiny_model):
    path, manifest = file_manifest
    tiny_model.doc_string = "another"
    path.write_bytes(tiny_model.SerializeToString())
    with pytest.raises(UsageError, match=r"changed since tiny was made: pass .* --onnx"):
        reference_onnx(manifest)


def test_a_missing_file_is_refused_and_a_moved_one_found(file_manifest, tmp_path):
    path, manifest = file_manifest
    moved = path.rename(tmp_path / "moved.onnx")
    with pytest.raises(UsageError, match=r"pass --onnx.*tiny.onnx"):
        reference_onnx(manifest)
    assert reference_onnx(manifest, moved) == moved.read_bytes()


def test_the_wrong_file_is_refused(file_manifest, tiny_model, tmp_path):
    _, manifest = file_manifest
    tiny_model.doc_string = "another"
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(tiny_model.SerializeToString())
    with pytest.raises(UsageError, match=r"wrong.onnx is not the model that tiny was made from"):
        reference_onnx(manifest, wrong)
    with pytest.raises(UsageError, match=r"nowhere.onnx"):
        reference_onnx(manifest, tmp_path / "nowhere.onnx")


def test_a_manifest_with_no_source_asks_for_the_file(make_manifest):
    with pytest.raises(UsageError, match="pass --onnx"):
        reference_onnx(make_manifest(model=ModelInfo(name="tiny", digest="sha256:0")))


def test_external_data_comes_inside_the_bytes(make_manifest, tiny_model, tmp_path):
    path = tmp_path / "outside.onnx"
    onnx.save(tiny_model, path, save_as_external_data=True, location="outside.bin")
    digest = sha256_bytes(path.read_bytes())
    manifest = make_manifest(model=ModelInfo(name="tiny", digest=digest, path=str(path)))
    data = reference_onnx(manifest)
    (tmp_path / "outside.bin").unlink()
    shape = (1, 3, 32, 32)
    assert onnxruntime_runner(data, {"input": shape})({"input": weights(*shape)})
