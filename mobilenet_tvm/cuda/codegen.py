"""``target.build.cuda``: what TVM calls to turn lowered kernels into a module."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mobilenet_tvm.cuda import cubin, emulated, nvrtc, plugin, sources


@dataclass(frozen=True)
class Compiled:
    """One module of kernels, as it was compiled.

    Attributes:
        source: CUDA C.
        arch: ``sm_80``.
        image: what the module holds and the driver is given, a fatbin: machine code, and PTX from
            which the driver of a newer GPU makes its own.
        cubin: the machine code alone.
        log: the compiler's.
        functions: the lowered ``PrimFunc`` of each kernel; ``report`` reads them.
    """

    source: str
    arch: str
    image: bytes
    cubin: bytes
    log: str
    functions: tuple[Any, ...] = field(repr=False)


_collectors: list[list[Compiled]] = []


@contextlib.contextmanager
def collecting() -> Iterator[list[Compiled]]:
    """A list that fills with what is compiled in this process within the block."""
    built: list[Compiled] = []
    _collectors.append(built)
    try:
        yield built
    finally:
        _collectors.remove(built)


def register() -> None:
    """Register the builder with TVM. Idempotent."""
    import tvm

    tvm.register_func("target.build.cuda", build, override=True)


def build(module: Any, target: Any) -> Any:
    """A ``runtime.Module`` of the kernels of a lowered ``IRModule``.

    Args:
        module: PrimFuncs that are launched on the device.
        target: ``tvm.target.Target`` with an ``arch``.

    Raises:
        CudaError: the loaded TVM has no code generator, or NVRTC is missing or refuses the source.
    """
    import tvm

    plugin.check_symbols()
    names = list(module.functions)
    functions = [module.functions[name] for name in names]
    source = str(tvm.get_global_func("mobilenet_tvm.cuda.source")(names, functions))
    arch = str(target.arch)
    source, image = _compile(source, arch)
    for built in _collectors:
        built.append(Compiled(source, arch, image.fatbin, image.cubin, image.log, tuple(functions)))
    if emulated():
        sources.remember(source, image.fatbin)
    described = json.dumps([_describe(function) for function in functions])
    create = tvm.get_global_func("mobilenet_tvm.cuda.module")
    # "cubin": whatever TVM is given by this name goes to the driver as it is.
    return create(bytearray(image.fatbin), "cubin", described, source)


def _compile(source: str, arch: str) -> tuple[str, nvrtc.Image]:
    """Machine code, and the source as it was compiled.

    Told only how many threads a block has, ptxas sometimes spills a register or two for one more
    resident block. Such kernels are compiled again, with the words that one block is enough.
    """
    image = nvrtc.compile_source(source, arch)
    spilled = [name for name, moved in cubin.spills(image.log).items() if any(moved)]
    if not spilled:
        return source, image
    for name in spilled:
        bounds = rf"__launch_bounds__\((\d+)\)(?= {re.escape(name)}\()"
        source = re.sub(bounds, r"__launch_bounds__(\1, 1)", source)
    return source, nvrtc.compile_source(source, arch)


def _describe(function: Any) -> dict[str, Any]:
    """How a kernel is launched, as TVM's FunctionInfo (src/runtime/meta_data.h) in JSON."""
    tags = function.attrs.get("tir.kernel_launch_params", [])
    return {
        "name": str(function.attrs["global_symbol"]),
        "arg_types": [_argument(parameter.dtype) for parameter in function.params],
        "launch_param_tags": [str(tag) for tag in tags],
    }


def _argument(dtype: str) -> str:
    return "int32" if dtype == "bool" else dtype
