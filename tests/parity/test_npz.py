from __future__ import annotations

import numpy as np
import pytest

from mobilenet_tvm.build.manifest import TensorSpec
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.npz import find_npz, read_npz

SPECS = (TensorSpec("x", (1, 3), "float32"), TensorSpec("n", (), "int64"))
GOOD = {"x": np.ones((1, 3), np.float32), "n": np.int64(7)}


def test_one_file_is_one_feed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **GOOD)
    feed = read_npz(tmp_path / "a.npz", SPECS)
    assert feed["x"].tolist() == [[1, 1, 1]]
    assert feed["n"] == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": None}, "has no array x: the input is [1, 3] float32"),
        ({"y": np.ones(1)}, "has an array y: the inputs are x, n"),
        ({"x": np.ones((2, 3), np.float32)}, "has x as [2, 3] float32, and the input is [1, 3]"),
        ({"x": np.ones((1, 3))}, "has x as [1, 3] float64, and the input is [1, 3] float32"),
        ({"x": np.ones((1, 3), ">f4")}, "has x as [1, 3] >f4"),
        ({"x": np.array([[1, "a", None]], object)}, "holds pickled objects"),
    ],
)
def test_what_is_not_the_inputs_is_one_line(tmp_path, change, told):
    arrays = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError) as caught:
        read_npz(tmp_path / "a.npz", SPECS)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged(path):
    np.savez(path, **GOOD)
    raw = path.read_bytes()
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=100))
    packed = bytearray(path.read_bytes())
    packed[100:140] = bytes(40)
    return {
        "text": b"hello",
        "empty": b"",
        "cut": raw[: len(raw) // 2],
        "packed": bytes(packed),
        "flipped": raw[:140] + bytes(255 - byte for byte in raw[140:150]) + raw[150:],
        "pickle": b"\x80\x04K\x01.",
        "npy": (path.parent / "one.npy").read_bytes(),
        "zip of text": (path.parent / "text.zip").read_bytes(),
    }


@pytest.mark.parametrize(
    "how", ["text", "empty", "cut", "packed", "flipped", "pickle", "npy", "zip of text"]
)
def test_what_is_no_npz_is_one_line(tmp_path, how):
    import zipfile

    np.save(tmp_path / "one.npy", np.ones(3))
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("x", "hello")
    path = tmp_path / "a.npz"
    path.write_bytes(damaged(path)[how])
    with pytest.raises(UsageError) as caught:
        read_npz(path, SPECS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_and_the_folders_they_are_in(tmp_path):
    for name in ("b.npz", "a.NPZ", "c.npy", "c.txt"):
        (tmp_path / name).touch()
    assert find_npz([tmp_path]) == (tmp_path / "a.NPZ", tmp_path / "b.npz")
    assert find_npz([tmp_path / "b.npz", tmp_path]) == (tmp_path / "b.npz", tmp_path / "a.NPZ")
    with pytest.raises(UsageError, match="no file or folder"):
        find_npz([tmp_path / "gone.npz"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.npz file in"):
        find_npz([tmp_path / "empty"])
