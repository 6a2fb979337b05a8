"""CUDA C to machine code and PTX: what the image holds, and what is said when it fails."""

from __future__ import annotations

import importlib
import struct

import pytest

from mobilenet_tvm.cuda import CudaError, nvrtc

pytestmark = pytest.mark.usefixtures("cuda_wheels")

SOURCE = 'extern "C" __global__ void twice(float* a) { a[threadIdx.x] *= 2; }'
BAD = 'extern "C" __global__ void twice(float* a) { a[threadIdx.x] *= nobody; }'
PTX, MACHINE_CODE = 1, 2


def entries(fatbin):
    """``(kind, architecture)`` of each entry of a fatbin."""
    magic, _, header, size = struct.unpack_from("<IHHQ", fatbin)
    assert magic == 0xBA55ED50
    assert len(fatbin) == header + size
    found, at = [], header
    while at < len(fatbin):
        kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", fatbin, at)
        (arch,) = struct.unpack_from("<I", fatbin, at + 28)
        found.append((kind, arch))
        at += entry_header + entry_size
    return found


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_a_fatbin_holds_machine_code_and_ptx(arch):
    image = nvrtc.compile_source(SOURCE, arch)
    number = int(arch.removeprefix("sm_"))
    assert sorted(entries(image.fatbin)) == [(PTX, number), (MACHINE_CODE, number)]
    assert image.cubin.startswith(b"\x7fELF")
    assert image.cubin in image.fatbin
    text = image.ptx.decode().rstrip("\0")
    assert f".target {arch}" in text
    assert ".visible .entry twice(" in text


def test_the_log_has_warnings_and_what_ptxas_says():
    source = 'extern "C" __global__ void k(float* a) { int unused; a[0] = 1; }'
    log = nvrtc.compile_source(source, "sm_80").log
    assert "warning" in log
    assert "Function properties for k" in log
    assert "0 bytes spill stores" in log


def test_the_same_source_makes_the_same_image():
    one, other = (nvrtc.compile_source(SOURCE, "sm_80") for _ in range(2))
    assert one.fatbin == other.fatbin


@pytest.mark.parametrize(
    ("source", "arch", "words"),
    [
        (BAD, "sm_80", ("sm_80", "kernels.cu(1)", '"nobody" is undefined')),
        (SOURCE, "sm_12", ("sm_12", "gpu-architecture")),
    ],
    ids=["source", "arch"],
)
def test_what_is_refused_is_one_line(source, arch, words):
    with pytest.raises(CudaError) as caught:
        nvrtc.compile_source(source, arch)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("source", [SOURCE, BAD], ids=["compiles", "fails"])
def test_the_program_is_destroyed(monkeypatch, source):
    bindings = importlib.import_module("cuda.bindings.nvrtc")
    alive = []
    create, destroy = bindings.nvrtcCreateProgram, bindings.nvrtcDestroyProgram

    def created(*arguments):
        status, program = create(*arguments)
        alive.append(int(program))
        return status, program

    def destroyed(program):
        alive.remove(int(program))
        return destroy(program)

    monkeypatch.setattr(bindings, "nvrtcCreateProgram", created)
    monkeypatch.setattr(bindings, "nvrtcDestroyProgram", destroyed)
    try:
        nvrtc.compile_source(source, "sm_80")
    except CudaError:
        assert source == BAD
    assert alive == []


def test_no_cubin_is_not_packed():
    with pytest.raises(CudaError, match="nvFatbin refuses the kernels for sm_80"):
        nvrtc.pack(b"not a cubin", b"", "sm_80")


def test_no_bindings_say_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(nvrtc.importlib, "import_module", missing)
    with pytest.raises(CudaError, match=r"cuda-bindings .*pip install 'mobilenet-tvm\[cuda\]'"):
        nvrtc.compile_source(SOURCE, "sm_80")


def test_no_library_says_what_to_install(monkeypatch):
    bindings = importlib.import_module("cuda.bindings.nvrtc")

    def unloadable(*_):
        raise RuntimeError('Failure finding "libnvrtc.so"\nSearched here\nand there')

    monkeypatch.setattr(bindings, "nvrtcCreateProgram", unloadable)
    with pytest.raises(CudaError) as caught:
        nvrtc.compile_source(SOURCE, "sm_80")
    assert str(caught.value) == (
        'nvidia-cuda-nvrtc-cu12 is not installed, or not whole (Failure finding "libnvrtc.so"): '
        "pip install 'mobilenet-tvm[cuda]'"
    )


def test_bindings_of_another_cuda_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.import_module("cuda.bindings"), "__version__", "13.0.3")
    for refused in (
        lambda: nvrtc.compile_source(SOURCE, "sm_80"),
        lambda: nvrtc.pack(b"", b"", "sm_80"),
    ):
        with pytest.raises(CudaError) as caught:
            refused()
        assert str(caught.value) == (
            "cuda-bindings is 13.0.3, and this package's is CUDA 12's: "
            "pip install 'cuda-bindings==12.9.*'"
        )


def test_a_compiler_of_another_cuda_is_refused(monkeypatch):
    bindings = importlib.import_module("cuda.bindings.nvrtc")
    monkeypatch.setattr(bindings, "nvrtcVersion", lambda: (0, 13, 1))
    with pytest.raises(CudaError, match=r"NVRTC is 13\.1, .*'nvidia-cuda-nvrtc-cu12==12\.9\.\*'"):
        nvrtc.compile_source(SOURCE, "sm_80")


def test_the_version_is_the_wheels():
    installed = importlib.import_module("importlib.metadata").version("nvidia-cuda-nvrtc-cu12")
    assert installed.startswith(nvrtc.version() + ".")


def test_tvm_s_module_holds_the_fatbin_and_shows_the_source(compile_kernel, tmp_path):
    from tvm import te

    x = te.placeholder((64,), name="x")
    y = te.compute((64,), lambda i: x[i] + 1.0, name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], te.thread_axis("threadIdx.x"))
    compiled, module = compile_kernel(schedule, [x, y])
    (kernels,) = module.imported_modules
    assert kernels.type_key == "cuda"
    assert kernels.get_source() == compiled.source
    assert "made_kernel" in compiled.source
    path = tmp_path / "kernels.cubin"
    kernels.save(str(path))
    assert path.read_bytes() == compiled.image
    assert sorted(entries(compiled.image)) == [(PTX, 80), (MACHINE_CODE, 80)]
    assert compiled.cubin in compiled.image
    assert len(compiled.functions) == 1
