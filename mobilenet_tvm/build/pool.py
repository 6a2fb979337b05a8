"""A thread pool linked into an artifact, for its kernels to run on in place of TVM's.

Kernels call ``TVMBackendParallelLaunch`` through a pointer in their own object, which the runtime
that loads the library finds by name and fills. Here that pointer gets another name, and the
object of ``c/pool.c`` defines it: no runtime knows it, so none overwrites it (docs/threads.md).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from elftools.elf.elffile import ELFFile

from mobilenet_tvm import toolchain
from mobilenet_tvm.targets import Preset

# A packed function of TVM's in each library with a pool: threads, the caller included.
SET_THREADS: Final = "mobilenet_tvm_set_threads"
# A launch as the kernels make it: TVMBackendParallelLaunch of tvm/runtime/c_backend_api.h.
LAUNCH: Final = "mobilenet_tvm_launch"
MAX_THREADS: Final = 64  # it takes larger numbers for this one
# What c/pool.c takes of libc, beside what any kernel may.
SYMBOLS: Final = frozenset(
    [
        *("pthread_create", "pthread_join", "pthread_sigmask", "sigfillset", "sched_yield"),
        *("syscall", "getpid", "getenv", "strtol", "clock_gettime"),
        *("open", "read", "close", "snprintf", "strtoll"),
        *("strcmp", "strlen", "strncmp", "strrchr", "strsep", "strstr"),
    ]
)
_SOURCE: Final = Path(__file__).with_name("c") / "pool.c"
_LAUNCH: Final = "__TVMBackendParallelLaunch"
_BARRIER: Final = "__TVMBackendParallelBarrier"
_OWN_LAUNCH: Final = "mobilenet_tvm_parallel_launch"
_ARCHES: Final = ("x86_64", "aarch64")
_OPTIONS: Final = (
    *("-std=c11", "-O3", "-fPIC", "-Wall", "-Wextra", "-Werror", "-g0"),
    *("-fno-stack-protector", "-fno-sanitize=undefined", "-fno-asynchronous-unwind-tables"),
)
# ARMv8.0's own atomics: the library's functions that would choose are not there to be linked.
_ARCH_OPTIONS: Final = {"x86_64": (), "aarch64": ("-mno-outline-atomics",)}


def with_pool(objects: Sequence[str], preset: Preset, objcopy: Path) -> list[str]:
    """Objects to link in place of ``objects``, whose parallel loops run on a pool of their own.

    They are returned as they are where no kernel is parallel, where one has a barrier between its
    threads (none of ours has, and TVM's pool knows how), for a GPU, and for a system whose linker
    is not here or that has 32 bits.

    Args:
        objects: paths of object files; new ones are written beside them.
        preset: what they are for.
        objcopy: ``llvm-objcopy``.

    Raises:
        DeviceError: the pool cannot be compiled, or the cache cannot be written.
        subprocess.CalledProcessError: ``objcopy`` failed.
    """
    if preset.kind != "so" or preset.gpu is not None or preset.arch not in _ARCHES:
        return list(objects)
    symbols = {name: _symbols(Path(name)) for name in objects}
    parallel = [name for name, has in symbols.items() if _LAUNCH in has]
    if not parallel or any(_BARRIER in has for has in symbols.values()):
        return list(objects)
    linked = [name for name in objects if name not in parallel]
    for name in parallel:
        renamed = f"{name}.pool.o"
        subprocess.run(
            [str(objcopy), f"--redefine-sym={_LAUNCH}={_OWN_LAUNCH}", name, renamed],
            check=True,
            capture_output=True,
            text=True,
        )
        linked.append(renamed)
    return [*linked, str(pool_object(preset.arch))]


def pool_object(arch: str) -> Path:
    """The compiled pool for ``x86_64`` or ``aarch64``. Raises as ``toolchain.compiled`` does."""
    target = ("-target", f"{arch}-linux-gnu.2.17")
    options = (*target, *_OPTIONS, *_ARCH_OPTIONS[arch], "-c")
    return toolchain.compiled(_SOURCE, "pool", f"{arch}.o", options)


def _symbols(path: Path) -> frozenset[str]:
    with path.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        return frozenset(symbol.name for symbol in table.iter_symbols()) if table else frozenset()
