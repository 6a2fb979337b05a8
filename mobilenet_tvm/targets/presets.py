"""The presets as data. ``x86`` and ``native`` are the best that this machine can run."""

from __future__ import annotations

import difflib
import functools
import platform
from dataclasses import dataclass, replace
from typing import Any, Literal

from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.targets.gpus import GPUS, Gpu
from mobilenet_tvm.targets.host import cpu_features, cpu_name, missing_features


@dataclass(frozen=True)
class Preset:
    """One named target.

    Attributes:
        name: as given to ``--target``, and the folder of its logs.
        target: TVM's target string.
        triple: LLVM's.
        cpu: LLVM's name of the core, as ``llvm-mca`` and ``llvm-objdump`` take it.
        arch: as ``platform.machine()`` names it on that machine.
        cpu_features: what the generated code may use, as Linux names the features.
        linker: arguments of ``zig`` that make a shared library of objects.
        peak_lanes: float32 lanes of one vector.
        cores: of a usual machine; tuning and threads do not depend on it.
        l1d_bytes: data cache of one core.
        l2_bytes: that one core can use, shared or its own.
        l3_bytes: shared by all cores; 0 where there is none.
        qemu: qemu-user's ``-cpu``, the one with the fewest features more; None where qemu has
            none that will do.
        kind: ``so``, or ``object`` where the linker is the target machine's own.
        gpu: what the kernels run on; None where it is the CPU. All else is then of the host.
        host: TVM's target string of the host's code; None where there is no GPU.
    """

    name: str
    target: str
    triple: str
    cpu: str
    arch: str
    cpu_features: tuple[str, ...]
    linker: tuple[str, ...]
    peak_lanes: int
    cores: int
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int = 0
    qemu: str | None = None
    kind: Literal["so", "object"] = "so"
    gpu: Gpu | None = None
    host: str | None = None

    def tvm_target(self) -> Any:
        """``tvm.target.Target``, with the host's where kernels run on a GPU.

        The same object each time: two that say the same are not equal to TVM, nor to a cache.
        """
        return _tvm_target(self.target, self.host)

    def runs_here(self) -> bool:
        """Whether this machine can run what is compiled for the preset."""
        return platform.machine() == self.arch and not missing_features(self.cpu_features)


@functools.cache
def _tvm_target(target: str, host: str | None) -> Any:
    import tvm

    return tvm.target.Target(target, host=host)


_KIB, _MIB = 1 << 10, 1 << 20

_SSE = ("sse4_1", "sse4_2", "ssse3", "popcnt", "cx16")
_AVX2 = (*_SSE, "avx", "avx2", "fma", "bmi1", "bmi2", "abm", "f16c", "movbe")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "adx", "rdseed")


def _x86(
    name: str, mcpu: str, features: tuple[str, ...], lanes: int, l2_bytes: int, qemu: str | None
) -> Preset:
    triple = "x86_64-linux-gnu"
    return Preset(
        name=name,
        target=f"llvm -mtriple={triple} -mcpu={mcpu}",
        triple=triple,
        cpu=mcpu,
        arch="x86_64",
        cpu_features=features,
        linker=("ld.lld", "-m", "elf_x86_64", "-shared"),
        peak_lanes=lanes,
        cores=8,
        l1d_bytes=32 * _KIB,
        l2_bytes=l2_bytes,
        l3_bytes=16 * _MIB,
        qemu=qemu,
    )


# ARMv8.0-A. The Raspberry Pi's cores lack AES; LLVM's models have it, and never use it unasked.
_V8 = ("fp", "asimd", "crc32")
# ARMv8.2-A with half precision and dot products, as Cortex-A55, A76 and Neoverse N1 have it.
_V82 = (*_V8, "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp")


def _aarch64(
    name: str,
    mcpu: str,
    features: tuple[str, ...],
    *,
    cores: int,
    l1d_bytes: int,
    l2_bytes: int,
    l3_bytes: int = 0,
    qemu: str,
    mattr: str = "",
) -> Preset:
    triple = "aarch64-linux-gnu"
    attributes = f" -mattr={mattr}" if mattr else ""
    return Preset(
        name=name,
        target=f"llvm -keys=arm_cpu,cpu -device=arm_cpu -mtriple={triple} -mcpu={mcpu}{attributes}",
        triple=triple,
        cpu=mcpu,
        arch="aarch64",
        cpu_features=features,
        linker=("ld.lld", "-m", "aarch64linux", "-shared"),
        peak_lanes=4,
        cores=cores,
        l1d_bytes=l1d_bytes,
        l2_bytes=l2_bytes,
        l3_bytes=l3_bytes,
        qemu=qemu,
    )


# Best first among those of one machine. The AVX-512 preset is Skylake's on every CPU, Zen 4
# included: LLVM's own model of Zen 4 prefers 256-bit vectors, and TOPI with it; untuned V1 then
# takes twice as long.
PRESETS = (
    # qemu emulates no AVX-512.
    _x86("x86-avx512", "skylake-avx512", _AVX512, 16, 1 * _MIB, None),
    _x86("x86-avx2", "haswell", _AVX2, 8, 256 * _KIB, "max"),
    _x86("x86-sse42", "x86-64-v2", _SSE, 4, 256 * _KIB, "max"),
    _aarch64(
        "neoverse-v1",
        "neoverse-v1",
        (*_V82, "bf16", "i8mm"),
        cores=64,
        l1d_bytes=64 * _KIB,
        l2_bytes=1 * _MIB,
        l3_bytes=32 * _MIB,
        qemu="max",
        # Two 256-bit SVE pipes add as many floats a cycle as four NEON ones, and TVM 0.19's
        # schedules for SVE are of another layout.
        mattr="+neon,-sve,-sve2",
    ),
    _aarch64(
        "neoverse-n1",
        "neoverse-n1",
        _V82,
        cores=64,
        l1d_bytes=64 * _KIB,
        l2_bytes=1 * _MIB,
        l3_bytes=32 * _MIB,
        qemu="neoverse-n1",
    ),
    _aarch64(
        "rpi5",  # Cortex-A76, 2.4 GHz
        "cortex-a76",
        _V82,
        cores=4,
        l1d_bytes=64 * _KIB,
        l2_bytes=512 * _KIB,
        l3_bytes=2 * _MIB,
        qemu="cortex-a76",
    ),
    _aarch64(
        "cortex-a55",
        "cortex-a55",
        _V82,
        cores=4,
        l1d_bytes=32 * _KIB,
        l2_bytes=128 * _KIB,
        l3_bytes=1 * _MIB,
        qemu="cortex-a76",  # qemu 7.2 has no A55
        mattr="+neon,+dotprod",
    ),
    _aarch64(
        "rpi4",  # Cortex-A72, 1.5 to 1.8 GHz
        "cortex-a72",
        _V8,
        cores=4,
        l1d_bytes=32 * _KIB,
        l2_bytes=1 * _MIB,
        qemu="cortex-a72",
    ),
    _aarch64(
        "rpi3",  # Cortex-A53, 1.2 to 1.4 GHz
        "cortex-a53",
        _V8,
        cores=4,
        l1d_bytes=32 * _KIB,
        l2_bytes=512 * _KIB,
        qemu="cortex-a53",
    ),
    Preset(
        name="apple-m1",
        target="llvm -keys=arm_cpu,cpu -device=arm_cpu -mtriple=aarch64-apple-macos "
        "-mcpu=apple-a14",
        triple="aarch64-apple-macos",
        cpu="apple-a14",  # the M1's core, by the name that is no alias in LLVM
        arch="arm64",
        cpu_features=(),
        linker=(),
        peak_lanes=4,
        cores=4,
        l1d_bytes=128 * _KIB,
        l2_bytes=12 * _MIB,
        kind="object",
    ),
    Preset(
        # Any 32-bit ARM Linux with NEON and the hard-float ABI; sized after Cortex-A7. NEON
        # flushes denormals to zero there.
        name="armv7",
        target="llvm -keys=arm_cpu,cpu -device=arm_cpu -mtriple=armv7l-unknown-linux-gnueabihf "
        "-mattr=+neon -mfloat-abi=hard",
        triple="armv7l-unknown-linux-gnueabihf",
        cpu="generic",
        arch="armv7l",
        cpu_features=("neon", "vfpv3"),
        linker=("cc", "-target", "arm-linux-gnueabihf", "-mcpu=generic+v7a+neon", "-shared"),
        peak_lanes=4,
        cores=4,
        l1d_bytes=32 * _KIB,
        l2_bytes=512 * _KIB,
        qemu="cortex-a7",
    ),
)


def _cuda(name: str, arch: str, host: Preset) -> Preset:
    gpu = GPUS[arch]
    # The limits stand in the target, for TVM to ask no device for them.
    target = (
        f"cuda -keys=cuda,gpu -arch={arch} -l2_cache_size_bytes={gpu.l2_bytes} "
        f"-max_num_threads={gpu.threads_per_block} "
        f"-max_shared_memory_per_block={gpu.shared_per_block} "
        f"-max_threads_per_block={gpu.threads_per_block} "
        f"-registers_per_block={gpu.registers_per_multiprocessor} -thread_warp_size={gpu.warp}"
    )
    return replace(host, name=name, target=target, host=host.target, gpu=gpu, qemu=None)


_BY_HOST = {preset.name: preset for preset in PRESETS}
# The host's part of a module only launches kernels: any CPU of a server will do.
CUDA_PRESETS = (
    *(
        _cuda(f"cuda-{arch.replace('_', '')}", arch, _BY_HOST["x86-sse42"])
        for arch in ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
    ),
    _cuda("jetson-orin", "sm_87", _BY_HOST["neoverse-n1"]),
)
_BY_NAME = {preset.name: preset for preset in (*PRESETS, *CUDA_PRESETS)}
# What stands for another preset: a usual board, or the best of this machine.
_ALIASES = {"arm": "rpi4"}
_HOST = {"x86": ("x86_64",), "native": ("x86_64", "aarch64", "armv7l", "arm64")}
# This machine's GPU, or where there is none the one that most are compiled for.
_GPU, _USUAL_GPU = "cuda", "cuda-sm80"


def names() -> tuple[str, ...]:
    """All that ``--target`` takes."""
    return (*_HOST, _GPU, *_ALIASES, *_BY_NAME)


def resolve(name: str) -> Preset:
    """The preset called ``name``; ``x86`` and ``native`` become the best this machine can run.

    ``cuda`` becomes the best for this machine's GPU, the emulator's where that stands for it, and
    ``cuda-sm80`` where there is none.

    Raises:
        UsageError: no such preset, or ``x86`` on a machine that is none, or ``native`` on a CPU
            that runs no preset, or ``cuda`` with a GPU that runs none.
    """
    if name == _GPU:
        return _this_gpu()
    name = _ALIASES.get(name, name)
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name not in _HOST:
        close = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"unknown target {name!r}: {hint}presets are {', '.join(names())}")
    possible = [preset for preset in PRESETS if preset.arch in _HOST[name]]
    for preset in possible:
        if preset.runs_here():
            return preset
    raise UsageError(
        f"target {name} means this machine, and {cpu_name()} ({platform.machine()}, "
        f"{len(cpu_features())} features) runs no such preset: name one of "
        f"{', '.join(preset.name for preset in possible)}"
    )


def _this_gpu() -> Preset:
    # Here, for whoever has no GPU need not import what asks for one.
    from mobilenet_tvm import cuda
    from mobilenet_tvm.cuda.gpu import find_gpu

    if cuda.emulated():
        from mobilenet_tvm.cuda.emulator import emulated_gpu

        return next(preset for preset in CUDA_PRESETS if preset.gpu == emulated_gpu())
    found = find_gpu()
    if found is None:
        return _BY_NAME[_USUAL_GPU]
    return for_gpu(found.name, found.compute_capability, platform.machine())


def for_gpu(gpu_name: str, compute_capability: tuple[int, int], arch: str) -> Preset:
    """The preset for a GPU in a host of ``arch`` (as ``platform.machine()`` says).

    That of its compute capability, or of the nearest older one of its major version, whose machine
    code it runs; a GPU of a newer major version than all has the newest preset, whose PTX its
    driver compiles (CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility").

    Raises:
        UsageError: the GPU is older than all presets for such a host.
    """
    possible = {
        preset.gpu.compute_capability: preset
        for preset in CUDA_PRESETS
        if preset.gpu is not None and preset.arch == arch
    }
    older = [found for found in possible if found <= compute_capability]
    if older:
        return possible[max(older)]
    version = "{}.{}".format(*compute_capability)
    needed = ", which begin at {}.{}".format(*min(possible)) if possible else ""
    raise UsageError(
        f"target cuda means this machine's GPU, and {gpu_name} has compute capability {version}, "
        f"too old for the presets of a GPU in {arch}{needed}: to compile for another GPU name one "
        f"of {', '.join(preset.name for preset in CUDA_PRESETS)}"
    )
