"""benchmarks/cuda.py: its commands, and what it makes of what they print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import bench, tune
from mobilenet_tvm.bench.gpu_peers import Absent
from mobilenet_tvm.bench.gpu_results import GpuBenchResult, GpuRatio, GpuTiming
from mobilenet_tvm.bench.results import Agreement
from mobilenet_tvm.cli.options import model_info, resolve_model
from mobilenet_tvm.cuda import gpu
from mobilenet_tvm.cuda.gpu import GpuInfo, GpuSummary

from ..conftest import benchmark_script


@pytest.fixture(scope="module")
def script() -> Any:
    return benchmark_script("cuda")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOBILENET_TVM_CUDA", raising=False)
    monkeypatch.setattr(gpu, "find_gpu", lambda: None)
    monkeypatch.setattr("mobilenet_tvm.bench.gpu.find_gpu", lambda: None)


def result() -> GpuBenchResult:
    rows = [
        GpuTiming(label, ms, ms, ms, ms + 1, ms, ms, 1000 / ms, 40, 400)
        for label, ms in (("tuned", 0.5), ("untuned (our schedules)", 1.0), ("ORT", 2.0))
    ]
    return GpuBenchResult(
        machine="an A100, driver 550; host a CPU",
        gpu=GpuInfo("NVIDIA A100", (8, 0), driver_version="550", cuda_version="12.4"),
        state=GpuSummary(9, 1200, 1410, 1215, 1215, 66, 250.0, False, ("idle",), 0),
        timings=tuple(rows),
        ratios=(
            GpuRatio("tuned", "untuned (our schedules)", 2.0, 1.9, 2.1, 1.5),
            GpuRatio("tuned", "ORT", 4.0, 3.9, 4.1, 2.0),
            GpuRatio("untuned (our schedules)", "ORT", 2.0, 1.9, 2.1, 1.5),
        ),
        agreements=(Agreement("tuned", "ONNX Runtime on the CPU", 1, 2e-6),),
        absent=(Absent("TensorRT", "tensorrt is not installed", "pip install tensorrt-cu12"),),
    )


def said(work: Path, name: str, timing: str = "measured") -> dict[str, Any]:
    """What ``tune --json`` prints, its logs and run files written."""
    folder = work / "tuning_logs" / "cuda-sm80"
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"{name}.{searcher}.jsonl" for searcher in ("autotvm", "ansor")]
    for log in logs:
        log.with_name(log.name.replace(".jsonl", ".run.json")).write_text(
            json.dumps({"tvm": "0.19.0", "llvm": "22.1.8"})
        )
    return {
        "logs": list(map(str, logs)),
        "timing": timing,
        "preset": "cuda-sm80",
        "tuned": 20,
        "tasks": 20,
        "search": {"trials": 123, "spent_s": 45.6},
        "bench": json.loads(json.dumps(result().as_dict(), default=str)),
    }


def test_a_dry_run_prints_commands_that_the_verbs_take(
    script: Any, no_gpu: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import argparse

    script.main(["--dry-run", "--work", str(tmp_path)])
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    tunes = [line for line in lines if line[2] == "mobilenet_tvm.tune"]
    assert len(tunes) == len(script.MODELS)
    assert len(lines) == 3 * len(tunes)
    parser = argparse.ArgumentParser()
    tune.add_arguments(parser)
    parser.add_argument("--json", action="store_true")
    for line, name in zip(tunes, script.MODELS, strict=True):
        args = parser.parse_args(line[3:])
        assert (args.target, args.tuner, args.output) == ("cuda", "all", tmp_path)
        # The logs that the next two commands read are those that this one writes.
        if name == "mobilenet_v1_0.25_128":
            assert model_info(args, resolve_model(args)).name == name
        best = [line for line in lines if line[2] == "mobilenet_tvm.logs" and name in line[4]]
        assert [Path(line[4]).name for line in best] == [Path(line[6]).name for line in best]
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_so_in_one_line(script: Any, no_gpu: None) -> None:
    with pytest.raises(SystemExit) as caught:
        script.main([])
    assert "latencies are measured on one" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(SystemExit):
        script.main(["--models", "resnet", "--dry-run"])


def test_a_model_is_tuned_once_and_its_section_written(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    work, name = tmp_path / "work", "mobilenet_v2_1.0_224"
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> str:
        commands.append(command)
        return json.dumps(said(work, name)) if "mobilenet_tvm.tune" in command else ""

    arguments = ["--models", name, "--work", str(work), "--logs", str(tmp_path / "logs")]
    arguments += ["--results", str(tmp_path / "R.md")]
    monkeypatch.setattr(
        script.targets, "resolve", lambda name: type("P", (), {"name": "cuda-sm80"})
    )
    script.main(arguments, run)
    assert [command[2] for command in commands] == ["mobilenet_tvm.tune"] + 2 * [
        "mobilenet_tvm.logs"
    ]
    assert commands[1][-1] == str(tmp_path / "logs" / "cuda-sm80" / f"{name}.autotvm.jsonl")
    text = (tmp_path / "R.md").read_text()
    assert f"## {name} on NVIDIA A100, fp32, batch 1" in text
    for piece in (
        "an A100, driver 550; host a CPU; CUDA 12.4 by its driver; TVM 0.19.0, LLVM 22.1.8",
        "| tuned | 0.500 | 0.500-0.500 | 1.500 | 2000 | 4.000 (3.900-4.100) |",
        "| ORT | 2.000 | 2.000-2.000 | 3.000 | 500 | 1 |",
        "SM clock 1200-1410 MHz, memory clock 1215-1215 MHz, at most 66 °C and 250.0 W, not thrott",
        "outputs differ from ONNX Runtime on the CPU's by 2.0e-06",
        "- TensorRT: absent, tensorrt is not installed (`pip install tensorrt-cu12`)",
        "TF32 off",
        "123 trials in 46 s, 20 of 20 tasks tuned, 40 alternating rounds",
    ):
        assert piece in text
    script.main(arguments, run)  # the second time the model is finished
    assert [command[2] for command in commands[3:]] == 2 * ["mobilenet_tvm.logs"]
    assert (tmp_path / "R.md").read_text() == text


def test_only_what_holds_a_gpu_back_is_said_to(script: Any) -> None:
    state = {"throttled": True, "reasons": ["idle", "application clocks", "power cap"]}
    figures = dict.fromkeys(
        ("min_sm_clock_mhz", "max_sm_clock_mhz", "min_memory_clock_mhz", "max_memory_clock_mhz"), 1
    )
    text = script.clocks({**state, **figures, "max_temperature_c": 60, "max_power_w": 70})
    assert text.endswith("held back (power cap)")


def test_emulated_times_are_no_results(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    name = "mobilenet_v2_1.0_224"

    def run(command: Sequence[str]) -> str:
        return json.dumps(said(tmp_path, name, "emulated") | {"bench": None})

    arguments = ["--models", name, "--work", str(tmp_path), "--logs", str(tmp_path / "logs")]
    with pytest.raises(SystemExit, match="its times are emulated"):
        script.main([*arguments, "--results", str(tmp_path / "R.md")], run)
    assert not (tmp_path / "R.md").exists()
