"""The MODEL group and durations on the command line."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenet_tvm import zoo
from mobilenet_tvm.build.manifest import sha256_file
from mobilenet_tvm.cli import options
from mobilenet_tvm.errors import UsageError


def parsed(*argv):
    parser = argparse.ArgumentParser()
    options.add_model_options(parser)
    return parser.parse_args(argv)


def parse_fails(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        parsed(*argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


SMALL = ("--alpha", "0.25", "--resolution", "32")


def test_zoo_model_and_its_manifest_entry():
    args = parsed("--model", "mobilenet_v1", *SMALL, "--batch", "4", "--classes", "10")
    clean = options.resolve_model(args)
    assert clean.inputs[0].shape == (4, 3, 32, 32)
    assert clean.outputs[0].shape == (4, 10)
    info = options.model_info(args, clean)
    assert info.name == clean.original.name == "mobilenet_v1_0.25_32_b4_c10"
    assert info.path is None
    assert info.digest == clean.original.digest
    assert zoo.build(**info.zoo) == clean.original.proto


def test_default_model_is_v1():
    args = parsed(*SMALL)
    info = options.model_info(args, options.resolve_model(args))
    assert info.name == "mobilenet_v1_0.25_32"
    assert info.zoo == {
        "name": "mobilenet_v1",
        "alpha": 0.25,
        "resolution": 32,
        "batch": 1,
        "classes": 1000,
        "seed": 0,
    }


def test_defaults_are_the_models_own():
    args = parsed("--model", "ssd_mobilenet_v1", "--alpha", "0.25", "--resolution", "64")
    clean = options.resolve_model(args)
    assert [output.shape for output in clean.outputs] == [(1, 96, 4), (1, 96, 91)]
    info = options.model_info(args, clean)
    assert info.name == "ssd_mobilenet_v1_0.25_64"
    assert info.zoo["classes"] == 91
    assert zoo.build(**info.zoo) == clean.original.proto


def test_weights_of_another_seed_have_another_name():
    args = parsed(*SMALL, "--seed-weights", "7")
    clean = options.resolve_model(args)
    assert clean.original.name == "mobilenet_v1_0.25_32_s7"
    assert clean.original.digest != options.resolve_model(parsed(*SMALL)).original.digest


def test_names():
    defaults = {"batch": 1, "classes": 1000, "seed": 0}
    name = options.zoo_name("mobilenet_v1", alpha=1, resolution=224, **defaults)
    assert name == "mobilenet_v1_1.0_224"
    detector = {"alpha": 1, "resolution": 300, "batch": 1, "seed": 0}
    assert (
        options.zoo_name("ssd_mobilenet_v1", **detector, classes=91) == "ssd_mobilenet_v1_1.0_300"
    )
    assert options.zoo_name("ssd_mobilenet_v1", **detector, classes=21).endswith("_300_c21")
    assert options.file_name("my net/v1:2 (final)") == "my_net_v1_2_final"
    assert options.file_name("../..") == "model"
    assert options.file_name("mobilenet_v1_1.0_224") == "mobilenet_v1_1.0_224"


def test_zoo_errors_pass_through():
    with pytest.raises(UsageError, match="100"):
        options.resolve_model(parsed("--resolution", "100"))
    with pytest.raises(UsageError, match="mobilenet_v9"):
        options.resolve_model(parsed("--model", "mobilenet_v9"))


@pytest.fixture
def onnx_file(tmp_path):
    path = tmp_path / "my net.onnx"
    proto = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    path.write_bytes(proto.SerializeToString())
    return path


def test_onnx_file_and_its_manifest_entry(onnx_file, monkeypatch):
    monkeypatch.chdir(onnx_file.parent)
    args = parsed("--onnx", onnx_file.name, "--batch", "2")
    clean = options.resolve_model(args)
    assert clean.inputs[0].shape == (2, 3, 32, 32)
    info = options.model_info(args, clean)
    assert (info.name, info.path, info.zoo) == ("my_net", str(onnx_file), None)
    assert (info.batch, info.shape) == (2, None)
    assert info.digest == sha256_file(onnx_file)


def test_onnx_file_with_a_shape(onnx_file):
    args = parsed("--onnx", str(onnx_file), "--shape", "3,3,32,32")
    clean = options.resolve_model(args)
    assert clean.inputs[0].shape == (3, 3, 32, 32)
    assert options.model_info(args, clean).shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--alpha", "1.0"), ["--alpha"]),
        (("--seed-weights", "0", "--classes", "10"), ["--classes", "--seed-weights"]),
        (("--resolution", "224"), ["--resolution"]),
    ],
)
def test_zoo_options_are_refused_with_a_file(onnx_file, argv, named):
    with pytest.raises(UsageError, match="not with --onnx") as caught:
        options.resolve_model(parsed("--onnx", str(onnx_file), *argv))
    for option in named:
        assert option in str(caught.value)


def test_shape_is_refused_with_a_zoo_model():
    with pytest.raises(UsageError, match="--resolution and --batch"):
        options.resolve_model(parsed("--shape", "1,3,224,224"))


def test_model_and_file_exclude_each_other(capsys):
    assert "not allowed with" in parse_fails(capsys, "--model", "mobilenet_v1", "--onnx", "a.onnx")


@pytest.mark.parametrize("text", ["1,3,224,224", "1x3x224x224", "[1, 3, 224, 224]"])
def test_shape(text):
    assert options.parse_shape(text) == (1, 3, 224, 224)


@pytest.mark.parametrize("text", ["", "1,3,x", "1,,3", "1,-3,4,4", "0,3,4,4", "224.5"])
def test_no_shape(capsys, text):
    assert "is no shape" in parse_fails(capsys, "--shape", text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45", 45),
        ("2.5", 2.5),
        ("90s", 90),
        ("20m", 1200),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h0m5s", 3605),
        ("1.5h", 5400),
        ("20M", 1200),
    ],
)
def test_duration(text, seconds):
    assert options.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5", "m", "20 minutes", "30m1h", "1e3", "nan"])
def test_no_duration(text):
    with pytest.raises(argparse.ArgumentTypeError, match="20m"):
        options.parse_duration(text)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_any_duration(hours, minutes, seconds):
    total = options.parse_duration(f"{hours}h{minutes}m{seconds}s")
    assert total == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("64", 64)])
def test_a_positive_number(text, value):
    assert options.positive(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_what_is_no_positive_number_is_said_in_words(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=options.positive)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--threads={text}"])
    assert f"invalid positive number value: '{text}'" in capsys.readouterr().err
