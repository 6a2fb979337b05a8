"""CUDA C, as TVM's generator prints it, to the C++ of an emulated image (``native/emulated``)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mobilenet_tvm.cuda.errors import CudaError

# What kernels.h has nothing for.
_REFUSED = {
    r"\basm\b": "inline assembly (cp.async, mma)",
    r"\bnvcuda\b": "tensor cores (wmma)",
    r"\bcuda_bf16\.h\b|\bnv_bfloat16\b": "bfloat16",
    r"\bcuda_fp8\.h\b|\b__nv_fp8": "fp8",
    r"\b__tvm_global_barrier_state\b": "a barrier between blocks, which run one after the other",
}
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\(\s*(\d+)[^)]*\)\s*)?'
    r"(\w+)\s*\([^)]*\)\s*([;{])"
)
_SHARED = re.compile(
    r"(?P<dynamic>\bextern\s+)?\b__shared__\s+(?:__align__\(\d+\)\s+)?"
    r"(?P<type>\w[\w ]*?)\s+(?P<name>\w+)\s*\[(?P<count>[^\[\]]*)\]\s*;"
)


@dataclass(frozen=True)
class _Array:
    """A shared array: ``bytes`` is a C expression, 0 where the launch says it."""

    name: str
    bytes: str


@dataclass
class _Kernel:
    name: str
    launch_bound: int
    begin: int
    arrays: list[_Array]


def translate(source: str) -> str:
    """C++ of an image with all kernels of ``source``; lines keep their numbers.

    Raises:
        CudaError: the emulator cannot run this, and why.
    """
    for pattern, what in _REFUSED.items():
        if found := re.search(pattern, source):
            line = source.count("\n", 0, found.start()) + 1
            raise CudaError(f"the CUDA emulator does not have {what} (line {line} of the kernels)")
    kernels = [
        _Kernel(match[2], int(match[1] or 0), match.start(), [])
        for match in _KERNEL.finditer(source)
        if match[3] == "{"
    ]

    def declare(match: re.Match[str]) -> str:
        owner = [kernel for kernel in kernels if kernel.begin < match.start()][-1:]
        if not owner:
            raise CudaError(f"the CUDA emulator wants {match['name']} to be in a kernel")
        arrays = owner[0].arrays
        size = "0" if match["dynamic"] else f"sizeof({match['type']}) * ({match['count']})"
        arrays.append(_Array(match["name"], size))
        place = f"mobilenet_tvm_emulated::shared[{len(arrays) - 1}]"
        return f"{match['type']}* const {match['name']} = ({match['type']}*){place};"

    body = _SHARED.sub(declare, source)
    if left := re.search(r"\b__shared__\b.*", body):
        raise CudaError(f"the CUDA emulator does not understand this declaration: {left[0]}")
    most = max((len(kernel.arrays) for kernel in kernels), default=0)
    return "\n".join(
        (
            f"#define MOBILENET_TVM_SHARED_ARRAYS {most}",
            '#include "kernels.h"',
            '#line 1 "kernels.cu"',
            body,
            _table(kernels),
        )
    )


def _table(kernels: list[_Kernel]) -> str:
    lines = ["namespace mobilenet_tvm_emulated {"]
    rows = []
    for number, kernel in enumerate(kernels):
        arrays = [f'{{"{array.name}", {array.bytes}}}' for array in kernel.arrays]
        # One more, for C++ has no arrays of nothing.
        listed = ", ".join([*arrays, "{nullptr, 0}"])
        lines.append(f"static const SharedArray shared_{number}[] = {{{listed}}};")
        entry = f"Entry<decltype(&::{kernel.name}), &::{kernel.name}>"
        rows.append(
            f'  {{"{kernel.name}", {entry}::Call, {entry}::parameters, {entry}::bytes, '
            f"{entry}::is_pointer, {kernel.launch_bound}, {len(arrays)}, shared_{number}}},"
        )
    return "\n".join(
        (
            *lines,
            "static const Kernel kernels[] = {",
            *rows,
            "};",
            f"static const Image image = {{{len(kernels)}, kernels, &place, shared, &device}};",
            "}  // namespace mobilenet_tvm_emulated",
            'extern "C" __attribute__((visibility("default")))',
            "const mobilenet_tvm_emulated::Image* mobilenet_tvm_emulated_image() {",
            "  return &mobilenet_tvm_emulated::image;",
            "}",
            "",
        )
    )
