from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import numpy_helper
from PIL import Image

from mobilenet_tvm.build.manifest import (
    ModelInfo,
    ParityInfo,
    Preprocessing,
    TensorSpec,
    manifest_path,
    read_manifest,
    sha256_file,
    write_manifest,
)
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity import (
    ParityResult,
    Reference,
    check,
    onnx_runner,
    onnxruntime_runner,
)

SHAPES = {"input": (1, 3, 32, 32)}


@pytest.fixture
def reference(tiny_model):
    return onnxruntime_runner(tiny_model.SerializeToString(), SHAPES)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"photo{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    return paths


def run_with_fault(model, pick, change):
    """Runs ``model`` with ``change`` made to the first weight that ``pick`` likes."""
    tensor = next(t for t in model.graph.initializer if pick(tuple(t.dims)))
    values = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return onnxruntime_runner(model.SerializeToString(), SHAPES).run


def test_the_same_network_passes(reference, tiny_model, make_manifest, photos):
    other = onnx_runner(tiny_model.SerializeToString(), SHAPES)
    result = check(reference.run, make_manifest(), other, inputs=5, images=photos)
    assert result, result.summary()
    assert result.warnings == ()
    assert 0 < result.would_pass_at <= 1e-4
    assert [case.is_photo for case in result.cases] == [False] * 5 + [True] * 2
    assert f"parity with {other.name} passed on 5 random inputs and 2 photos" in result.summary()
    assert result.info() == ParityInfo(
        passed=True,
        reference=other.name,
        tolerance=1e-4,
        max_error=result.would_pass_at,
        inputs=5,
        images=2,
        top1_agreement=1.0,
        top5_agreement=1.0,
        references=(other.name,),
        kinds={"uniform": 1, "normal": 1, "zeros": 1, "large": 1, "equal": 1},
        seed=0,
        worst=result.worst[0].name,
    )


def is_pointwise(shape):
    return len(shape) == 4 and shape[2:] == (1, 1)


def test_two_swapped_channels_fail(reference, tiny_model, make_manifest):
    def swap(weight):
        weight[[0, 1]] = weight[[1, 0]]
        return weight

    run = run_with_fault(tiny_model, is_pointwise, swap)
    result = check(run, make_manifest(), reference)
    assert not result
    assert result.would_pass_at > 1e-3
    case, output = result.worst
    assert output.error == result.would_pass_at
    assert f"output logits of input {case.name} is off by {output.error:.1e}" in result.summary()
    assert f"would pass at {output.error:.1e}" in result.summary()
    assert check(run, make_manifest(), reference, tolerance=result.would_pass_at)


def test_a_dropped_bias_fails_on_every_input(reference, tiny_model, make_manifest):
    run = run_with_fault(tiny_model, lambda shape: shape == (10,), np.zeros_like)
    result = check(run, make_manifest(), reference)
    assert not result
    assert not any(result.cases)


def test_a_nan_fails_at_any_tolerance(reference, make_manifest):
    def poisoned(feed):
        outputs = reference(feed)
        if np.abs(feed["input"]).max() > 100:
            outputs["logits"][0, 0] = np.nan
        return outputs

    result = check(poisoned, make_manifest(), reference, tolerance=math.inf)
    assert not result
    assert result.would_pass_at == math.inf
    assert "output logits of input large 0: 1 NaN" in result.summary()


def test_other_bits_on_a_second_run_fail_however_small(reference, make_manifest):
    runs = []

    def wavering(feed):
        runs.append(1)
        outputs = reference(feed)
        if len(runs) == 2:
            outputs["logits"] = np.nextafter(outputs["logits"], np.float32(np.inf))
        return outputs

    result = check(wavering, make_manifest(), reference, inputs=2)
    assert not result
    assert result.would_pass_at < 1e-4
    assert result.failures == ("output logits of input uniform 0 has other bits on a second run",)
    assert [case.unrepeatable for case in result.cases] == [("logits",), ()]


def test_a_module_that_reuses_its_output_buffer_does_not_hide_that(reference, make_manifest):
    buffer = np.zeros((1, 10), np.float32)
    runs = []

    def wavering(feed):
        runs.append(1)
        buffer[...] = reference(feed)["logits"]
        buffer[0, 0] += 1e-6 * (len(runs) % 2)
        return {"logits": buffer}

    assert check(wavering, make_manifest(), reference, inputs=1).cases[0].unrepeatable


def scores(*best):
    """A reference whose two best classes are as given; the others follow the input."""
    return lambda feed: {
        "logits": np.array([[*best, *feed["input"][0, 0, 0, :8] / 1e13]], np.float32)
    }


near_tie, other_class = scores(5, 5.00001), scores(5.00001, 5)


def test_another_best_class_within_the_tolerance_is_a_near_tie(make_manifest, photos):
    result = check(other_class, make_manifest(), near_tie, inputs=2, images=photos)
    assert result
    assert result.agreement(1) == 0
    assert result.reference == "a given function"
    assert result.info().near_ties == result.photo_agreement.near_ties == 2
    assert "top-1 agreement 0.00, 2 near ties" in result.summary()
    confusion = result.photo_agreement.confusions[0]
    assert (confusion.classes.expected, confusion.classes.found) == (1, 0)
    assert confusion.near_tie
    assert confusion.classes.margin == pytest.approx(2e-6, rel=0.1)
    assert "a near tie" in str(confusion)


@pytest.mark.parametrize(("margin", "fails"), [(0.9e-3, False), (1.1e-3, True)])
def test_a_near_tie_is_twice_the_tolerance_of_the_dtype(make_manifest, photos, margin, fails):
    # Twice 1e-4 of 5; a wider tolerance asked for excuses no more than that.
    result = check(
        scores(5, 5 - margin),
        make_manifest(),
        scores(5 - margin, 5),
        inputs=0,
        images=photos[:1],
        tolerance=1e-1,
    )
    assert result.would_pass_at < 1e-3
    assert bool(result) is not fails
    assert ("the best class of photo photo0.png is not the reference's" in result.failures) is fails


def test_agreement_is_that_of_the_photos_where_there_are_any(make_manifest, photos):
    def wrong_on_the_large(feed):
        return other_class(feed) if np.abs(feed["input"]).max() > 100 else near_tie(feed)

    noise = check(wrong_on_the_large, make_manifest(), near_tie, inputs=4)
    assert noise.agreement(1) == 0.75
    both = check(wrong_on_the_large, make_manifest(), near_tie, inputs=4, images=photos)
    assert both
    assert both.agreement(1) == 1


def test_a_result_without_inputs_is_no_pass():
    assert not ParityResult("reference", 1e-4, ())
    assert "nothing was compared" in ParityResult("reference", 1e-4, ()).summary()


def test_another_best_class_is_no_failure_on_noise(make_manifest):
    result = check(other_class, make_manifest(), near_tie, inputs=2)
    assert result
    assert result.info().top1_agreement == 0


def test_a_missing_output_fails_by_name(reference, make_manifest):
    result = check(lambda feed: {"other": reference(feed)["logits"]}, make_manifest(), reference)
    assert not result
    assert any("output logits" in failure for failure in result.failures)
    assert any("output other" in failure for failure in result.failures)


def test_no_outputs_on_either_side_is_no_pass(make_manifest):
    result = check(lambda feed: {}, make_manifest(), lambda feed: {}, inputs=1)
    assert not result
    assert "no output to compare" in result.summary()


def test_a_dead_network_is_flagged(make_manifest):
    logits = np.arange(10, dtype=np.float32)[None]
    result = check(
        lambda feed: {"logits": logits}, make_manifest(), lambda feed: {"logits": logits}
    )
    assert result
    (warning,) = result.warnings
    assert "the same on every input" in warning


def test_a_constant_reference_is_flagged_by_input(make_manifest):
    uniform = np.full((1, 10), 0.1, np.float32)
    result = check(
        lambda feed: {"p": uniform}, make_manifest(), lambda feed: {"p": uniform}, inputs=1
    )
    (warning,) = result.warnings
    assert warning.startswith("input uniform 0: p: says nothing")


def test_nothing_to_compare_is_refused(reference, make_manifest):
    with pytest.raises(UsageError, match="parity needs an input"):
        check(reference.run, make_manifest(), reference, inputs=0)


def test_the_tolerance_is_that_of_the_outputs(reference, make_manifest):
    half = make_manifest(outputs=(TensorSpec("logits", (1, 10), "float16"),))
    assert check(reference.run, half, reference, inputs=1).tolerance == 1e-2


def test_a_failure_without_end_survives_the_manifest(reference, make_manifest, tmp_path):
    result = check(lambda feed: {}, make_manifest(), reference, inputs=1)
    assert result.as_dict()["would_pass_at"] is None
    artifact = tmp_path / "tiny.so"
    artifact.touch()
    write_manifest(artifact, make_manifest(parity=result.info()))
    assert manifest_path(artifact).exists()
    assert read_manifest(artifact).parity == result.info()
    assert not result.info().passed


def test_another_k_leaves_top_5_unknown(reference, make_manifest):
    result = check(reference.run, make_manifest(), reference, inputs=1, top_k=3)
    assert result.agreement(3) == 1
    assert result.info().top5_agreement is None


def test_the_real_v1_finds_the_cat_with_either_reference(
    shared_models, shared_images, make_manifest
):
    data = (shared_models / "mobilenet_v1_1.0_224_imagenet1001.onnx").read_bytes()
    shapes = {"input": (1, 3, 224, 224)}
    runner = onnxruntime_runner(data, shapes)
    seen = []

    def spy(feed):
        outputs = runner(feed)
        seen.append(int(next(iter(outputs.values())).argmax()))
        return outputs

    manifest = make_manifest(
        model=ModelInfo(name="v1", digest=""),
        inputs=(TensorSpec("input", shapes["input"], "float32"),),
        outputs=(TensorSpec("Flatten_275", (1, 1001), "float32"),),
        preprocessing=Preprocessing(224, 224, 224),
    )
    images = [shared_images / "chelsea.png", shared_images / "coffee.png"]
    result = check(spy, manifest, onnx_runner(data, shapes), inputs=1, images=images)
    assert result, result.summary()
    assert result.agreement(5) == 1
    assert seen[2] == 286  # Egyptian cat is 285 of ImageNet; 0 is the background here
    assert seen[4] == 968  # espresso


# --- inputs that may overflow, pictures that cannot be read, files


def overflowing(feed):
    """A network that makes of anything beyond a photo no number at all."""
    big = np.abs(feed["input"]).max() > 1e3
    ramp = np.arange(10, dtype=np.float32)[None] + feed["input"][0, 0, 0, 0]
    return {"logits": np.full((1, 10), np.nan, np.float32) if big else ramp}


def overflowing_elsewhere(feed):
    return {"logits": np.nan_to_num(overflowing(feed)["logits"], nan=6.0)}


def test_where_the_reference_overflows_a_huge_input_is_not_judged(make_manifest):
    kinds = ("uniform", "huge")
    result = check(overflowing_elsewhere, make_manifest(), overflowing, kinds=kinds)
    assert result
    assert result.would_pass_at == 0
    assert [case.conclusive for case in result.cases] == [True, False]
    assert "input huge 0: the reference overflows" in " ".join(result.warnings)
    assert result.as_dict()["cases"][1]["conclusive"] is False


def test_nothing_but_overflow_is_no_pass(make_manifest):
    result = check(overflowing, make_manifest(), overflowing, kinds=("huge",))
    assert not result
    assert "nothing was compared" in result.summary()


def test_an_artifact_that_overflows_alone_fails(make_manifest):
    result = check(overflowing, make_manifest(), overflowing_elsewhere, kinds=("huge", "uniform"))
    assert not result
    assert "10 NaN" in result.summary()


def test_a_user_s_own_overflow_is_judged(make_manifest, tmp_path):
    np.savez(tmp_path / "big.npz", input=np.full((1, 3, 32, 32), 1e9, np.float32))
    files = [tmp_path / "big.npz"]
    result = check(overflowing_elsewhere, make_manifest(), overflowing, inputs=0, npz=files)
    assert not result
    assert "input big.npz: 0 NaN" in result.summary()


def test_each_npz_is_a_feed_and_the_manifest_knows_it(reference, make_manifest, tmp_path):
    x = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", input=x)
    seen = []

    def spy(feed):
        seen.append(feed["input"].copy())
        return reference(feed)

    result = check(spy, make_manifest(), reference, inputs=1, npz=[tmp_path / "mine.npz"])
    assert result
    assert np.array_equal(seen[-1], x)
    assert "1 random inputs, 1 npz file and 0 photos" in result.summary()
    info = result.info()
    assert info.inputs == 1
    assert [(one.name, one.digest) for one in info.npz] == [
        ("mine.npz", sha256_file(tmp_path / "mine.npz"))
    ]


def test_a_picture_that_cannot_be_read_is_counted_and_the_others_compared(
    reference, make_manifest, photos, tmp_path
):
    (tmp_path / "broken.png").write_bytes(photos[0].read_bytes()[:300])
    images = [photos[0], tmp_path / "broken.png", photos[1]]
    result = check(reference.run, make_manifest(), reference, inputs=0, images=images)
    assert result
    assert result.info().images == 2
    assert result.info().unreadable == 1
    assert result.summary().endswith("1 pictures cannot be read (broken.png)")
    assert result.as_dict()["photos"]["unreadable_photos"][0]["photo"] == "broken.png"


def test_unreadable_pictures_alone_prove_nothing(reference, make_manifest, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no")
    images = [tmp_path / "broken.png"]
    assert not check(reference.run, make_manifest(), reference, inputs=0, images=images)


# --- who stands alone


def test_a_wrong_artifact_stands_alone(reference, tiny_model, make_manifest):
    onnx = onnx_runner(tiny_model.SerializeToString(), SHAPES)
    run = run_with_fault(tiny_model, lambda shape: shape == (10,), np.zeros_like)
    result = check(run, make_manifest(), reference, others=[onnx], inputs=1)
    (standing,) = result.cases[0].standings
    assert standing.alone == "artifact"
    assert standing.verdict.startswith("the artifact stands alone: onnxruntime and onnx agree to")
    assert result.as_dict()["cases"][0]["standings"][0]["alone"] == "artifact"
    assert result.info().references == (reference.name, onnx.name)


def test_a_wrong_first_reference_stands_alone_and_fails_the_artifact(
    reference, tiny_model, make_manifest
):
    onnx = onnx_runner(tiny_model.SerializeToString(), SHAPES)
    good = reference.run
    wrong = run_with_fault(tiny_model, lambda shape: shape == (10,), np.zeros_like)
    result = check(
        good, make_manifest(), Reference("onnxruntime 9", wrong), others=[onnx], inputs=1
    )
    assert not result
    (standing,) = result.cases[0].standings
    assert standing.alone == "onnxruntime"


def test_a_wrong_second_reference_fails_nothing_and_is_told(reference, tiny_model, make_manifest):
    wrong = run_with_fault(tiny_model, lambda shape: shape == (10,), np.zeros_like)
    other = Reference("onnx 9", wrong)
    result = check(reference.run, make_manifest(), reference, others=[other], inputs=1)
    assert result
    assert "onnx stands alone: the artifact and onnxruntime agree to 0e+00" in result.warnings[0]
