"""What the emulator makes of CUDA C: the functions and types of its headers, against numpy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mobilenet_tvm.cuda import CudaError
from mobilenet_tvm.cuda.emulator_source import translate

LANES = 64


def _evaluate(expression, before="", head=""):
    """``out[i]`` of ``expression`` for a block of 64 threads ``i``; ``x`` is i / 8 - 4."""
    import ctypes

    import tvm

    from mobilenet_tvm.cuda import sources

    source = (
        f'{head}\nextern "C" __global__ void k(float* __restrict__ out) {{\n'
        f"  int i = threadIdx.x;\n  float x = i * 0.125f - 4;\n  {before}\n"
        f"  out[i] = {expression};\n}}\n"
    )
    sources.add(source, sources.digest(source.encode()))
    described = [{"name": "k", "arg_types": ["handle"], "launch_param_tags": ["threadIdx.x"]}]
    create = tvm.get_global_func("mobilenet_tvm.cuda.module")
    module = create(bytearray(source.encode()), "ptx", json.dumps(described), source)
    out = tvm.nd.empty((LANES,), "float32", tvm.cuda(0))
    module["k"](ctypes.c_void_p(out.handle.contents.data), LANES)
    return out.numpy()


I = np.arange(LANES)  # noqa: E741
X = (I * 0.125 - 4).astype(np.float32)
AWAY = np.sign(X) * np.floor(abs(X) + 0.5)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("__expf(x) + expf(x)", 2 * np.exp(X)),
        ("exp2f(x)", np.exp2(X)),
        ("__exp10f(x)", 10.0**X),
        ("__logf(x + 5)", np.log(X + 5)),
        ("__log2f(x + 5) + __log10f(x + 5)", np.log2(X + 5) + np.log10(X + 5)),
        ("tanhf(x)", np.tanh(X)),
        ("erff(x)", np.vectorize(math.erf)(X)),
        ("__sinf(x) * __cosf(x) + tanf(x)", np.sin(X) * np.cos(X) + np.tan(X)),
        ("sqrtf(fabsf(x)) + rsqrtf(x * x + 1)", np.sqrt(abs(X)) + 1 / np.sqrt(X * X + 1)),
        ("powf(fabsf(x), 1.5f)", abs(X) ** 1.5),
        ("floorf(x) + 10 * ceilf(x)", np.floor(X) + 10 * np.ceil(X)),
        ("truncf(x) + 10 * rintf(x) + 100 * roundf(x)", np.trunc(X) + 10 * np.rint(X) + 100 * AWAY),
        ("fmodf(x, 0.75f)", np.fmod(X, 0.75)),
        ("fmaf(x, x, 2.0f)", X * X + 2),
        ("max(min(x, 1.0f), -1.0f)", np.clip(X, -1, 1)),
        ("max(i, 7) + min(i, 9ll) + max(2u, 3u)", np.maximum(I, 7) + np.minimum(I, 9) + 3),
        ("__saturatef(x)", np.clip(X, 0, 1)),
        ("__clz(i)", [32 - int(i).bit_length() for i in I]),
        ("__popc(i)", [bin(i).count("1") for i in I]),
        ("__ffs(i)", [int(i & -i).bit_length() for i in I]),
        ("__int_as_float(__float_as_int(x))", X),
        ("__dp4a(0x01FF0203, 0x01010101 * (i & 3), 5)", 5 + (1 - 1 + 2 + 3) * (I & 3)),
        ("isnan(x / 0.0f) + 2 * isinf(x / 0.0f)", np.where(X == 0, 1, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_functions(emulated, expression, expected):
    np.testing.assert_allclose(emulated.call(_evaluate, expression), expected, rtol=2e-6, atol=1e-6)


def test_vectors(emulated):
    before = """
    float4 f = make_float4(x, x + 1, x + 2, x + 3);
    longlong4 wide;  // TVM's float8
    for (int j = 0; j < 8; ++j) ((float*)&wide)[j] = j;
    float sum = 0;
    sum += ((float2*)(&(wide.w)))->y + ((float2*)(&(wide.x)))->x;
    int four = 0;  // TVM's int8x4
    four = four & ~(0x000000ff << 8) | ((i & 127) << 8);
    ushort4 flags = make_ushort4(x < 0, 0, 1, 1);
    """
    got = emulated.call(
        _evaluate,
        "f.x + f.w + sum + ((char)(four >> 8)) + (bool(flags.x) ? 100 : 0)"
        " + (sizeof(float4) == 16 && alignof(float4) == 16 && alignof(float2) == 8) * 1000",
        before,
    )
    np.testing.assert_allclose(got, 2 * X + 3 + 7 + I + 100 * (X < 0) + 1000)


def test_half(emulated):
    """Every operation rounds to half once, as numpy's do."""
    head = "#include <cuda_fp16.h>"
    scale = np.float32(1.1)

    @np.errstate(over="ignore")
    def rounded(values):
        return values.astype(np.float16)

    half = (X * scale).astype(np.float16)
    cases = {
        "float(h)": half,
        "float(h * h + h)": half * half + half,
        "float(h / (h * h + __float2half_rn(1.0f)))": half / (half * half + np.float16(1)),
        "float(__float2half_rn(x * 1e-6f))": (X * np.float32(1e-6)).astype(np.float16),
        "float(__float2half_rn(x * 2e4f))": rounded(X * np.float32(2e4)),
        "float(hexp(h))": np.exp(half.astype(np.float32)).astype(np.float16),
        "h > __float2half_rn(0.5f) ? 1.0f : 0.0f": half > np.float16(0.5),
    }
    for expression, expected in cases.items():
        got = emulated.call(_evaluate, expression, "half h = __float2half_rn(x * 1.1f);", head)
        np.testing.assert_array_equal(got, expected.astype(np.float32), err_msg=expression)


def test_every_half_survives(emulated):
    """To float and back: all of 2^16, NaN as some NaN."""
    before = """
    float bad = 0;
    for (int j = i; j < 65536; j += 64) {
      half h; h.bits = j;
      half back = __float2half(float(h));
      bool nan = (j & 0x7fff) > 0x7c00;
      bad += nan ? !((back.bits & 0x7fff) > 0x7c00) : back.bits != j;
    }"""
    got = emulated.call(_evaluate, "bad", before, "#include <cuda_fp16.h>")
    np.testing.assert_array_equal(got, 0)


LANE = I % 32


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("__shfl_sync(0xffffffff, (float)i, 3, 32)", I - LANE + 3),
        ("__shfl_sync(0xffffffff, i, i / 8 * 8 + 9, 8)", I // 8 * 8 + 1),
        ("__shfl_down_sync(0xffffffff, i, 1)", np.where(LANE == 31, I, I + 1)),
        ("__shfl_up_sync(0xffffffff, i, 2, 16)", np.where(I % 16 < 2, I, I - 2)),
        ("__shfl_xor_sync(0xffffffff, (long long)i, 5, 32)", I ^ 5),
        ("__popc(__ballot_sync(0xffffffff, i < 40))", np.where(I < 32, 32, 8)),
        ("__any_sync(0xffffffff, i == 40)", I >= 32),
        ("__all_sync(0xffffffff, i < 40)", I < 32),
        ("__popc(__activemask())", np.full(LANES, 32)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_warp_operations(emulated, expression, expected):
    np.testing.assert_array_equal(emulated.call(_evaluate, expression), expected)


def test_lanes_of_a_branch_are_active_alone(emulated):
    before = """
    unsigned mask = 0;
    float got = -1;
    if (i % 2) {
      mask = __activemask();
      got = __shfl_down_sync(mask, (float)i, 2, 32);
    }
    __syncwarp();
    """
    got = emulated.call(_evaluate, "__popc(mask) * 1000 + got", before)
    odd = I % 2 == 1
    expected = np.where(odd, 16000 + np.where(LANE >= 30, I, I + 2), -1)
    np.testing.assert_array_equal(got, expected)


def test_atomics(emulated):
    before = """
    __shared__ int count[1];
    if (i == 0) count[0] = 0;
    __syncthreads();
    atomicAdd(&count[0], i);
    __syncthreads();
    """
    got = emulated.call(_evaluate, "count[0]", before)
    np.testing.assert_array_equal(got, np.full(LANES, I.sum()))


def test_infinity(emulated):
    expression = "max(-CUDART_INF_F, x) + (i ? 0.0f : CUDART_INF_F)"
    got = emulated.call(_evaluate, expression, "", "#include <math_constants.h>")
    np.testing.assert_array_equal(got, np.where(I == 0, np.inf, X))


KERNEL = 'extern "C" __global__ void k(float* a) {\n%s\n}\n'


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ('asm volatile("x");', "inline assembly (cp.async, mma) (line 2 of the kernels)"),
        ("nvcuda::wmma::fill_fragment(a, 0);", "tensor cores (wmma)"),
        ("nv_bfloat16 x;", "bfloat16"),
        ("__nv_fp8_e4m3 x;", "fp8"),
        ("atomicAdd(&__tvm_global_barrier_state, 1);", "a barrier between blocks"),
    ],
)
def test_what_there_is_not(body, what):
    with pytest.raises(CudaError) as caught:
        translate(KERNEL % body)
    assert str(caught.value).startswith(f"the CUDA emulator does not have {what}")


def test_shared_arrays_belong_to_their_kernels():
    source = KERNEL % "__shared__ float s[4]; __shared__ int t[2];"
    source += (
        KERNEL.replace("void k", "void __launch_bounds__(64) m") % "extern __shared__ uchar d[];"
    )
    translated = translate(KERNEL.replace(") {\n%s\n}", ");") + source)
    assert '{"s", sizeof(float) * (4)}, {"t", sizeof(int) * (2)}, {nullptr, 0}' in translated
    assert '{"d", 0}, {nullptr, 0}' in translated
    rows = [line for line in translated.splitlines() if line.startswith('  {"')]
    assert [row.split(",")[0] for row in rows] == ['  {"k"', '  {"m"']
    assert rows[1].endswith("64, 1, shared_1},")
    # Lines keep their numbers: the compiler's messages name those of the source.
    after = translated.split('#line 1 "kernels.cu"\n')[1].splitlines()
    assert after[2].startswith("float* const s = (float*)mobilenet_tvm_emulated::shared[0];")


@pytest.mark.parametrize("declared", ["__shared__ float s[2][3];", "__shared__ float s;"])
def test_shared_declarations_not_understood(declared):
    with pytest.raises(CudaError, match="does not understand this declaration: __shared__ float s"):
        translate(KERNEL % declared)
