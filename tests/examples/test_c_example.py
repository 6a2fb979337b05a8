"""examples/c: a program with no TVM in it, on this machine and on emulated ARM."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import ModelInfo, Preprocessing
from mobilenet_tvm.build.static import zig_target
from mobilenet_tvm.runtime.static import emulator, why_not
from tests.examples.conftest import EXAMPLES, ppm_of, tensor_of

# ImageNet's Egyptian cat, one on for the background's class 0.
EGYPTIAN_CAT = 286


def classify(
    folder: Path, preset: targets.Preset, relay: frontend.RelayModel, *files: Path
) -> list[tuple[int, float]]:
    """Builds the example as examples/README.md says; class and score of each file."""
    command = emulator(preset)
    if command is None:
        pytest.skip(why_not(preset))
    library = folder / "libmobilenet.a"
    compile_model(
        relay,
        preset,
        library,
        info=ModelInfo("net", "sha256:0"),
        c_prefix="mobilenet",
        preprocessing=frontend.guess_preprocessing(relay.inputs),
    )
    program = folder / "classify"
    toolchain.zig(
        *("cc", *zig_target(preset, libc="musl"), "-static", "-O2", f"-I{folder}"),
        *("-std=c99", "-Wall", "-Wextra", "-Werror", "-o", str(program)),
        *(str(EXAMPLES / "c" / "classify.c"), str(library), "-lm"),
    )
    found = []
    for file in files:
        said = subprocess.run(
            [*command, str(program), str(file)], capture_output=True, text=True, check=True
        ).stdout
        match = re.fullmatch(r"class (\d+), score (-?\d+\.\d+)\n", said)
        assert match, said
        found.append((int(match[1]), float(match[2])))
    return found


@pytest.mark.slow
def test_a_cat_on_a_raspberry_pi(shared_models: Path, shared_images: Path, tmp_path: Path) -> None:
    model = frontend.read(shared_models / "mobilenet_v1_1.0_224_imagenet1001.onnx")
    relay = frontend.to_relay(frontend.clean(model))
    photo = ppm_of(shared_images / "chelsea.png", tmp_path)
    ((best, _),) = classify(tmp_path, targets.resolve("rpi4"), relay, photo)
    assert best == EGYPTIAN_CAT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x86", "armv7"])
def test_the_score_is_onnx_runtimes(shared_images: Path, tmp_path: Path, name: str) -> None:
    from onnxruntime import InferenceSession

    model = zoo.build("mobilenet_v1", alpha=0.25, resolution=128)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(model, "net")))
    file, image = tensor_of(
        shared_images / "coffee.png", Preprocessing(128, 128, resize_shorter=128), tmp_path
    )
    ((best, score),) = classify(tmp_path, targets.resolve(name), relay, file)
    (expected,) = InferenceSession(model.SerializeToString()).run(None, {"input": image})
    assert best == expected[0].argmax()
    assert score == pytest.approx(expected.max(), abs=2e-4)  # four digits are printed


def test_what_it_cannot_read_is_refused(tmp_path: Path) -> None:
    from tests.build.test_build_compile import relay_model

    (tmp_path / "short.f32").write_bytes(b"1234")
    (tmp_path / "short.ppm").write_bytes(b"P6 9 9 255\n123")
    relay = relay_model()
    for name in ("short.f32", "short.ppm", "none"):
        with pytest.raises(subprocess.CalledProcessError) as raised:
            classify(tmp_path, targets.resolve("x86"), relay, tmp_path / name)
        assert raised.value.returncode == 2
        assert "usage: " in raised.value.stderr
