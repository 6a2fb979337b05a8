"""A profile: what a kernel has to do, what it can do at best, and the verb that shows it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from mobilenet_tvm import frontend, zoo
from mobilenet_tvm.bench import layers
from mobilenet_tvm.bench.__main__ import main
from mobilenet_tvm.bench.bandwidth import Bandwidth
from mobilenet_tvm.bench.layer_labels import label_of, schedule_of, short_config
from mobilenet_tvm.bench.layer_table import print_layers
from mobilenet_tvm.bench.layers import Layer, LayerProfile
from mobilenet_tvm.bench.results import Noise
from mobilenet_tvm.bench.roofline import axis_sizes, bound_of, level_of, model_bytes, work_of
from mobilenet_tvm.build.compile import compile_model
from mobilenet_tvm.build.manifest import (
    LayerInfo,
    ModelInfo,
    manifest_path,
    read_manifest,
    write_manifest,
)
from mobilenet_tvm.runtime.module import open_library
from mobilenet_tvm.runtime.walk import Operand, WalkedKernel, walked_kernels
from mobilenet_tvm.targets import resolve

REPO = Path(__file__).parents[2]
MIB = 1 << 20
# One with every kind of kernel.
MODEL = {"name": "mobilenet_v3_small", "resolution": 32}
BANDWIDTH = Bandwidth(
    threads=1,
    gbps={"L2": 100.0, "L3": 50.0, "DRAM": 10.0},
    capacity_bytes={"L2": MIB, "L3": 8 * MIB, "DRAM": 1 << 62},
    model_bytes=3 * MIB,
    model_gbps=40.0,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An artifact, and the Mult-Adds of its model."""
    proto = zoo.build(**MODEL)
    source = frontend.from_proto(proto, "v3")
    path = tmp_path_factory.mktemp("layers") / "v3.so"
    model = frontend.to_relay(frontend.clean(source))
    compile_model(model, resolve("x86"), path, info=ModelInfo("net", source.digest))
    return path, zoo.costs(frontend.shapes.infer_shapes(proto)).mult_adds


def test_the_flops_of_the_kernels_are_the_models(built: Any) -> None:
    path, mult_adds = built
    library, manifest = open_library(path)
    infos = {info.kernel: info for info in manifest.layers}
    kernels = walked_kernels(library, manifest)
    works = [work_of(kernel, infos[kernel.name]) for kernel in kernels]
    assert sum(work.flops or 0 for work in works) == 2 * mult_adds
    # Every weight is in the file once, and no activation of these small ones is larger.
    weights = sum(work.weight_bytes for work in works)
    assert weights < model_bytes(kernels) < 1.2 * weights


def test_the_verb_profiles(
    built: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mult_adds = built
    monkeypatch.setattr(layers, "_ROUND_MS", 10.0)
    options = ["--layers", "--threads", "1", "--rounds", "3", "--json"]
    assert main([str(path), *options]) == 0
    printed = capsys.readouterr()
    (profile,) = json.loads(printed.out)["profiles"]
    rows = profile["layers"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert sum(row["flops"] or 0 for row in rows) == 2 * mult_adds
    for row in rows:
        assert 0 <= row["p5_us"] <= row["median_us"] <= row["p95_us"]
        assert row["lost_us"] == pytest.approx(row["median_us"] - row["roofline_us"])
    assert profile["kernels_us"] == pytest.approx(profile["end_to_end_us"], rel=0.5)
    assert profile["launch_us"] is None
    assert rows[0]["label"].startswith("conv 3x3/2 3->")
    assert any(row["label"].startswith("global_avg_pool2d ") for row in rows)
    assert f"{len(rows)} kernels" in printed.err
    assert "within 15% of its roofline" in printed.err


def test_what_cannot_be_profiled_is_refused_in_one_line(
    built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = built
    bare = tmp_path / "bare.so"
    bare.write_bytes(path.read_bytes())
    manifest = read_manifest(path)
    write_manifest(bare, msgspec.structs.replace(manifest, layers=()))
    on_gpu = tmp_path / "gpu.so"
    on_gpu.write_bytes(b"")
    target = msgspec.structs.replace(manifest.target, preset="cuda-sm80", cuda_arch="sm_80")
    write_manifest(on_gpu, msgspec.structs.replace(manifest, target=target))
    for arguments, said in (
        ([str(bare)], "does not say what its kernels compute: compile the model again"),
        ([str(on_gpu)], "--layers is for the CPU, and"),
        ([str(path), str(bare)], "2 artifacts are named, give it one"),
        ([str(path), "--against", "onnxruntime"], "--against: --layers looks at one artifact"),
        ([str(path), "--untuned"], "--untuned: --layers looks at one artifact"),
        ([str(path), "--rounds", "0"], "--rounds must be at least 1"),
    ):
        assert main([*arguments, "--layers", "--threads", "1"]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    manifest_path(bare).unlink()
    assert main([str(bare), "--layers"]) == 2
    assert "has no manifest" in capsys.readouterr().err


def operand(*shape: int, maker: int | None = None, weight: bool = False) -> Operand:
    return Operand(shape, "float32", 0, maker, weight)


def test_flops_are_two_for_each_weight_and_position() -> None:
    def flops(info: LayerInfo, output: tuple[int, ...], *weights: tuple[int, ...]) -> int | None:
        operands = (operand(1), *(operand(*shape, weight=True) for shape in weights))
        return work_of(WalkedKernel(info.kernel, operands, operand(*output)), info).flops

    blocked = LayerInfo("conv", layout="NCHW16c", task="pointwise 1x1 32->64 @ 7x5")
    bias, weights = (1, 4, 1, 1, 16), (4, 2, 1, 1, 16, 16)
    assert flops(blocked, (1, 4, 7, 5, 16), weights, bias) == 2 * 32 * 64 * 35
    # Depthwise 3x3 of 32 channels, and the pointwise layer behind it, in one kernel.
    both = ((2, 1, 3, 3, 1, 16), weights, bias)
    assert flops(blocked, (1, 4, 7, 5, 16), *both) == 2 * (9 * 32 + 32 * 64) * 35
    dense = LayerInfo("dense", task="dense 1024->10")
    assert flops(dense, (3, 10), (10, 1024), (10,)) == 2 * 3 * 10240
    assert flops(LayerInfo("pool", layout="NCHW16c"), (1, 4, 1, 1, 16)) is None
    winograd = msgspec.structs.replace(blocked, kernel="conv2d_winograd")
    assert flops(winograd, (1, 4, 7, 5, 16), weights) is None
    # Of an unknown layout nobody knows which axis the channels are.
    assert flops(msgspec.structs.replace(blocked, layout=""), (1, 4, 7, 5, 16), weights) is None


def test_axis_sizes_count_blocks_in() -> None:
    assert axis_sizes("NCHW16c", (1, 4, 7, 5, 16)) == {"N": 1, "C": 64, "H": 7, "W": 5}
    assert axis_sizes("NCHW", (1, 64)) == {}


def test_bytes_come_from_as_near_as_what_went_by_allows() -> None:
    assert level_of(MIB, BANDWIDTH) == "L2"
    assert level_of(MIB + 1, BANDWIDTH) == "L3"
    assert level_of(9 * MIB, BANDWIDTH) == "DRAM"
    size = MIB // 4  # elements of a MiB
    kernels = [
        WalkedKernel("a", (operand(size), operand(size, weight=True)), operand(size, maker=0)),
        WalkedKernel("b", (operand(size, maker=0),), operand(size, maker=1)),
        WalkedKernel("c", (operand(size, maker=1), operand(size, maker=0)), operand(2, maker=2)),
    ]
    info = LayerInfo("", layout="")
    works = [work_of(kernel, info) for kernel in kernels]

    def us(index: int) -> float:
        return bound_of(kernels, works, index, BANDWIDTH, peak=100.0).us

    of_model, of_l2, of_l3 = (MIB / gbps / 1e3 for gbps in (40.0, 100.0, 50.0))
    assert us(0) == pytest.approx(2 * of_model + of_l2)
    assert us(1) == pytest.approx(2 * of_l2)
    # What `a` made is two of `b`'s MiB further away.
    assert us(2) == pytest.approx(of_l2 + of_l3 + 8 / 100 / 1e3)


def test_the_roofline_is_the_slower_side() -> None:
    kernel = WalkedKernel("a", (operand(1000),), operand(1000, maker=0))
    work = dataclasses.replace(work_of(kernel, LayerInfo("")), flops=10**6)
    bound = bound_of([kernel], [work], 0, BANDWIDTH, peak=100.0)
    assert (bound.us, bound.by_flops) == (pytest.approx(10.0), True)
    bound = bound_of([kernel], [work], 0, BANDWIDTH, peak=1e6)
    assert (bound.us, bound.by_flops) == (pytest.approx(0.1 + 0.04), False)


def test_labels_are_the_layers_or_the_operators() -> None:
    activation = operand(1, 6, 14, 14, 16, maker=0)
    pool = WalkedKernel(
        "tvmgen_default_fused_nn_global_avg_pool2d_1_1", (activation,), operand(1, 6, 1, 1, 16)
    )
    info = LayerInfo(pool.name, layout="NCHW16c")
    assert label_of(pool, info) == "global_avg_pool2d 96 @ 14x14"
    flat = WalkedKernel("tvmgen_default_fused_nn_softmax", (operand(1, 10),), operand(1, 10))
    assert label_of(flat, LayerInfo(flat.name)) == "softmax 1x10"
    task = "pointwise 1x1 88->24 @ 28x28"
    convolution = dataclasses.replace(pool, name="tvmgen_default_fused_nn_conv2d_add_add_2")
    assert label_of(convolution, LayerInfo("", task=task)) == f"{task} + add"
    convolution = dataclasses.replace(pool, name="tvmgen_default_fused_nn_conv2d_add_clip_2")
    assert label_of(convolution, LayerInfo("", task=task)) == task


def test_schedules_say_whose_they_are() -> None:
    def said(
        template: str | None,
        searcher: Any,
        *records: int,
        task: str | None = "t",
        served: Any = None,
    ) -> str:
        info = LayerInfo(
            "", task=task, searcher=searcher, template=template, records=records, served=served
        )
        return schedule_of(info)

    ours = "pointwise_conv2d_NCHWc.mobilenet_x86"
    assert said(ours, "autotvm") == "ours, untuned"
    assert said(ours, "autotvm", 3) == "ours, record"
    assert said(ours, "autotvm", 3, served="record") == "ours, record"
    assert said(ours, "autotvm", 3, served="transfer") == "ours, lent"
    assert said(ours, "autotvm", served="default") == "ours, untuned"
    assert said("dense_pack.x86", "autotvm", 3) == "stock, record"
    assert said("dense_pack.x86", "autotvm") == "stock, untuned"
    assert said(None, "ansor", 1, 2) == "Ansor"
    assert said(None, "ansor", 1, 2, served="transfer") == "Ansor, lent"
    assert said(None, "ansor") == said(None, "ansor", served="default") == "Ansor, no record"
    assert said(None, None) == "untuned"
    assert said(None, None, task=None) == ""


@pytest.mark.parametrize("searcher", ["autotvm", "ansor"])
def test_a_record_is_shown_in_short(searcher: str) -> None:
    folder = REPO / "tuning_logs" / "x86-avx512"
    logs = sorted(folder.glob(f"*.{searcher}.jsonl"))
    lines = [line for log in logs for line in log.read_text().splitlines()[:20]]
    shown = {short_config(line) for line in lines}
    assert shown
    assert all(0 < len(text) < 120 for text in shown)
    assert all(text.endswith(" steps") if searcher == "ansor" else "=" in text for text in shown)


def profile_of(*lost_us: float) -> LayerProfile:
    rows = tuple(
        Layer(
            index=index,
            label=f"layer {index}",
            kernel=f"kernel_{index}",
            median_us=10 + lost,
            p5_us=9.0,
            p95_us=11 + lost,
            flops=10**6 if index else None,
            input_bytes=4000,
            weight_bytes=0,
            output_bytes=4000,
            gflops=50.0 if index else None,
            gbps=1.0,
            peak_fraction=0.5 if index else None,
            roofline_us=10.0,
            bound="FLOPs",
            lost_us=lost,
            lost_fraction=lost / 100,
            schedule="ours, record" if index else "",
            records=(4,) if index else (),
            config="rows=2 columns=4 band=14" if index else None,
        )
        for index, lost in enumerate(lost_us)
    )
    total = sum(row.median_us for row in rows)
    return LayerProfile(
        artifact="net",
        machine="a CPU, 2 cores",
        threads=2,
        peak_gflops=100.0,
        bandwidth=BANDWIDTH,
        layers=rows,
        end_to_end_us=total + 1,
        p5_us=total,
        p95_us=total + 2,
        kernels_us=total,
        between_us=1.0,
        from_python_us=total + 5,
        launch_us=0.75,
        near_roofline=0.25,
        rounds=20,
        samples=100,
        noise=Noise(2, 1.0),
    )


def test_what_loses_most_comes_first_and_nothing_is_cut_off() -> None:
    stream = io.StringIO()
    print_layers(Console(file=stream, width=40), profile_of(1.0, 30.0, 2.5))
    lines = stream.getvalue().splitlines()
    rows = [line for line in lines if re.match(r" +\d+ +layer \d", line)]
    assert [line.split()[0] for line in rows] == ["2", "3", "1"]
    assert rows[0].rstrip().endswith("ours, record 5: rows=2 columns=4 band=14")
    (total,) = [line for line in lines if "3 kernels" in line]
    assert total.split()[2] == "63.5"
    text = " ".join(stream.getvalue().split())
    assert "a launch of 2 threads takes 0.75 us" in text
    assert "25% of the kernels' time is within 15% of its roofline" in text


def test_doubtful_figures_carry_a_warning() -> None:
    profile = profile_of(90.0)
    assert profile.warnings == ()
    noisy = dataclasses.replace(profile, noise=Noise(2, 1.5))
    assert "the machine was not quiet" in noisy.warnings[0]
    apart = dataclasses.replace(profile, between_us=6.0)
    assert "more than 5% apart, so run it again" in apart.warnings[0]
    assert apart.as_dict()["warnings"] == list(apart.warnings)
