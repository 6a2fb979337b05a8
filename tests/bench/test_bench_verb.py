"""The verb: what it refuses, and what it makes of its arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.status import Status

from mobilenet_tvm import frontend, zoo
from mobilenet_tvm.bench import __main__ as bench_verb
from mobilenet_tvm.bench import alternate
from mobilenet_tvm.bench.__main__ import (
    KNOWN_PEERS,
    artifact_contenders,
    main,
    parse_peers,
    parse_threads,
)
from mobilenet_tvm.bench.cpu_peers import Field
from mobilenet_tvm.bench.reference import reference_model
from mobilenet_tvm.build.compile import compile_model
from mobilenet_tvm.build.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModelInfo,
    TargetInfo,
    TensorSpec,
    ToolchainInfo,
    TuningInfo,
    sha256_bytes,
    write_manifest,
)
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets import physical_cores, resolve


def manifest_of(model: ModelInfo) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        name=model.name,
        model=model,
        inputs=(TensorSpec("x", (1, 3, 32, 32), "float32"),),
        outputs=(TensorSpec("y", (1, 10), "float32"),),
        target=TargetInfo("x86", "llvm", "x86_64", ()),
        toolchain=ToolchainInfo("0", "0.19.0", "22"),
        tuning=TuningInfo(tasks=1, tuned=0),
        so_sha256="sha256:0",
    )


def fake_artifact(path: Path, digest: str = "sha256:1") -> Path:
    """A file with a manifest that says it is an artifact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no ELF")
    write_manifest(path, manifest_of(ModelInfo(name=path.stem, digest=digest)))
    return path


def test_threads_are_one_and_all_by_default() -> None:
    assert parse_threads(None) == sorted({1, physical_cores()})
    assert parse_threads("1") == [1]
    for text in ("", "one", "1,,2", "0", "100000", "1,1"):
        with pytest.raises(UsageError, match="--threads"):
            parse_threads(text)


def test_peers_are_known_by_name() -> None:
    assert parse_peers(None) is None
    assert parse_peers("") == []
    assert parse_peers("onnxruntime, onnxruntime") == ["onnxruntime"]
    assert parse_peers("onnxruntime,torch") == ["torch", "onnxruntime"]
    assert parse_peers("openvino,tvm-ansor,litert") == ["openvino", "litert", "tvm-ansor"]
    assert parse_peers("all") == list(KNOWN_PEERS)
    with pytest.raises(UsageError, match="caffe: unknown, the known ones are openvino, litert"):
        parse_peers("onnxruntime,caffe")


def test_artifacts_are_labelled_by_file_or_by_path_if_that_is_not_enough(tmp_path: Path) -> None:
    a = fake_artifact(tmp_path / "one" / "net.so")
    b = fake_artifact(tmp_path / "one" / "net-untuned.so")
    c = fake_artifact(tmp_path / "two" / "net.so")
    contenders, manifest = artifact_contenders([a, b])
    assert [contender.label for contender in contenders] == ["net", "net-untuned"]
    assert manifest.name == "net"
    contenders, _ = artifact_contenders([a, c])
    assert [contender.label for contender in contenders] == [str(a), str(c)]
    with pytest.raises(UsageError, match="twice"):
        artifact_contenders([a, a])


def test_artifacts_of_two_models_are_not_compared(tmp_path: Path) -> None:
    a = fake_artifact(tmp_path / "a.so")
    b = fake_artifact(tmp_path / "b.so", digest="sha256:2")
    with pytest.raises(UsageError, match=r"b\.so is of another model than .*a\.so"):
        artifact_contenders([a, b])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--against", "caffe"], "the known ones are openvino"),
        (["--threads", "100000"], "the cores of this machine"),
        ([], "no artifact at"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nowhere.so", *options, "--json"]) == 2
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert said["exit_code"] == 2
    assert complaint in said["error"]
    assert complaint in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_what_does_not_run_on_the_cpu_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = str(fake_artifact(tmp_path / "net.so"))
    assert main([artifact, "--against", "tensorrt"]) == 2
    assert "--against tensorrt: on the CPU there is openvino" in capsys.readouterr().err
    assert main([artifact, "--against", "onnxruntime", "--tvm-logs", "logs"]) == 2
    assert "--tvm-logs is for --against tvm-autotvm,tvm-ansor" in capsys.readouterr().err


def test_each_step_of_preparing_others_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take minutes where many are converted and compiled."""
    artifact, told = fake_artifact(tmp_path / "a.so"), []

    def prepare(what: str) -> Any:
        def find(*arguments: Any, on_step: Any, **options: Any) -> Field:
            on_step(what)
            return Field((), ())

        return find

    def stop(*arguments: Any) -> None:
        raise UsageError("enough")

    monkeypatch.setattr(bench_verb, "reference_model", lambda *arguments: (tmp_path, 1))
    monkeypatch.setattr(bench_verb, "build_stock_tuned", prepare("compiling"))
    monkeypatch.setattr(bench_verb, "find_cpu_peers", prepare("converting"))
    monkeypatch.setattr(bench_verb, "_time_on_cpu", stop)
    monkeypatch.setattr(Status, "update", lambda status, what: told.append(what))
    assert main([str(artifact), "--against", "mnn"]) == 2
    assert told == ["compiling", "converting"]


def test_help_names_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "mobilenet_tvm.bench" in capsys.readouterr().out


def test_a_zoo_model_is_built_again_for_its_peers(tmp_path: Path) -> None:
    arguments = {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 128}
    data = zoo.build(**arguments).SerializeToString()
    info = ModelInfo("v1", sha256_bytes(data), zoo=arguments)
    path, mult_adds = reference_model(manifest_of(info), None, tmp_path)
    assert path.parent == tmp_path
    assert path.read_bytes() == data
    assert round(mult_adds / 1e6) == 14  # 41 million at 224, of which (128 / 224) ** 2


def test_mult_adds_of_an_open_batch_are_those_of_the_compiled_batch(tmp_path: Path) -> None:
    model = zoo.build("mobilenet_v1", alpha=0.25, resolution=128)
    one = zoo.costs(model).mult_adds
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    source = tmp_path / "open.onnx"
    source.write_bytes(model.SerializeToString())
    digest = sha256_bytes(source.read_bytes())
    info = ModelInfo("v1", digest, path=str(source), batch=2)
    path, mult_adds = reference_model(manifest_of(info), None, tmp_path)
    assert path == source
    assert mult_adds == 2 * one


@pytest.mark.slow
def test_an_artifact_against_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"name": "mobilenet_v1", "alpha": 0.25, "resolution": 32}
    source = frontend.from_proto(zoo.build(**arguments), "v1")
    path = tmp_path / "v1.so"
    relay_model = frontend.to_relay(frontend.clean(source))
    info = ModelInfo("v1", source.digest, zoo=arguments)
    compile_model(relay_model, resolve("x86"), path, info=info)
    monkeypatch.setattr(alternate, "ROUND_MS", 10.0)

    threads = ",".join(map(str, sorted({1, min(2, physical_cores())})))
    options = ["--against", "onnxruntime", "--threads", threads, "--rounds", "3", "--json"]
    assert main([str(path), *options]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    peer = result["timings"][1]["label"]
    assert peer.startswith("ONNX Runtime ")
    labels = [timing["label"] for timing in result["timings"]]
    assert labels == ["v1", peer] * (len(labels) // 2)
    assert all(0 < timing["peak_fraction"] < 1 for timing in result["timings"])
    assert all(agreement["max_error"] < 1e-4 for agreement in result["agreements"])
    assert "quiet-machine check" in printed.err

    # Without its manifest's promise kept the worker refuses, and the user is told.
    with path.open("ab") as stream:
        stream.write(b"x")
    assert main([str(path), "--threads", "1", "--rounds", "1"]) == 2
    assert "not the file its manifest describes" in capsys.readouterr().err
