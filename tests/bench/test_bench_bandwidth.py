"""The reading kernel: that it reads it all, and what it is told of the caches."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from mobilenet_tvm import toolchain
from mobilenet_tvm.bench import bandwidth, peak
from mobilenet_tvm.bench.bandwidth import Caches

KIB, MIB = 1 << 10, 1 << 20


def test_the_kernel_adds_everything_up_in_every_pass() -> None:
    toolchain.activate()
    import tvm

    width = 8 * peak.vector_unit(peak.host_target()).lanes
    data = np.random.default_rng(0).integers(0, 100, (5, width)).astype("float32")
    sums = tvm.nd.array(np.ones(width, "float32"))
    kernel = bandwidth.build_kernel(peak.host_target())["read_all"]
    kernel(tvm.nd.array(data), sums, 3)
    np.testing.assert_array_equal(sums.numpy(), 3 * data.sum(0))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly")
def test_the_loop_loads_whole_vectors_into_eight_sums() -> None:
    assembly = bandwidth.build_kernel("llvm -mcpu=skylake-avx512").get_source("asm")
    loads = [line for line in assembly.split("\n") if "vaddps" in line and "(%" in line]
    assert len({line.rsplit("%", 1)[1] for line in loads if "zmm" in line}) == 8


def cache(folder: Path, index: int, level: int, kind: str, size: str) -> None:
    inside = folder / f"index{index}"
    inside.mkdir()
    for name, text in (("level", str(level)), ("type", kind), ("size", size)):
        (inside / name).write_text(text + "\n")


def test_caches_are_read_as_linux_describes_them(tmp_path: Path) -> None:
    cache(tmp_path, 0, 1, "Data", "32K")
    cache(tmp_path, 1, 1, "Instruction", "32K")
    cache(tmp_path, 2, 2, "Unified", "1024K")
    cache(tmp_path, 3, 3, "Unified", "32768K")
    assert bandwidth.read_caches(tmp_path) == Caches(MIB, 32 * MIB)


def test_a_cpu_that_does_not_tell_has_a_small_second_level(tmp_path: Path) -> None:
    assert bandwidth.read_caches(tmp_path) == Caches(256 * KIB, 0)
    cache(tmp_path, 0, 2, "Unified", "a lot")
    assert bandwidth.read_caches(tmp_path) == Caches(256 * KIB, 0)


def test_working_sets_fit_their_level_and_not_the_one_before() -> None:
    caches = Caches(MIB, 32 * MIB)
    for threads in (1, 2, 8):
        sets = bandwidth.working_sets(caches, threads)
        assert sets["L2"] < caches.l2_bytes < sets["L3"]
        assert threads * sets["L3"] < caches.l3_bytes < threads * sets["DRAM"]
    # A board with no third level.
    assert bandwidth.working_sets(Caches(512 * KIB, 0), 4) == {"L2": 256 * KIB, "DRAM": 2 * MIB}


def test_a_reader_that_fails_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def confine(cores: tuple[int, ...]) -> None:
        if cores == (1,):
            raise OSError("no such core")

    monkeypatch.setattr(bandwidth, "confine", confine)
    monkeypatch.setattr(bandwidth, "fastest_cores", lambda count: tuple(range(count)))
    monkeypatch.setattr(bandwidth, "BURST_MS", 0.1)
    with pytest.raises(OSError, match="no such core"):
        bandwidth._gbps(peak.host_target(), 3, 64 * KIB)


def test_the_nearer_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BURSTS", 10)
    monkeypatch.setattr(bandwidth, "_MOST_DRAM_BYTES", 64 * MIB)
    measured = bandwidth.measure_bandwidth(peak.host_target(), 1, 64 * KIB)
    levels = list(measured.gbps)
    assert (levels[0], levels[-1]) == ("L2", "DRAM")
    assert list(measured.capacity_bytes) == levels
    assert measured.gbps["L2"] > measured.gbps["DRAM"] > 0.1
    assert measured.model_gbps > measured.gbps["DRAM"]  # 64 KiB are in the second level at most
