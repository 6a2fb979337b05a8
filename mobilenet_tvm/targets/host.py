"""What this machine's CPU is, asked of archspec and psutil."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import archspec.cpu
import psutil

from mobilenet_tvm.targets.hwcap import hwcap_features, is_arm


@functools.cache
def cpu_features() -> frozenset[str]:
    """Feature names of this CPU as Linux and archspec spell them (``avx512f``, ``fma`` ...)."""
    told = hwcap_features() if is_arm() else _proc_flags()
    return frozenset(archspec.cpu.host().features) | told


def _proc_flags() -> frozenset[str]:
    # archspec drops the flags that its microarchitecture table does not know.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@functools.cache
def cpu_name() -> str:
    """Model name of this CPU with archspec's microarchitecture: ``AMD EPYC (zen4)``.

    Of an ARM board its own, where it has one: ``Raspberry Pi 4 Model B (cortex_a72)``.
    """
    name = archspec.cpu.host().name
    if is_arm():
        with contextlib.suppress(OSError):
            model = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n ")
            return f"{model} ({name})"
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model} ({name})"


def missing_features(needed: Iterable[str]) -> tuple[str, ...]:
    """Those of ``needed`` that this CPU does not have, in order."""
    return tuple(feature for feature in needed if feature not in cpu_features())


def physical_cores() -> int:
    """Cores that this process may use: affinity and a control group's quota (``docker --cpus``)
    count, hyper-threads do not."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        allowed = os.cpu_count() or 1
    cores = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, cores, quota_cpus() or allowed))


def quota_cpus(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """CPUs that the quotas of this process's control groups are worth, rounded down and at least
    1; None where there is none. Artifacts count them the same way (``build/c/pool.c``)."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            names = controllers.split(",")
            if controllers and "cpu" not in names:
                continue
            root = mount / "cpu" if controllers else mount
            group = root / path.lstrip("/")
            # In a container the path may be the host's: its end, the mount itself, is there.
            found += [_quota_of(one) for one in (group, *group.parents) if one.is_relative_to(root)]
    return min((quota for quota in found if quota is not None), default=None)


def _quota_of(group: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        if (group / "cpu.max").exists():  # version 2: "max 100000", "150000 100000"
            quota, period = map(int, (group / "cpu.max").read_text().split())
        else:
            names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
            quota, period = (int((group / name).read_text()) for name in names)
        if quota > 0 and period > 0:
            return max(1, quota // period)
    return None
