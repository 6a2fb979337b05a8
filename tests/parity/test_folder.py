"""Whole folders of photos, in worker processes, on artifacts that are right and wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import psutil
import pytest
from onnx import numpy_helper
from PIL import Image

from mobilenet_tvm import check as verb
from mobilenet_tvm import frontend, targets, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import (
    ModelInfo,
    Preprocessing,
    read_manifest,
    sha256_bytes,
    write_manifest,
)
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.parity import check_artifact, folder, photos
from mobilenet_tvm.parity.folder import FolderCheck, compare_folder
from mobilenet_tvm.parity.inputs import find_images
from mobilenet_tvm.parity.photos import PhotoTally

pytestmark = pytest.mark.slow

ZOO = {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 32, "classes": 10}
LABELS = tuple(f"label{index}" for index in range(10))


def build(model, path):
    """An artifact of ``model`` that says it is of the zoo's, which it may be or not."""
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(model, "tiny")))
    digest = sha256_bytes(zoo.build(**ZOO).SerializeToString())
    compile_model(
        relay,
        targets.resolve("x86"),
        path,
        info=ModelInfo("tiny", digest, zoo=ZOO),
        preprocessing=Preprocessing(32, 32, 32),
        labels=LABELS,
    )
    return path


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return build(zoo.build(**ZOO), tmp_path_factory.mktemp("right") / "tiny.so")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """One whose classifier has its classes in reverse."""
    model = zoo.build(**ZOO)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if 10 in values.shape:
            flipped = np.ascontiguousarray(np.flip(values, values.shape.index(10)))
            tensor.CopyFrom(numpy_helper.from_array(flipped, tensor.name))
    return build(model, tmp_path_factory.mktemp("wrong") / "tiny.so")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """21 photos in three class folders."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(21):
        where = root / f"class{index % 3}" / f"p{index:02}.png"
        where.parent.mkdir(exist_ok=True)
        coarse = rng.integers(0, 255, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize((40, 40)).save(where)
    return root


@pytest.fixture
def two_broken(pictures, tmp_path):
    (tmp_path / "photos").symlink_to(pictures, target_is_directory=True)
    (tmp_path / "bad.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((pictures / "class0" / "p00.png").read_bytes()[:200])
    return tmp_path


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_sum_is_that_of_the_photos_one_by_one(right, pictures, jobs):
    images = find_images(pictures)
    one_by_one = check_artifact(right, inputs=0, images=images)
    summed = check_artifact(right, inputs=0, images=images, agreement=True, jobs=jobs)
    assert one_by_one
    assert summed
    assert len(one_by_one.cases) == 21
    assert summed.cases == ()
    for field in ("photos", "failed", "top1", "top_k", "disagreed", "near_ties"):
        assert getattr(summed.folder, field) == pytest.approx(
            getattr(one_by_one.photo_agreement, field)
        )
    assert 0 < summed.would_pass_at == one_by_one.would_pass_at
    assert summed.summary() == one_by_one.summary()
    assert read_manifest(right).parity.images == 21


def test_more_photos_than_fifty_are_summed_up_by_itself(right, pictures):
    images = find_images(pictures)
    assert check_artifact(right, inputs=1, images=images * 2).folder is None
    result = check_artifact(right, inputs=1, images=images * 3)
    assert result.folder.photos == 63
    assert len(result.cases) == 1


def test_a_wrong_artifact_is_named_on_every_photo_it_confuses(wrong, pictures):
    result = check_artifact(
        wrong,
        reference=("onnxruntime", "onnx"),
        inputs=0,
        images=find_images(pictures),
        agreement=True,
        jobs=2,
    )
    assert not result
    assert result.folder.failed == 21
    assert result.folder.top1 == 1 - result.folder.disagreed / 21 < 0.5
    assert result.folder.near_ties == 0
    names = [one.photo for one in result.folder.confusions]
    assert names == sorted(names)
    assert len(names) == result.folder.disagreed
    confusion = result.folder.confusions[0]
    assert confusion.photo.startswith("class")
    assert confusion.classes.found == 9 - confusion.classes.expected
    assert confusion.found_label == f"label{confusion.classes.found}"
    assert confusion.verdict.startswith("the artifact stands alone")
    assert "artifact stands alone" in result.failures[0]
    payload = result.as_dict()["photos"]
    assert payload["confusions"][0]["artifact"]["label"] == confusion.found_label
    assert payload["confusions"][0]["reference"]["score"] == confusion.classes.expected_score
    assert payload["failed_photos"][0]["standings"][0]["alone"] == "artifact"
    assert not read_manifest(wrong).parity.passed


def test_what_cannot_be_read_is_named_and_ends_in_status_2(right, two_broken, capsys):
    options = [f"--images={two_broken}", "--agreement", "--inputs=0", "--json"]
    assert verb.main([str(right), *options]) == 2
    captured = capsys.readouterr()
    payload = json.loads(captured.out)
    assert payload["passed"] is True
    assert payload["exit_code"] == 2
    assert payload["photos"]["compared"] == 21
    assert payload["photos"]["unreadable"] == 2
    assert [one["photo"] for one in payload["photos"]["unreadable_photos"]] == [
        "bad.jpg",
        "cut.png",
    ]
    assert "2 of 23 pictures cannot be read (bad.jpg, cut.png), the others passed" in captured.err
    assert "photos 23/23, 2 unreadable" in captured.err
    assert read_manifest(right).parity.unreadable == 2


def test_a_failure_beside_what_cannot_be_read_is_status_1(wrong, two_broken, capsys):
    assert verb.main([str(wrong), f"--images={two_broken}", "--inputs=0", "--agreement"]) == 1
    captured = capsys.readouterr()
    assert "the artifact class" in captured.out
    assert "bad.jpg: " in captured.out


def test_ctrl_c_leaves_nobody_behind(right, pictures, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    source = next(iter(find_images(pictures)))
    for index in range(20_000):
        os.link(source, folder / f"{index}.png")
    command = [sys.executable, "-m", "mobilenet_tvm.check", str(right), "--inputs", "0"]
    process = subprocess.Popen(
        [*command, "--images", str(folder), "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(children := psutil.Process(process.pid).children()) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.strip().endswith("interrupted")
    assert not psutil.wait_procs(children, timeout=10)[1]


class FakeWorker:
    """Fails as told on the chunk that holds a photo."""

    error: BaseException = ChildProcessError()
    aborted = 0

    def __init__(self) -> None:
        self.free = threading.Event()

    def call(self, _function, _what, chunk, timeout_s):
        if any(name == "class1/p10.png" for name, _ in chunk):
            raise self.error
        self.free.wait(10)  # the others are at work when it happens
        raise ChildProcessError

    def abort(self):
        type(self).aborted += 1
        self.free.set()

    def close(self):
        pass


@pytest.mark.parametrize(
    ("error", "told", "kind"),
    [
        (ChildProcessError(), r"died on one of class\S+ to class\S+$", DeviceError),
        (TimeoutError(), r"hung on one of class\S+ to class\S+", DeviceError),
        (
            RuntimeError("Stack\n trace\nTVMError: no"),
            r"cannot be run on .*TVMError: no$",
            DeviceError,
        ),
        (UsageError("pass --onnx"), "^pass --onnx$", UsageError),
    ],
)
def test_a_worker_that_fails_ends_it_all(monkeypatch, right, pictures, error, told, kind):
    monkeypatch.setattr(folder, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "error", error)
    monkeypatch.setattr(FakeWorker, "aborted", 0)
    what = FolderCheck(right, ("onnxruntime",))
    before = threading.active_count()
    with pytest.raises(kind, match=told):
        compare_folder(what, read_manifest(right), find_images(pictures), jobs=3)
    assert FakeWorker.aborted == 3
    assert threading.active_count() == before


def test_a_model_that_takes_no_photos_is_refused_before_a_worker_starts(right, pictures, tmp_path):
    bare = msgspec.structs.replace(read_manifest(right), preprocessing=None)
    (tmp_path / "tiny.so").write_bytes(right.read_bytes())
    write_manifest(tmp_path / "tiny.so", bare)
    with pytest.raises(UsageError, match="does not take photos"):
        compare_folder(
            FolderCheck(tmp_path / "tiny.so", ("onnxruntime",)), bare, find_images(pictures)
        )


def test_lists_end_where_counts_go_on(monkeypatch, wrong, pictures):
    result = check_artifact(wrong, inputs=0, images=find_images(pictures))
    monkeypatch.setattr(photos, "NAMED", 3)
    tally = PhotoTally(LABELS)
    for case in result.cases:
        tally.add(case)
    summed = tally.result()
    assert summed.failed == 21
    assert len(summed.failed_cases) == len(summed.confusions) == 3
