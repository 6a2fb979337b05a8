"""An artifact for a GPU, from the model to its check on the emulator, and where there is none.

What uses the emulator runs in a process of its own: a process has one CUDA device for good.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

import mobilenet_tvm
from mobilenet_tvm import check, cuda, frontend, targets
from mobilenet_tvm import compile as compile_verb
from mobilenet_tvm import run as run_verb
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.cuda_info import source_digest
from mobilenet_tvm.build.manifest import ModelInfo, read_manifest, sha256_bytes, write_manifest
from mobilenet_tvm.cuda import gpu, switch
from mobilenet_tvm.runtime import ForeignArtifactError, gpus

REPO = Path(__file__).resolve().parents[2]
NEEDED = (
    "needs an NVIDIA GPU of compute capability 8.0 or later (preset cuda-sm80); this machine has "
    "no NVIDIA driver: run it where there is one, or check it here with --device emulated"
)


def network() -> Any:
    """``max(in, 0)`` and a pointwise convolution of that: ``[1, 4, 8, 8] -> [1, 8, 8, 8]``."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(8, 4, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["in"], ["active"]),
            helper.make_node("Conv", ["active", "weight"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, (1, 4, 8, 8))],
        [
            helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 8, 8, 8)),
            helper.make_tensor_value_info("active", TensorProto.FLOAT, (1, 4, 8, 8)),
        ],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def in_process(*command: object, emulated: bool = False) -> subprocess.CompletedProcess[str]:
    """``python ...``, with no GPU chosen but what the command itself chooses."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "200"}
    for name in (cuda.DEVICE_VARIABLE, "MOBILENET_TVM_CUDA_ARCH", "MOBILENET_TVM_CUDA_ORDER"):
        environment.pop(name, None)
    if emulated:
        environment[cuda.DEVICE_VARIABLE] = cuda.EMULATED
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, Any]:
    """What ``compile --device emulated --json`` says, and where."""
    folder = tmp_path_factory.mktemp("cuda_artifact")
    onnx = folder / "net.onnx"
    onnx.write_bytes(network().SerializeToString())
    done = in_process(
        *("-m", "mobilenet_tvm.compile", "--onnx", onnx, "--target", "cuda-sm80"),
        *("--device", "emulated", "-o", folder / "out", "--json"),
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


@pytest.fixture
def artifact(compiled, tmp_path) -> Path:
    """A copy, free to be broken."""
    made = Path(compiled["artifact"])
    for path in made.parent.glob("net.cuda-sm80.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / made.name


@pytest.fixture
def no_driver(monkeypatch) -> None:
    monkeypatch.delenv(cuda.DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(gpu, "find_gpu", lambda: None)
    monkeypatch.setattr(gpus, "_has_driver", lambda: False)


# --- compile


def test_compile_checks_on_the_emulator_and_says_so(compiled):
    assert compiled["parity"]["passed"]
    device = {"board": "emulator", "cpu": "an emulated sm_80 GPU", "emulated": True}
    assert compiled["parity"]["device"] == device
    assert "run on an emulated sm_80 GPU" in compiled["stderr"]
    assert compiled["cuda"]["kernels"]
    assert f"kernels   {len(compiled['cuda']['kernels'])} for sm_80" in compiled["stderr"]


def test_the_manifest_says_what_was_compiled_and_where_it_was_checked(artifact):
    manifest = read_manifest(artifact)
    assert manifest.target.cuda_arch == "sm_80"
    assert manifest.parity.device.emulated
    assert manifest.latency == ()
    info = manifest.cuda
    assert (info.arch, info.capability, info.ptx) == ("sm_80", (8, 0), True)
    source = artifact.with_name(info.source).read_text(encoding="utf-8")
    assert source_digest(source) == info.source_digest
    names = {kernel.name for kernel in info.kernels}
    assert names == set(re.findall(r"__global__ void .*?(\w+)\(float", source))
    assert {layer.kernel + "_kernel" for layer in manifest.layers} == names
    assert all(0 < kernel.occupancy <= 1 and kernel.registers > 0 for kernel in info.kernels)


def test_nothing_but_the_three_files_and_nothing_temporary_is_left(compiled):
    made = Path(compiled["artifact"])
    names = {path.name for path in made.parent.iterdir()}
    assert names == {f"net.cuda-sm80.{end}" for end in ("so", "cu", "manifest.json")}


def test_compile_with_no_gpu_says_that_nothing_was_checked(no_driver, tmp_path, capsys):
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(network().SerializeToString())
    command = ["--onnx", str(onnx), "--target", "cuda-sm80", "-o", str(tmp_path / "out")]
    assert compile_verb.main(command) == 0
    assert f"parity    not checked: it {NEEDED}" in capsys.readouterr().out
    assert read_manifest(tmp_path / "out" / "net.cuda-sm80.so").parity is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--target", "cuda-sm80", "--format", "c"), "--format c is for CPUs, and kernels of cuda"),
        (
            ("--target", "x86-avx2", "--device", "emulated"),
            "emulates GPUs, and x86-avx2 is for a CPU",
        ),
        (("--target", "HOSTED", "--device", "emulated"), "HOSTED on this machine, which is"),
    ],
)
def test_what_makes_no_sense_for_a_gpu_is_one_line(options, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(switch, "emulate", lambda arch: pytest.fail(f"emulates {arch}"))
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(network().SerializeToString())
    hosted = "jetson-orin" if targets.resolve("cuda-sm80").runs_here() else "cuda-sm80"
    options = [one.replace("HOSTED", hosted) for one in options]
    assert compile_verb.main(["--onnx", str(onnx), "-o", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert told.replace("HOSTED", hosted) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_jetsons_artifact_is_made_here_and_is_a_jetsons(tmp_path):
    model = network()
    relay = frontend.to_relay(frontend.clean(frontend.from_proto(model, "net")))
    path = tmp_path / "net.jetson-orin.so"
    info = ModelInfo("net", sha256_bytes(model.SerializeToString()))
    manifest = compile_model(relay, targets.resolve("jetson-orin"), path, info=info)
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        assert elf["e_machine"] == "EM_AARCH64"
        names = {symbol.name for symbol in elf.get_section_by_name(".dynsym").iter_symbols()}
    assert "__tvm_dev_mblob" in names  # the image
    assert manifest.target.arch == "aarch64"
    assert (manifest.cuda.arch, manifest.cuda.compute_capability) == ("sm_87", "8.7")
    assert path.with_suffix(".cu").exists()


# --- where there is no GPU


def test_load_run_and_check_say_what_is_missing(no_driver, artifact, tmp_path, capsys):
    with pytest.raises(ForeignArtifactError) as caught:
        mobilenet_tvm.load(artifact)
    assert str(caught.value) == f"{artifact} {NEEDED}"
    photo = tmp_path / "photo.png"
    for main, *arguments in ((check.main,), (run_verb.main, photo)):
        assert main([str(artifact), *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said == f"error: {artifact} {NEEDED}\n"


def test_another_gpu_is_refused_before_anything_is_loaded(artifact, monkeypatch):
    monkeypatch.delenv(cuda.DEVICE_VARIABLE, raising=False)
    old = gpu.GpuInfo("Tesla T4", (7, 5))
    monkeypatch.setattr(gpu, "find_gpu", lambda: old)
    monkeypatch.setattr(cuda, "activate", lambda: pytest.fail("activated"))
    with pytest.raises(ForeignArtifactError, match=r"this machine's Tesla T4 has 7\.5: compile it"):
        mobilenet_tvm.load(artifact)


def test_a_plugin_that_cannot_be_built_is_told(artifact, monkeypatch):
    monkeypatch.delenv(cuda.DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(gpu, "find_gpu", lambda: gpu.GpuInfo("NVIDIA A100", (8, 0)))

    def fails() -> None:
        raise cuda.CudaError("no compiler")

    monkeypatch.setattr(cuda, "activate", fails)
    with pytest.raises(cuda.CudaError, match="no compiler"):
        mobilenet_tvm.load(artifact)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"device": "gpu"}, "device 'gpu': it is 'emulated', or None"),
        ({"device": "emulated"}, "is for the CPU (preset x86-avx2), and --device emulated is for"),
        ({"cuda_graph": True}, "is for the CPU (preset x86-avx2), and a CUDA graph is for GPUs"),
    ],
)
def test_a_cpus_artifact_has_no_gpu_to_choose(artifact, how, told):
    manifest = read_manifest(artifact)
    target = msgspec.structs.replace(manifest.target, preset="x86-avx2", cuda_arch=None)
    write_manifest(artifact, msgspec.structs.replace(manifest, target=target))
    with pytest.raises(mobilenet_tvm.errors.UsageError) as caught:
        mobilenet_tvm.load(artifact, **how)
    assert told in str(caught.value)


def test_qemu_is_no_gpu(artifact, capsys):
    assert check.main([str(artifact), "--device", "qemu"]) == 2
    assert "qemu emulates CPUs: use --device emulated" in capsys.readouterr().err


# --- on the emulator


def test_check_and_bisect_on_the_emulator(artifact):
    done = in_process(
        *("-m", "mobilenet_tvm.check", artifact, "--device", "emulated", "--bisect", "--json"),
        *("--inputs", 1, "--cuda-graph"),
    )
    assert done.returncode == 0, done.stderr
    assert "Num of nodes" not in done.stderr  # TVM's own log
    found = json.loads(done.stdout)
    assert found["device"]["emulated"]
    assert {"Relu active", "Conv out"} <= {one["title"] for one in found["bisect"]["layers"]}
    assert found["bisect"]["compared"] == found["bisect"]["kernels"]
    assert found["bisect"]["culprit"] is None
    assert all(layer["error_after"] < 1e-5 for layer in found["bisect"]["layers"])


def test_pytest_checks_it_on_the_emulator(artifact):
    done = in_process(
        *("-m", "pytest", "-q", "-p", "mobilenet_tvm.pytest_plugin", "-p", "no:cacheprovider"),
        *("-p", "no:hypothesispytest", "-c", os.devnull, f"--rootdir={artifact.parent}"),
        *("--mobilenet-artifact", artifact, "--mobilenet-device", "emulated"),
        *("--mobilenet-inputs", 1, artifact.parent),
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


RUNS = """
import sys
import numpy as np
import mobilenet_tvm

path = sys.argv[1]
plain = mobilenet_tvm.load(path, device="emulated")
graph = mobilenet_tvm.load(path, cuda_graph=True)
for seed in range(3):
    image = np.random.default_rng(seed).normal(size=(1, 4, 8, 8)).astype(np.float32)
    runs = (plain.run, graph.run, plain.run_in_other_order)
    one, other, again = (run({"in": image}) for run in runs)
    assert np.array_equal(one["active"], np.maximum(image, 0))
    for name in one:
        assert np.array_equal(one[name], other[name]), name
        assert np.array_equal(one[name], again[name]), name
image = np.full((1, 4, 8, 8), 2, np.float32)
graph.set_inputs({"in": image})
graph.timer()()
assert np.array_equal(graph._executor.get_output(1).numpy(), image)
print("fine")
"""


def test_a_cuda_graph_and_the_other_order_give_the_same_bits(artifact):
    done = in_process("-c", RUNS, artifact)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_source_that_is_another_is_not_run(artifact):
    source = artifact.with_suffix(".cu")
    source.write_text(source.read_text().replace("max(", "min("))
    done = in_process("-m", "mobilenet_tvm.check", artifact, "--device", "emulated")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {source} is not the source that the manifest of")
    assert done.stderr.count("\n") == 1


def change_source(artifact: Path, old: str, new: str) -> None:
    """Another source, with a manifest that says that it is the artifact's."""
    source = artifact.with_suffix(".cu")
    text = source.read_text()
    assert old in text
    text = text.replace(old, new)
    source.write_text(text)
    manifest = read_manifest(artifact)
    info = msgspec.structs.replace(manifest.cuda, source_digest=source_digest(text))
    write_manifest(artifact, msgspec.structs.replace(manifest, cuda=info))


def store_of_relu(artifact: Path) -> str:
    """The line in which the first kernel writes its result."""
    lines = artifact.with_suffix(".cu").read_text().splitlines()
    return next(line for line in lines if line.lstrip().startswith("T_relu["))


def test_a_kernel_that_writes_where_it_must_not_is_one_line(artifact):
    store = store_of_relu(artifact)
    change_source(artifact, store, store.replace("T_relu[", "T_relu[1024 + "))
    done = in_process("-m", "mobilenet_tvm.check", artifact, "--device", "emulated")
    assert done.returncode == 3
    assert done.stderr.startswith("error: net.cuda-sm80 fails on the emulated GPU: ")
    assert "nn_relu_kernel writes" in done.stderr
    assert done.stderr.count("\n") == 1


def test_threads_that_do_not_wait_for_each_other_are_found(artifact):
    """A kernel whose result depends on which thread comes first."""
    store = store_of_relu(artifact)
    racing = (
        "  __shared__ float last[1];\n  if (threadIdx.x == 0) last[0] = 0.0f;\n"
        f"{store}\n  T_relu[((int)threadIdx.x)] += last[0] * 1e-7f; last[0] = 1.0f;"
    )
    change_source(artifact, store, racing)
    done = in_process(
        "-m", "mobilenet_tvm.check", artifact, "--device", "emulated", "--kinds", "uniform"
    )
    assert done.returncode == 1, done.stderr
    assert "has other bits with a block's threads in the other order" in done.stderr
