"""Which runtimes a model is held against on the CPU, and what is said of the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mobilenet_tvm import zoo
from mobilenet_tvm.bench import compare, conversions, cpu_peers, elsewhere, installed
from mobilenet_tvm.bench.cpu_peers import CPU_PEERS, find_cpu_peers
from mobilenet_tvm.bench.installed import Installed, Question
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.errors import DeviceError, UsageError

ALL_MODULES = tuple(sorted({module for peer in CPU_PEERS.values() for module in peer.modules}))
INFO = ModelInfo("net", "sha256:0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A staged model's folder; converting makes one inside of it."""
    monkeypatch.setattr(conversions, "stage", lambda model, info: tmp_path)
    monkeypatch.setattr(
        conversions, "convert", lambda name, folder, python, versions: folder / name
    )
    return tmp_path


def has(
    monkeypatch: pytest.MonkeyPatch,
    *modules: str,
    openvino_default: str = "f32",
    compiler: bool = True,
) -> None:
    """The peers' Python has these modules, of version 1 all."""
    versions = {one: "1" for peer in CPU_PEERS.values() for one in peer.distributions}
    found = Installed(modules, versions, openvino_default, compiler)
    monkeypatch.setattr(cpu_peers, "ask", lambda python, question: found)


def test_who_is_not_installed_is_named_with_what_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, "ncnn", "torch")
    field = find_cpu_peers(list(CPU_PEERS), Path("net.onnx"), INFO, python=sys.executable)
    assert [row.kind for row in field.contenders] == ["onnxruntime"]
    assert [str(one) for one in field.absent] == [
        "OpenVINO: absent, openvino is not installed (pip install openvino)",
        "LiteRT: absent, ai_edge_litert and litert_torch and onnx2torch are not installed "
        "(pip install ai-edge-litert litert-torch onnx2torch)",
        "ncnn: absent, pnnx is not installed (pip install ncnn pnnx)",
        "MNN: absent, MNN is not installed (pip install MNN)",
        "PyTorch: absent, onnx2torch is not installed (pip install torch onnx2torch)",
    ]
    field = find_cpu_peers(["mnn"], Path("net.onnx"), INFO, python="/other/python")
    assert field.absent[0].command == "/other/python -m pip install MNN"


def test_onnx_runtime_alone_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(cpu_peers, "ask", never)
    monkeypatch.setattr(conversions, "stage", never)
    (row,) = find_cpu_peers(["onnxruntime"], Path("net.onnx"), INFO).contenders
    assert (row.kind, row.path, row.python) == ("onnxruntime", "net.onnx", None)
    assert row.label.startswith("ONNX Runtime 1.")


def test_every_peer_that_is_there_has_its_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, *ALL_MODULES, openvino_default="bf16")
    field = find_cpu_peers(list(CPU_PEERS), Path("net.onnx"), INFO, python="/other/python")
    assert not field.absent
    assert [(row.kind, row.label, row.precision) for row in field.contenders[:-1]] == [
        ("openvino", "OpenVINO 1", "f32"),
        ("openvino-default", "OpenVINO 1, its default bf16", "bf16"),
        ("litert", "LiteRT 1", "f32"),
        ("ncnn", "ncnn 1", "f32"),
        ("ncnn-default", "ncnn 1, its default f16", "f16"),
        ("mnn", "MNN 1", "f32"),
        ("cpu-torch", "PyTorch 1, TorchScript", "f32"),
        ("cpu-torch-compiled", "PyTorch 1, compiled", "f32"),
    ]
    assert {row.python for row in field.contenders[:-1]} == {"/other/python"}
    paths = {row.kind: row.path for row in field.contenders}
    assert paths["litert"] == str(folder / "litert")
    assert paths["openvino"] == paths["cpu-torch"] == str(folder)
    assert field.contenders[-1].python is None


@pytest.mark.parametrize("default", ["f32", "", "undefined"])
def test_openvino_has_one_row_where_it_lowers_nothing(
    default: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, *ALL_MODULES, openvino_default=default)
    field = find_cpu_peers(["openvino"], Path("net.onnx"), INFO)
    assert [row.kind for row in field.contenders] == ["openvino"]


def test_torch_without_a_compiler_runs_uncompiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, *ALL_MODULES, compiler=False)
    field = find_cpu_peers(["torch"], Path("net.onnx"), INFO)
    assert [row.kind for row in field.contenders] == ["cpu-torch"]
    (absent,) = field.absent
    assert absent.name == "PyTorch 1, compiled"
    assert "C++ compiler" in absent.reason


def test_a_conversion_that_fails_ends_nobody_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(name: str, folder: Path, python: str, versions: dict[str, str]) -> Path:
        if name == "ncnn":
            assert versions == {"ncnn": "1", "pnnx": "1"}
            raise DeviceError("the conversion failed: no such operator")
        return folder / name

    has(monkeypatch, *ALL_MODULES)
    monkeypatch.setattr(conversions, "convert", convert)
    field = find_cpu_peers(["litert", "ncnn", "mnn"], Path("net.onnx"), INFO)
    assert [row.kind for row in field.contenders] == ["litert", "mnn"]
    (absent,) = field.absent
    assert absent.name == "ncnn"
    assert absent.reason == "it fails here: the conversion failed: no such operator"


def test_a_cache_that_cannot_be_written_ends_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(
        zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10).SerializeToString()
    )
    cache = tmp_path / "cache"
    cache.write_text("")  # a file, which no rights make a folder
    monkeypatch.setenv("MOBILENET_TVM_CACHE", str(cache))
    has(monkeypatch, *CPU_PEERS["openvino"].modules, *CPU_PEERS["mnn"].modules)
    field = find_cpu_peers(["openvino", "ncnn", "mnn", "onnxruntime"], model, INFO)
    assert [row.kind for row in field.contenders] == ["onnxruntime"]
    assert [one.name for one in field.absent] == ["OpenVINO", "ncnn", "MNN"]
    openvino, ncnn, mnn = field.absent
    assert openvino.reason.startswith(f"its model cannot be written to {cache}")
    assert (
        openvino.command
        == mnn.command
        == ("set MOBILENET_TVM_CACHE to a folder that can be written")
    )
    assert "not installed" in ncnn.reason


def test_the_peers_python_is_asked_in_a_process_of_its_own() -> None:
    found = installed.ask(
        sys.executable, Question(("numpy", "process", "no_such_module"), ("numpy", "no-such"))
    )
    # Not "process", which lies beside the script that was started.
    assert found.modules == ("numpy",)
    assert list(found.versions) == ["numpy"]
    assert found.openvino_default == ""


def test_a_python_that_cannot_run_peers_is_refused_in_a_line(tmp_path: Path) -> None:
    question = Question((), ())
    with pytest.raises(UsageError, match=f"{elsewhere.VARIABLE}=/nowhere/python: no such Python"):
        installed.ask("/nowhere/python", question)
    bare = tmp_path / "python"
    bare.write_text(
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'msgspec'\" >&2\nexit 1"
    )
    bare.chmod(0o755)
    with pytest.raises(UsageError, match=r"No module named 'msgspec' \(.*python -m pip install"):
        installed.ask(str(bare), question)


def test_another_python_is_not_led_to_this_ones_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert "PYTHONPATH" not in elsewhere.environment("/other/python")
    assert elsewhere.environment(sys.executable)["PYTHONPATH"] == "/mine"
    monkeypatch.setenv(elsewhere.VARIABLE, "/other/python")
    assert elsewhere.peers_python() == "/other/python"
    monkeypatch.delenv(elsewhere.VARIABLE)
    assert elsewhere.peers_python() == sys.executable


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CPU_PEERS if name != "onnxruntime"])
def test_a_real_peer_computes_what_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    peer = CPU_PEERS[name]
    found = installed.ask(elsewhere.peers_python(), Question(peer.modules, ()))
    if set(found.modules) != set(peer.modules):
        pytest.skip(
            f"{peer.title} is not installed here: {peer.command}, or set a Python that "
            f"has it in {elsewhere.VARIABLE}"
        )
    model = zoo.build("mobilenet_v3_small", alpha=0.35, resolution=32)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    field = find_cpu_peers([name, "onnxruntime"], path, INFO)
    result = compare(field.contenders, rounds=1, absent=field.absent)
    assert not result.absent
    assert not result.warnings or "quiet" in result.warnings[0]
    own = [one for one in result.agreements if one.limit < 1e-2]
    assert own
    assert all(one.max_error < 1e-4 for one in own)
