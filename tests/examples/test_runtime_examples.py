"""examples/cpp and examples/python: a .so and TVM's runtime alone, here and on emulated ARM."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.build.static import zig_target
from mobilenet_tvm.devices.qemu import QemuRuntime
from tests.examples.conftest import EXAMPLES, tensor_of

CPP, PYTHON = EXAMPLES / "cpp" / "deploy.cc", EXAMPLES / "python" / "deploy.py"
# Where the board's wheel is, as its Python finds it.
TVM_OF_BOARD = "import importlib.util as u; print(u.find_spec('tvm').origin)"


@dataclass(frozen=True)
class Deployed:
    """An artifact, an input in the forms that the examples read, and what they are to print."""

    artifact: Path
    raw: Path
    array: Path
    said: str


def deployed(folder: Path, preset: targets.Preset, photo: Path) -> Deployed:
    from onnxruntime import InferenceSession

    model = zoo.build("mobilenet_v1", alpha=0.25, resolution=128)
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(model, "net")))
    how = frontend.guess_preprocessing(relay.inputs)
    assert how is not None
    artifact = folder / f"net.{preset.name}.so"
    compile_model(relay, preset, artifact, info=ModelInfo("net", "sha256:0"), preprocessing=how)
    raw, image = tensor_of(photo, how, folder)
    np.save(folder / "image.npy", image)
    (scores,) = InferenceSession(model.SerializeToString()).run(None, {"input": image})
    return Deployed(artifact, raw, folder / "image.npy", f"class {scores.argmax()}, score ")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, shared_images: Path) -> Deployed:
    """For this machine."""
    folder = tmp_path_factory.mktemp("here")
    return deployed(folder, targets.resolve("x86"), shared_images / "coffee.png")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, shared_images: Path) -> Deployed:
    """For a Raspberry Pi 4."""
    folder = tmp_path_factory.mktemp("there")
    return deployed(folder, targets.resolve("rpi4"), shared_images / "coffee.png")


def tvm_folder() -> Path:
    found = importlib.util.find_spec("tvm")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def build_deploy(folder: Path, preset: targets.Preset, runtime: Path) -> Path:
    """The C++ example, built as examples/README.md says, beside the runtime library."""
    shutil.copy(runtime, folder)
    program, tvm = folder / "deploy", tvm_folder()
    toolchain.zig(
        *("cc", *zig_target(preset), "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"),
        *("-I", str(tvm / "include"), "-I", str(tvm / "3rdparty/dlpack/include")),
        *("-o", str(program), str(CPP), str(folder / runtime.name)),
        *("-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined"),
    )
    return program


@pytest.mark.slow
def test_cpp_here(here: Deployed, tmp_path: Path) -> None:
    program = build_deploy(tmp_path, targets.resolve("x86"), tvm_folder() / "libtvm_runtime.so")
    done = subprocess.run(
        [str(program), str(here.artifact), str(here.raw)],
        capture_output=True,
        text=True,
        check=True,
        env={},
    )
    assert done.stdout.startswith(here.said)
    # Zeros, where no input is given: another picture, another score.
    zeros = subprocess.run(
        [str(program), str(here.artifact)], capture_output=True, text=True, check=True, env={}
    )
    assert zeros.stdout != done.stdout
    missing = subprocess.run([str(program), "none.so"], capture_output=True, text=True, env={})
    assert missing.returncode == 3
    assert "none.so" in missing.stderr


@pytest.mark.slow
def test_cpp_there(there: Deployed, board: QemuRuntime, tmp_path: Path) -> None:
    asked = board.run_python(["-c", TVM_OF_BOARD], cpu="cortex-a72", capture_output=True, text=True)
    runtime = Path(asked.stdout.strip()).with_name("libtvm_runtime.so")
    program = build_deploy(tmp_path, targets.resolve("rpi4"), runtime)
    done = board.run(
        [str(program), str(there.artifact), str(there.raw)],
        cpu="cortex-a72",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(there.said)


@pytest.mark.slow
def test_python_here(here: Deployed, shared_images: Path, tmp_path: Path) -> None:
    """With a package in the way that would break if it were imported: only TVM's is."""
    package = tmp_path / "mobilenet_tvm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('not this one')")
    done = subprocess.run(
        [
            *(sys.executable, str(PYTHON), str(here.artifact)),
            *(str(shared_images / "coffee.png"), str(here.array)),
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    photo, array = done.stdout.splitlines()
    assert photo.startswith(f"coffee.png: {here.said}")
    assert array == photo.replace("coffee.png", "image.npy")


@pytest.mark.slow
def test_python_there(there: Deployed, board: QemuRuntime) -> None:
    done = board.run_python(
        [str(PYTHON), str(there.artifact), str(there.array)],
        cpu="cortex-a72",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"image.npy: {there.said}")
