"""What reads as a model, and the one line that refuses the rest."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import onnx
import pytest

from mobilenet_tvm import frontend
from mobilenet_tvm.errors import UsageError


def refused(path, *words):
    with pytest.raises(UsageError) as caught:
        frontend.read(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in (path.name, *words):
        assert word in text


def test_reads_proto_digest_and_name(tmp_path, mobile_net):
    path = tmp_path / "my net.v2.onnx"
    path.write_bytes(mobile_net(13).SerializeToString())
    model = frontend.read(path)
    assert model.name == "my net.v2"
    assert model.path == path
    assert model.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.proto == mobile_net(13)


def test_same_model_in_memory_has_the_same_digest(tmp_path, mobile_net):
    path = tmp_path / "net.onnx"
    path.write_bytes(mobile_net(13).SerializeToString())
    assert frontend.from_proto(mobile_net(13), "net").digest == frontend.read(path).digest


def test_missing_empty_and_folder(tmp_path):
    refused(tmp_path / "none.onnx", "no file")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "empty")
    (tmp_path / "folder.onnx").mkdir()
    refused(tmp_path / "folder.onnx", "folder")


@pytest.mark.parametrize(
    "data",
    [
        b"hello, world\n" * 50,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"PK\x03\x04" + bytes(1000),
        b"\x00" * 4096,
        bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8)),
        # A foreign protobuf that parses: one message in field 1, as a TensorFlow graph has.
        b"\x0a\x07\x0a\x05input",
        # Nothing but an IR version.
        b"\x08\x08",
    ],
)
def test_foreign_bytes(tmp_path, data):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(data)
    refused(path, "no ONNX model")


def test_every_truncation_is_refused(tmp_path, mobile_net):
    whole = mobile_net(13).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in [*range(1, len(whole), 97), len(whole) - 1, len(whole) - 2]:
        path.write_bytes(whole[:length])
        refused(path)


def test_real_model_cut_in_half(tmp_path, shared_models):
    source = shared_models / "mobilenet_v1_1.0_224_imagenet1001.onnx"
    path = tmp_path / "half.onnx"
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    refused(path, "cut short")


def test_dangling_tensor_is_named(tmp_path, mobile_net):
    proto = mobile_net(13)
    del proto.graph.initializer[0]
    path = tmp_path / "hole.onnx"
    path.write_bytes(proto.SerializeToString())
    refused(path, "'c0'", "conv_0")


def test_external_data_is_read_and_missed(tmp_path, mobile_net, reference):
    proto = mobile_net(13)
    data = np.random.default_rng(0).normal(size=(1, 3, 17, 18)).astype(np.float32)
    expected = reference(proto, data)
    path = tmp_path / "split.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="split.bin", size_threshold=0)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(path, moved / "split.onnx")
    refused(moved / "split.onnx", "split.bin", "copy")
    (moved / "split.bin").write_bytes(b"short")
    refused(moved / "split.onnx", "external data", "cut short")
    for one, other in zip(reference(frontend.read(path).proto, data), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_incomplete_model_in_memory():
    with pytest.raises(UsageError, match="thing is no ONNX model"):
        frontend.from_proto(onnx.ModelProto(), "thing")
