"""The model that chooses untuned CUDA schedules: the GPUs it knows, and what it finds out."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.cuda.occupancy import occupancy
from mobilenet_tvm.targets.gpus import GPUS
from mobilenet_tvm.targets.presets import CUDA_PRESETS


@pytest.fixture
def model() -> Any:
    toolchain.activate()
    from mobilenet_tvm.schedules.cuda import model

    return model


def test_a_gpu_with_three_digits_is_newer_than_one_with_two(model: Any) -> None:
    from mobilenet_tvm.schedules.cuda.target import GPUS as OURS

    # 6 KiB + 128 bytes: 32 such blocks fit where shared memory is given in units of 128 bytes.
    gpu = dataclasses.replace(OURS["sm_80"], shared_per_multiprocessor=32 * 6272, shared_reserved=0)
    resident = {
        arch: model.resident_blocks(dataclasses.replace(gpu, arch=arch), 32, 32, 6272)
        for arch in ("sm_75", "sm_80", "sm_120a")
    }
    assert resident == {"sm_75": 31, "sm_80": 32, "sm_120a": 32}


@pytest.mark.parametrize("arch", sorted(GPUS))
def test_gpus_are_those_of_the_presets(arch: str) -> None:
    toolchain.activate()
    from mobilenet_tvm.schedules.cuda.target import GPUS as OURS
    from mobilenet_tvm.schedules.cuda.target import current

    assert set(OURS) == set(GPUS)
    known, preset = OURS[arch], GPUS[arch]
    for field in dataclasses.fields(known):
        assert getattr(known, field.name) == getattr(preset, field.name), field.name
    (name,) = (p.name for p in CUDA_PRESETS if p.gpu is preset)
    with targets.resolve(name).tvm_target():
        assert current() == known


@pytest.mark.parametrize(
    ("text", "arch", "multiprocessors", "shared"),
    [
        ("cuda -arch=sm_80", "sm_80", 108, 48 << 10),
        ("cuda -arch=sm_80 -max_shared_memory_per_block=1024", "sm_80", 108, 1024),
        ("cuda -arch=sm_88", "sm_88", 16, 48 << 10),  # as the newest older one
        ("cuda -arch=sm_120a", "sm_120a", 132, 48 << 10),
        ("cuda -arch=sm_61", "sm_61", 40, 48 << 10),  # older than all
    ],
)
def test_limits_are_the_targets_own(
    text: str, arch: str, multiprocessors: int, shared: int
) -> None:
    toolchain.activate()
    import tvm

    from mobilenet_tvm.schedules.cuda.target import current, is_cuda

    with tvm.target.Target(text) as target:
        gpu = current()
    assert is_cuda(target)
    assert not is_cuda(tvm.target.Target("llvm"))
    found = gpu.arch, gpu.multiprocessors, gpu.shared_per_block
    assert found == (arch, multiprocessors, shared)


def test_resident_blocks_are_nvidias(model: Any) -> None:
    from mobilenet_tvm.schedules.cuda.target import GPUS as OURS

    for arch, threads, registers, shared in itertools.product(
        ("sm_75", "sm_80", "sm_86", "sm_90"),
        (16, 49, 56, 128, 224, 512, 1024, 1056),
        (16, 32, 40, 72, 96, 128, 168, 255, 256),
        (0, 1000, 4608, 16384, 49152, 50000),
    ):
        expected = occupancy(GPUS[arch], threads, registers, shared).blocks
        case = arch, threads, registers, shared
        assert model.resident_blocks(OURS[arch], threads, registers, shared) == expected, case


def _work(model: Any, **changes: Any) -> Any:
    work = model.Work(
        blocks=108,
        threads=128,
        registers=64,
        shared_bytes=4096,
        fmas=1 << 20,
        shared_traffic=1 << 20,
        l2_traffic=1 << 14,
        traffic=1 << 20,
        stages=8,
    )
    return dataclasses.replace(work, **changes)


def test_each_resource_costs_time(model: Any) -> None:
    from mobilenet_tvm.schedules.cuda.target import GPUS as OURS

    gpu = OURS["sm_80"]
    base = model.microseconds(gpu, _work(model))
    # 2^20 FMAs on 64 lanes at 1.41 GHz are 11.6 us, and nothing is free.
    assert 11.6 < base < 20
    for changes in (
        {"blocks": 109},  # one multiprocessor has two
        {"fmas": 1 << 21},
        {"shared_traffic": 1 << 23},
        {"l2_traffic": 1 << 21},
        {"traffic": 1 << 28},
        {"stages": 80},
        {"depth_cycles": 5000},
        {"threads": 129},  # a fifth warp with one thread
    ):
        assert model.microseconds(gpu, _work(model, **changes)) > base, changes
    assert model.microseconds(gpu, _work(model, overlapped=True)) < base
    assert model.microseconds(gpu, _work(model, registers=256)) == float("inf")
    # What L2 holds does not come from memory.
    times = [model.microseconds(gpu, _work(model, traffic=mib << 20)) for mib in (1, 16, 24)]
    assert times[0] == times[1] < times[2]


@pytest.mark.parametrize(
    ("stride", "passes"), [(0, 1), (1, 1), (2, 2), (7, 1), (12, 4), (8, 8), (9, 1)]
)
def test_bank_conflicts(model: Any, stride: int, passes: int) -> None:
    """Of 32 threads that load 16 bytes each, so many vectors apart."""
    assert model.bank_passes((32,), (stride,)) == passes
    assert model.bank_passes((4, 8), (0, stride)) == passes


def test_padding_that_helps_is_found(model: Any) -> None:
    # Rows of seven threads, nine vectors apart: the eighth meets the second.
    assert model.bank_passes((7, 7), (9, 1)) > 1.5
    assert model.best_padding(lambda pad: model.bank_passes((7, 7), (9 + pad, 1))) == (6, 1.0)


def test_columns_are_divisors_that_fill_a_cache_line() -> None:
    toolchain.activate()
    from mobilenet_tvm.schedules.cuda.space import columns

    assert columns(112) == [16, 28, 56, 112]
    assert columns(7) == [7]
    assert columns(5) == [5]
    assert columns(19) == [19]
    assert columns(131) == [1]  # a prime, and too many for one row of threads
