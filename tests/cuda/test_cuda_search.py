"""What a search for a GPU begins with: tasks, hardware, records of elsewhere; nothing is run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mobilenet_tvm import targets
from mobilenet_tvm.cli.search import launch_notes
from mobilenet_tvm.cli.transfer import Known, Where
from mobilenet_tvm.records import Record, RunInfo, Task, choose_records, extract_tasks, parse_line
from mobilenet_tvm.records import tasks as tasks_module
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks, hardware_parameters
from mobilenet_tvm.search import first_configs
from mobilenet_tvm.search.candidates import with_host

CUDA = targets.resolve("cuda-sm80")


def test_ansor_is_told_of_the_gpu_and_asks_no_device() -> None:
    assert hardware_parameters(CUDA) == {
        "num_cores": -1,
        "vector_unit_bytes": 16,
        "cache_line_bytes": 64,
        "max_shared_memory_per_block": 49152,
        "max_local_memory_per_block": 2**31 - 1,
        "max_threads_per_block": 1024,
        "max_vthread_extent": 8,
        "warp_size": 32,
    }
    assert hardware_parameters(targets.resolve("rpi4"), threads=4)["num_cores"] == 4


@pytest.fixture(scope="module")
def ordinary(convolutions: Any) -> Any:
    """Ordinary 3x3 convolutions, of which TVM makes one Winograd's for a GPU."""
    return convolutions((3, 64, 3, 2), (64, 64, 3, 1), size=8)


def test_layers_have_one_label_by_both_searchers_whatever_computes_them(ordinary: Any) -> None:
    by_ansor = {task.label: task for task in extract_ansor_tasks(ordinary, CUDA)}
    by_templates = extract_tasks(ordinary, CUDA)
    assert {task.label for task in by_templates} <= set(by_ansor)
    winograd = by_ansor["conv 3x3 64->64 @ 4x4"]
    assert "winograd" in winograd.handle.desc
    assert winograd.weight_bytes == 4 * 16 * 64 * 64  # its tiles', not the kernel's
    assert "winograd" not in by_ansor["conv 3x3/2 3->64 @ 8x8"].handle.desc
    assert all(task.handle.target.host is not None for task in (*by_templates, winograd))


def test_of_a_huge_space_a_sample_is_tried_the_same_one_each_time(ordinary: Any) -> None:
    huge = [
        task
        for task in extract_tasks(ordinary, CUDA, schedules="stock")
        if task.handle.config_space.range_length > tasks_module.SAMPLED
    ]
    again = {task.key: task for task in extract_tasks(ordinary, CUDA, schedules="stock")}
    assert huge
    for task in huge:
        assert task.candidates == again[task.key].candidates
        assert tasks_module.SAMPLED - 1 <= len(set(task.candidates)) <= tasks_module.SAMPLED + 1
        assert task.default in task.candidates
        assert max(task.candidates) > task.handle.config_space.range_length / 2


def test_default_of_a_listed_space_is_the_fallbacks_knobs(ordinary: Any) -> None:
    from tvm import autotvm

    for task in extract_tasks(ordinary, CUDA):
        if task.default is None:
            continue
        handle = task.handle
        fallback = autotvm.task.space.FallbackConfigEntity()
        with handle.target, autotvm.task.ApplyConfig(fallback):
            handle.func(*handle.args)
        space = handle.config_space
        assert tasks_module.knob_values(space.get(task.default), space) == (
            tasks_module.knob_values(fallback, space)
        )


def line(key: str, target: str, cost_s: float) -> Record:
    """A record of Ansor's, as it stands in a log."""
    given = [key, target, [1, 64, 64, 0, 0, 0, 0, 0], "", 0, []]
    steps = [[], [["SP", 0, 0, 2, [1], 1]]]
    record = {"i": [given, steps], "r": [[cost_s], 0, 1.0, 1_700_000_000], "v": "v0.6"}
    return parse_line(json.dumps(record))


KEY = json.dumps(["0123456789abcdef", [1, 8, 8, 32]])


def ansor_task(target: str) -> Task:
    handle = SimpleNamespace(target=target)
    return Task(KEY, "conv", 1e6, 1, (), None, handle, "ansor")


def test_a_cpus_schedule_is_no_beginning_for_a_gpu() -> None:
    other = targets.resolve("cuda-sm75").target
    records = [line(KEY, "llvm -keys=cpu", 1e-9), line(KEY, other, 1e-5)]
    assert first_configs([ansor_task(CUDA.target)], records) == {KEY: [records[1].config]}
    assert first_configs([ansor_task("llvm -mcpu=x")], records) == {KEY: [records[0].config]}


def test_cost_model_of_a_gpu_learns_from_gpus_alone() -> None:
    run = RunInfo(
        format_version=1,
        preset="p",
        target="t",
        cpu="c",
        tvm="0.19.0",
        llvm="22",
        model="m",
        model_digest="sha256:0",
        searcher="ansor",
        seed=0,
        threads=1,
        spent_s=0.0,
        trials=2,
        failures={},
    )
    records = (line(KEY, "llvm -keys=cpu", 1e-5), line(KEY, CUDA.target, 1e-5))
    known = Known(Path("log"), records, run, frozenset())
    learnt = known.lessons(set(), CUDA.target, Where("NVIDIA A100", 1))
    assert [record.target for record in learnt] == [CUDA.target]


def autotvm_line(config: int, cost_s: float) -> Record:
    text = (
        '{"input": ["cuda -keys=cuda,gpu", "dense.cuda", [], {}], "config": {"index": %d, '
        '"code_hash": null, "entity": []}, "result": [[%r], 0, 0.5, 1700000000.0], "version": 0.2, '
        '"tvm_version": "0.19.0"}'
    )
    return parse_line(text % (config, cost_s))


def test_among_kernels_as_short_as_a_launch_the_default_stays() -> None:
    default, best = autotvm_line(7, 2.4e-6), autotvm_line(3, 2.0e-6)
    handle = SimpleNamespace(target=default.target)
    task = Task(default.key, "dense", 1e6, 1, (3, 7), 7, handle)
    assert choose_records([task], [default, best]) == {task.key: best}
    assert choose_records([task], [default, best], launch_s=2e-6) == {task.key: default}
    assert choose_records([task], [default, best], launch_s=1e-6) == {task.key: best}
    (note,) = launch_notes([task], [default, best], 2e-6)
    assert "1 of 1 tasks take hardly longer than a launch does (2.0 us)" in note
    assert launch_notes([task], [default, best], 1e-6) == []
    assert launch_notes([task], [default, best], 0.0) == []


def test_candidates_are_built_for_the_hosts_cpu() -> None:
    import tvm

    target = tvm.target.Target(CUDA.target)
    assert target.host is None
    assert "x86-64-v2" in str(with_host(target, CUDA.host).host)
    assert with_host(target, None) is target
    orin = dataclasses.replace(targets.resolve("jetson-orin"))
    assert "aarch64" in str(orin.tvm_target().host)
