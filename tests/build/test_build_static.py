"""A model as a static C library: what it computes, what is in it, what it asks for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenet_tvm import frontend, targets, toolchain, zoo
from mobilenet_tvm.build import Plan, aot, compile_model
from mobilenet_tvm.build.link import LinkError, check_objects, llvm_tool
from mobilenet_tvm.build.manifest import Manifest, Preprocessing, TensorSpec, read_manifest
from mobilenet_tvm.build.static import c_name, c_type, parse_c_name, zig_target
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.runtime import ForeignArtifactError, load, load_remote
from mobilenet_tvm.runtime.static import emulator, why_not
from mobilenet_tvm.runtime.steps import open_steps
from tests.build.conftest import Network
from tests.build.test_build_compile import INFO, relay_model, small_relay
from tests.build.test_build_link import SDOT, object_of

HOST = targets.resolve("x86")
# Another order of summation; a wrong place in the workspace gives anything at all.
TOLERANCE = 1e-4


def two_outputs() -> Any:
    """Batch 3; ``first`` is an output and goes on to ``second``, which adds it to what it makes."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
        for name, shape in (("a", (8, 3, 3, 3)), ("b", (8, 8, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["image.0", "a"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["first"]),
        helper.make_node("Conv", ["first", "b"], ["d"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["d"], ["e"]),
        helper.make_node("Add", ["e", "first"], ["second"]),
    ]
    shapes = {"image.0": [3, 3, 10, 10], "first": [3, 8, 10, 10], "second": [3, 8, 10, 10]}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def static(model: Any, path: Path, preset: targets.Preset = HOST, **options: Any) -> Manifest:
    """The model's library, untuned."""
    relay = relay_model(model)
    guess = frontend.guess_preprocessing(relay.inputs)
    return compile_model(
        relay, preset, path, info=INFO, c_prefix="net", preprocessing=guess, **options
    )


def agrees(path: Path, model: Any, *, runs: int = 2) -> float:
    """The largest error, as a share of max |ONNX Runtime's|, of the library in a program."""
    from onnxruntime import InferenceSession

    module, session = load(path), InferenceSession(model.SerializeToString())
    generator, worst = np.random.default_rng(1), 0.0
    for _ in range(runs):
        feed = {
            spec.name: generator.normal(size=spec.shape).astype(spec.dtype)
            for spec in module.manifest.inputs
        }
        found = module.run(feed)
        for output, expected in zip(session.get_outputs(), session.run(None, feed), strict=True):
            error = np.abs(found[output.name] - expected).max() / np.abs(expected).max()
            worst = max(worst, float(error))
    module.close()  # type: ignore[attr-defined]
    return worst


def skip_unless_it_runs(preset: targets.Preset) -> None:
    if emulator(preset) is None:
        pytest.skip(why_not(preset))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The library of ``two_outputs``."""
    path = tmp_path_factory.mktemp("static") / "new" / "libnet.a"
    return path, static(two_outputs(), path)


def test_two_outputs_of_a_batch_of_three(two: tuple[Path, Manifest]) -> None:
    assert agrees(two[0], two_outputs()) <= TOLERANCE


def test_the_manifest_is_of_the_library(two: tuple[Path, Manifest]) -> None:
    path, manifest = two
    assert read_manifest(path) == manifest
    assert manifest.name == "libnet"
    assert manifest.c_library is not None
    assert manifest.c_library.prefix == "net"
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []
    # Two activations are alive at once, each of 3x8x10x10 floats; more than 16 were no planning.
    assert 2 * 9600 <= manifest.c_library.workspace_bytes <= 16 * 9600
    tensors = [tensor for layer in manifest.layers for tensor in layer.tensors]
    assert {"first", "second"} <= set(tensors)


@pytest.mark.parametrize("name", ["rpi4", "armv7"])
def test_it_is_the_same_on_arm(tmp_path: Path, name: str) -> None:
    preset = targets.resolve(name)
    skip_unless_it_runs(preset)
    static(two_outputs(), tmp_path / "libnet.a", preset)
    assert agrees(tmp_path / "libnet.a", two_outputs()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x86", "rpi4"])
def test_squeeze_excite_and_hard_swish(tmp_path: Path, name: str) -> None:
    preset = targets.resolve(name)
    skip_unless_it_runs(preset)
    model = zoo.build("mobilenet_v3_small", resolution=64, classes=10)
    static(model, tmp_path / "libnet.a", preset)
    assert agrees(tmp_path / "libnet.a", model) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("positions", [(), (0, 2), (0, 1, 2, 3)])
def test_records_of_both_searchers_are_what_it_is_built_with(
    shortcut: Network, tmp_path: Path, positions: tuple[int, ...]
) -> None:
    options: dict[str, Any] = {
        "info": INFO,
        "tasks": shortcut.tasks,
        "best": shortcut.best,
        "plan": Plan("mix", positions, 0.0),
    }
    path = tmp_path / "libnet.a"
    manifest = compile_model(shortcut.relay, HOST, path, c_prefix="net", **options)
    shared = compile_model(shortcut.relay, HOST, tmp_path / "net.so", **options)
    assert manifest.tuning == shared.tuning
    assert manifest.tuning.tuned == manifest.tuning.tasks > 0
    assert [one.tensors for one in manifest.layers] == [one.tensors for one in shared.layers]
    assert [one.records for one in manifest.layers] == [one.records for one in shared.layers]
    assert agrees(path, shortcut.onnx) <= TOLERANCE


def test_no_two_buffers_of_a_kernel_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM's planner lays an output over an input that the kernel has copied by then; LLVM is
    promised that it does not."""
    seen: list[aot.Lowered] = []

    def keep(*arguments: Any) -> aot.Lowered:
        seen.append(aot.lower(*arguments))
        return seen[-1]

    monkeypatch.setattr("mobilenet_tvm.build.compile.lower", keep)
    model = zoo.build("mobilenet_v1", alpha=0.25, resolution=32, classes=10)
    relay = relay_model(model)
    arm = targets.resolve("rpi4")
    compile_model(relay, arm, tmp_path / "libnet.a", info=INFO, c_prefix="net", schedules="stock")
    (lowered,) = seen
    assert len(lowered.calls) >= 28
    for call in lowered.calls:
        *places, constants, workspace = call.arguments
        assert (constants.base, workspace.base) == ("constants", "workspace")
        assert len(set(places)) == len(places)


PROGRAM = r"""
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "net.h"

static _Alignas(64) unsigned char workspace[NET_WORKSPACE_BYTES + 128];
static float input[NET_INPUT_0_SIZE + 1], first[NET_OUTPUT_0_SIZE], second[NET_OUTPUT_1_SIZE];
static float again[NET_OUTPUT_1_SIZE + 1];

int main(void)
{
    for (int i = 0; i < NET_INPUT_0_SIZE; i++)
        input[i] = (float)(i % 17) - 8;
    /* A NaN everywhere that is read before it is written would be in the outputs. */
    memset(workspace, 0xff, sizeof workspace);
    if (net_run_in(input, first, second, workspace) != 0)
        return 1;
    for (int i = 0; i < 128; i++)
        if (workspace[NET_WORKSPACE_BYTES + i] != 0xff)
            return 2;
    for (int i = 0; i < NET_OUTPUT_1_SIZE; i++)
        if (isnan(second[i]))
            return 3;
    /* Pointers that are aligned as a float is, and no more. */
    memmove(input + 1, input, sizeof input - sizeof *input);
    if (net_run_in(input + 1, first, again + 1, workspace + 64) != 0)
        return 4;
    if (memcmp(second, again + 1, sizeof second) != 0)
        return 5;
    if (net_run_in(input, first, second, workspace + 4) != -1)
        return 6;
    if (net_run_in(input, NULL, second, workspace) != -1)
        return 7;
    return 0;
}
"""


def test_a_c_program_finds_what_the_header_says(two: tuple[Path, Manifest], tmp_path: Path) -> None:
    path, _ = two
    (tmp_path / "x.c").write_text(PROGRAM)
    program = tmp_path / "x"
    toolchain.zig(
        *("cc", *zig_target(HOST), "-std=c11", "-pedantic", "-Wall", "-Werror", "-O1"),
        *(f"-I{path.parent}", "-o", str(program), str(tmp_path / "x.c"), str(path), "-lm"),
    )
    assert subprocess.run([str(program)]).returncode == 0
    # It has a workspace of its own, so the library's is not linked in.
    names = subprocess.run(
        [str(llvm_tool("llvm-nm")), str(program)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "net_run_in" in names
    assert "net_run" not in names


@pytest.mark.parametrize(("suffix", "standard"), [("c", "c99"), ("cc", "c++11")])
def test_the_header_is_c99_and_cpp(
    two: tuple[Path, Manifest], tmp_path: Path, suffix: str, standard: str
) -> None:
    source = tmp_path / f"x.{suffix}"
    source.write_text(
        '#include "net.h"\n'
        "int use(const float *, float *);\n"
        "int use(const float *a, float *b) { return net_run(a, b, b + 1); }\n"
    )
    toolchain.zig(
        *("cc", "-O1", f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror"),
        *(f"-I{two[0].parent}", "-c", "-o", str(tmp_path / "x.o"), str(source)),
    )
    assert "image.0 [3, 3, 10, 10] float32" in two[0].with_name("net.h").read_text()
    wanted = subprocess.run(
        [str(llvm_tool("llvm-nm")), "--format=just-symbols", "-u", str(tmp_path / "x.o")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert wanted == ["net_run"]  # no name of C++'s


def test_the_header_has_the_preprocessing(tmp_path: Path) -> None:
    how = Preprocessing(4, 6, 8, color="BGR", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.5))
    compile_model(
        small_relay(), HOST, tmp_path / "libx.a", info=INFO, c_prefix="x", preprocessing=how
    )
    text = (tmp_path / "x.h").read_text()
    for line in (
        "#define X_HEIGHT 4",
        "#define X_WIDTH 6",
        "#define X_RESIZE_SHORTER 8",
        "#define X_IS_BGR 1",
        "#define X_MEAN {0.1f, 0.2f, 0.3f}",
        "#define X_STD {1.0f, 2.0f, 3.5f}",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize("name", ["x86", "rpi3", "armv7"])
def test_it_asks_for_libc_and_libm_alone(tmp_path: Path, name: str) -> None:
    preset = targets.resolve(name)
    static(two_outputs(), tmp_path / "libnet.a", preset)
    symbols = subprocess.run(
        [str(llvm_tool("llvm-nm")), "--format=just-symbols", str(tmp_path / "libnet.a")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "TVM" not in symbols
    assert "unwind" not in symbols
    named = {line for line in symbols.splitlines() if line.startswith("net_")}
    assert {"net_run", "net_run_in", "net_constants"} <= named
    # What its text is linked for says so too.
    assert "for what it needs of them: " in (tmp_path / "net.h").read_text()


def test_the_same_model_gives_the_same_file(tmp_path: Path) -> None:
    digests = {
        compile_model(
            small_relay(), HOST, tmp_path / name / "libx.a", info=INFO, c_prefix="x"
        ).so_sha256
        for name in "ab"
    }
    assert len(digests) == 1


def test_apple_gets_a_library_too(tmp_path: Path) -> None:
    path = tmp_path / "libx.a"
    compile_model(small_relay(), targets.resolve("apple-m1"), path, info=INFO, c_prefix="x")
    names = subprocess.run(
        [str(llvm_tool("llvm-nm")), str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert "T _x_run_in" in names
    with pytest.raises(ForeignArtifactError, match="apple-m1 does not run on this machine, nor"):
        load(path)


def test_an_object_that_the_core_cannot_run_is_found(tmp_path: Path) -> None:
    source = f'void f(void) {{ __asm__ volatile("{SDOT}"); }}'
    objects = [object_of(source, tmp_path, "aarch64-linux-gnu", "-mcpu=cortex_a76")]
    assert check_objects(objects, targets.resolve("rpi5"), name="x.a") == ()
    with pytest.raises(LinkError, match=r"x\.a has instructions that cortex-a72 lacks"):
        check_objects(objects, targets.resolve("rpi4"), name="x.a")
    with pytest.raises(LinkError, match=r"x\.a is for EM_AARCH64, not armv7l"):
        check_objects(objects, targets.resolve("armv7"), name="x.a")


def test_an_object_that_wants_the_tvm_runtime_is_found(tmp_path: Path) -> None:
    source = "extern float expf(float); extern int TVMBackendParallelLaunch(float);" + (
        "int f(float x) { return TVMBackendParallelLaunch(expf(x)); }"
    )
    objects = [object_of(source, tmp_path, "aarch64-linux-gnu")]
    with pytest.raises(LinkError, match="wants TVMBackendParallelLaunch, which neither libc nor"):
        check_objects(objects, targets.resolve("rpi4"), name="x.a")


def test_what_a_static_library_cannot_do_is_one_line(two: tuple[Path, Manifest]) -> None:
    module = load(two[0])
    with pytest.raises(UsageError, match=r"is not timed here: bench a .so"):
        module.timer()
    with pytest.raises(UsageError, match=r"kernels cannot be looked at one by one: compile a .so"):
        open_steps(two[0])


def test_no_board_is_asked_to_load_it(two: tuple[Path, Manifest]) -> None:
    no_session: Any = None
    with pytest.raises(UsageError, match="a static library, which no TVM runtime loads"):
        load_remote(no_session, two[0])


def test_a_program_that_dies_is_one_line(two: tuple[Path, Manifest]) -> None:
    module: Any = load(two[0])
    module._process.kill()
    feed = {"image.0": np.zeros((3, 3, 10, 10), np.float32)}
    with pytest.raises(DeviceError, match=r"libnet\.a: the program died of SIGKILL"):
        module.run(feed)


def test_a_missing_header_is_one_line(two: tuple[Path, Manifest], tmp_path: Path) -> None:
    for one in (two[0], two[0].with_name("libnet.manifest.json")):
        shutil.copy(one, tmp_path)
    with pytest.raises(UsageError, match=r"no header net\.h beside it: ship them together"):
        load(tmp_path / "libnet.a")


def test_without_qemu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name, program in (("rpi4", "qemu-aarch64"), ("armv7", "qemu-arm")):
        preset = targets.resolve(name)
        if not preset.runs_here():
            assert emulator(preset) is None
            assert f"there is no {program} on PATH (Debian: apt-get install" in why_not(preset)
    assert emulator(HOST) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet_v1_0.25_128", "mobilenet_v1_0_25_128"),
        ("my-net.v2", "my_net_v2"),
        ("3d", "model_3d"),
        ("float", "model_float"),
        ("Réseau", "R_seau"),
        ("é", "model"),
    ],
)
def test_names_of_models_become_identifiers(name: str, expected: str) -> None:
    assert c_name(name) == expected
    assert parse_c_name(expected) == expected


@pytest.mark.parametrize("name", ["", "a b", "1x", "int", "a-b", "_x"])
def test_what_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name in C"):
        parse_c_name(name)


def test_a_type_that_c_lacks_is_refused() -> None:
    assert c_type(TensorSpec("x", (1,), "int8")) == "int8_t"
    with pytest.raises(UsageError, match=r"x is float16, which C has no type for: compile a .so"):
        c_type(TensorSpec("x", (1,), "float16"))
