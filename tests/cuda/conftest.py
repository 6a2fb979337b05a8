"""What the tests of CUDA share: the plug-in, and kernels that are made for them.

Tests run on the emulator in a process of their own: ``emulated_process.py`` says how.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import cuda, frontend, targets, toolchain, zoo
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.cuda import compilers

# A child process finds it by this, too.
sys.path.append(str(Path(__file__).parent))

from emulated_process import EmulatedProcess

PACKAGES = ("cuda-bindings", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvrtc-cu12",
            "nvidia-cuda-runtime-cu12", "nvidia-nvfatbin-cu12")  # fmt: skip


@pytest.fixture(scope="session")
def cuda_wheels() -> None:
    """NVIDIA's wheels are installed."""
    for name in PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed: pip install 'mobilenet-tvm[cuda]'")


@pytest.fixture(scope="session")
def cuda_compiler(cuda_wheels) -> compilers.Compiler:
    """A C++ compiler that builds the plug-in."""
    found = compilers.find()
    if found is None:
        pytest.skip("no C++ compiler to build the CUDA plug-in with")
    return found


@pytest.fixture(scope="session")
def cuda_active(cuda_compiler) -> None:
    """This process compiles for CUDA."""
    cuda.activate()


@pytest.fixture
def compile_kernel(cuda_active):
    """``compile_kernel(schedule, arguments)``: the kernel of a schedule, as it was compiled."""
    from mobilenet_tvm import targets
    from mobilenet_tvm.cuda import codegen

    def compile_one(schedule, arguments, *, preset="cuda-sm80"):
        import tvm

        with codegen.collecting() as built:
            module = tvm.build(
                schedule, arguments, target=targets.resolve(preset).tvm_target(), name="made"
            )
        (compiled,) = built
        return compiled, module

    return compile_one


@pytest.fixture(scope="session")
def convolutions() -> Callable[..., Any]:
    """``convolutions((channels, filters, kernel, stride), ..., size=8)``: a Relay module of these
    one behind the other, in NCHW, with constant weights."""
    toolchain.activate()
    import tvm
    from tvm import relay

    def make(*layers: tuple[int, int, int, int], size: int) -> Any:
        data = relay.var("data", shape=(1, layers[0][0], size, size))
        result: Any = data
        for channels, filters, kernel, stride in layers:
            weights = np.full((filters, channels, kernel, kernel), 0.01, "float32")
            result = relay.nn.conv2d(
                result,
                relay.const(weights),
                strides=(stride, stride),
                padding=(kernel // 2, kernel // 2),
                channels=filters,
                kernel_size=(kernel, kernel),
            )
        module = tvm.IRModule.from_expr(relay.Function([data], result))
        return relay.transform.InferType()(module)

    return make


@pytest.fixture(scope="module")
def emulated(cuda_compiler) -> Iterator[EmulatedProcess]:
    """A process, one for a test file, whose CUDA device is the emulator (an sm_80)."""
    process = EmulatedProcess()
    yield process
    process.close()


@pytest.fixture
def check_kernels(cuda_active: None, tmp_path: Path) -> Callable[[str, str], None]:
    """``check_kernels(network, preset)``: compiled untuned, every kernel fits the GPU.

    None spills, and nothing stands between two convolutions.
    """

    def check(network: str, preset_name: str) -> None:
        preset = targets.resolve(preset_name)
        clean = frontend.clean(frontend.from_proto(zoo.build(network), network))
        info = ModelInfo(network, clean.original.digest)
        manifest = compile_model(frontend.to_relay(clean), preset, tmp_path / "net.so", info=info)
        gpu, made = preset.gpu, manifest.cuda
        assert gpu is not None
        assert made is not None
        assert made.arch == gpu.arch
        assert len(made.kernels) > 10
        for kernel in made.kernels:
            assert kernel.spill_bytes == 0, kernel
            assert kernel.local_bytes == 0, kernel
            assert 0 < kernel.registers <= gpu.registers_per_thread, kernel
            assert 2 <= kernel.threads_per_block <= gpu.threads_per_block, kernel
            assert kernel.shared_bytes <= gpu.shared_per_block, kernel
            assert kernel.occupancy > 0, kernel
            assert "_pad" not in kernel.name
        # The image comes in and a row of scores goes out as they are.
        assert manifest.tuning.layout_transforms <= 1

    return check
