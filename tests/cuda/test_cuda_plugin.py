"""The native plug-in: how it is built, found and loaded, and what is said where it cannot be."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import json
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest
from elftools.elf.elffile import ELFFile

from mobilenet_tvm import toolchain
from mobilenet_tvm.cuda import CudaError, compilers, plugin

pytestmark = pytest.mark.usefixtures("cuda_wheels")

RUNTIME_ONLY = "TVM_USE_RUNTIME_LIB"


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def run_python(code, *arguments, **variables):
    """Run code in a process of its own; its last line of output as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache with nothing in it, and no path known from before."""
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(tmp_path / "cache"))
    plugin.library.cache_clear()
    yield tmp_path / "cache"
    plugin.library.cache_clear()


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """``fake_compiler(script)``: a compiler in $CXX that runs ``script`` for all but --version."""

    def make(script, version="fake c++ 1.0"):
        path = tmp_path / "fake c++"
        path.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version}"; exit 0; fi\n{script}\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", f"'{path}'")
        return path

    return make


# Writes what it is asked for, and a line to $LINKED for each library.
TOUCH = """
shared=
while [ $# -gt 0 ]; do
  case $1 in -o) result=$2;; -shared) shared=yes;; esac
  shift
done
sleep 0.2
if [ -n "$shared" ]; then echo linked >> "$LINKED"; fi
echo built > "$result"
"""


def message(call, *arguments, **named):
    with pytest.raises(CudaError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- it loads


def test_a_process_with_no_driver_compiles_and_has_no_device(cuda_active, compile_kernel):
    import tvm
    from tvm import te

    x = te.placeholder((32,), name="x")
    y = te.compute((32,), lambda i: x[i] * 2.0, name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].bind(y.op.axis[0], te.thread_axis("threadIdx.x"))
    compiled, _ = compile_kernel(schedule, [x, y])
    assert "made_kernel" in compiled.source
    assert tvm.get_global_func("device_api.cuda", allow_missing=True) is not None
    if has_driver():
        return
    assert tvm.cuda(0).exist is False
    with pytest.raises(tvm.TVMError, match=r"no NVIDIA driver|CUDA"):
        tvm.nd.array([1.0, 2.0], tvm.cuda(0))


def test_it_loads_beside_the_runtime_alone(cuda_compiler):
    code = """
import json, tvm
from mobilenet_tvm.cuda import plugin, CudaError
plugin.load()
try:
    plugin.check_symbols()
    said = ""
except CudaError as error:
    said = str(error)
print(json.dumps({
    "exist": tvm.cuda(0).exist,
    "api": tvm.get_global_func("device_api.cuda", allow_missing=True) is not None,
    "loader": tvm.get_global_func("runtime.module.loadbinary_cuda", allow_missing=True) is not None,
    "relay": tvm.get_global_func("relay.build_module._BuildModule", allow_missing=True) is not None,
    "said": said,
}))
"""
    found = run_python(code, **{RUNTIME_ONLY: "1"})
    assert found["api"]
    assert found["loader"]
    assert not found["relay"]
    assert found["exist"] is has_driver()
    assert "its runtime alone" in found["said"]


def test_a_program_without_python_s_tvm_loads_it(cuda_compiler):
    code = """
import ctypes, json, sys
for path in sys.argv[1:]:
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
found = ctypes.c_void_p()
status = ctypes.CDLL(None).TVMFuncGetGlobal(b"device_api.cuda", ctypes.byref(found))
print(json.dumps([status, found.value is not None, "tvm" in sys.modules]))
"""
    runtime = importlib.metadata.distribution(toolchain.TVM_PACKAGE).locate_file(
        "tvm/libtvm_runtime.so"
    )
    assert run_python(code, str(runtime), str(plugin.library())) == [0, True, False]


def test_cuda_is_activated_beside_the_runtime_alone(cuda_compiler):
    code = """
import json
from mobilenet_tvm import cuda
cuda.activate()
import tvm
print(json.dumps(tvm.get_global_func("device_api.cuda", allow_missing=True) is not None))
"""
    assert run_python(code, **{RUNTIME_ONLY: "1"}) is True


def test_a_process_keeps_its_device(monkeypatch):
    monkeypatch.setattr(plugin, "_loaded", {True: plugin.Path("emulated.so")})
    assert "the emulator: start another process" in message(plugin.load)
    monkeypatch.setattr(plugin, "_loaded", {False: plugin.Path("plugin.so")})
    assert "a GPU: start another process" in message(plugin.load, emulated=True)


def test_a_library_that_does_not_load_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "plugin.so").write_text("no library")
    monkeypatch.setattr(plugin, "_loaded", {})
    monkeypatch.setattr(plugin, "library", lambda *, emulated: tmp_path / "plugin.so")
    said = message(plugin.load)
    assert "does not load" in said
    assert f"pip install --force-reinstall --no-deps {toolchain.TVM_PACKAGE}==" in said


def test_a_tvm_without_the_generator_is_named(cuda_active, monkeypatch):
    plugin.check_symbols.cache_clear()
    monkeypatch.setattr(plugin, "SYMBOLS", (*plugin.SYMBOLS, "_ZN3tvm7nothing6of_theE"))
    assert "lacks _ZN3tvm7nothing6of_theE" in message(plugin.check_symbols)


# --- it is found, or built once


def test_the_path_says_what_it_was_built_for(cuda_compiler, monkeypatch):
    monkeypatch.setattr(plugin, "_build_once", lambda path, *_, **__: path)
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, "/nowhere")
    compiler = compilers.find()
    monkeypatch.setattr(plugin.compilers, "find", lambda: compiler)

    def path(**named):
        plugin.library.cache_clear()
        return plugin.library(**named)

    first = path()
    assert path() == first
    seen = {first, path(emulated=True)}
    newer = dataclasses.replace(compiler, version="g++ 99.1")
    with monkeypatch.context() as patch:
        patch.setattr(plugin.compilers, "find", lambda: newer)
        seen.add(path())
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "_FLAGS", (*plugin._FLAGS, "-O3"))
        seen.add(path())
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "build_id", lambda _: "another build")
        seen.add(path())
    version = importlib.metadata.version
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.metadata,
            "version",
            lambda name: "12.9.1" if name == "nvidia-cuda-nvcc-cu12" else version(name),
        )
        seen.add(path())
    with monkeypatch.context() as patch:
        patch.setattr(plugin.platform, "libc_ver", lambda: ("glibc", "9.9"))
        seen.add(path())
    assert len(seen) == 7
    assert path() == first
    plugin.library.cache_clear()


def test_two_processes_build_it_once(fresh, fake_compiler, tmp_path):
    fake_compiler(TOUCH)
    linked = tmp_path / "linked"
    code = "from mobilenet_tvm.cuda import plugin; print(plugin.library())"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"LINKED": str(linked)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    paths = {child.communicate(timeout=60)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(paths) == 1
    assert plugin.Path(*paths).read_text() == "built\n"
    assert linked.read_text() == "linked\n"
    # Nothing half made stays.
    assert [path.suffix for path in (fresh / "cuda").iterdir() if path.suffix != ".lock"] == [".so"]


def test_it_is_used_when_the_compiler_is_gone(fresh, fake_compiler, monkeypatch, tmp_path):
    fake_compiler(TOUCH)
    monkeypatch.setenv("LINKED", str(tmp_path / "linked"))
    path = plugin.library()
    plugin.library.cache_clear()
    monkeypatch.setattr(plugin.compilers, "find", lambda: None)
    assert plugin.library() == path


def test_a_failed_build_leaves_nothing_and_says_the_first_error(fresh, fake_compiler):
    fake_compiler(
        'echo "In file included from here:" >&2; echo "a.cc:1:2: error: no such thing" >&2;'
        'echo "a.cc:3:4: error: another" >&2; exit 1'
    )
    said = message(plugin.library)
    assert said == ("fake c++ 1.0 cannot build the CUDA plug-in: a.cc:1:2: error: no such thing")
    assert [path.suffix for path in (fresh / "cuda").iterdir()] == [".lock"]


def test_a_compiler_that_dies_without_a_word_is_said(fresh, fake_compiler):
    fake_compiler("exit 7")
    assert message(plugin.library).endswith("cannot build the CUDA plug-in: it ends with 7")


def test_a_cache_that_cannot_be_written_is_said(fresh, monkeypatch, tmp_path, cuda_compiler):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(tmp_path / "file"))
    said = message(plugin.library)
    assert f"cannot be kept in {tmp_path / 'file' / 'cuda'} (Not a directory)" in said
    assert f"set {toolchain.CACHE_VARIABLE}" in said


# --- what is missing


def without(monkeypatch, *names, **versions):
    """As if some packages were not installed, or in other versions."""
    known = importlib.metadata.version

    def version(name):
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name.replace("-", "_")) or known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_missing_wheels_are_named(fresh, monkeypatch):
    without(monkeypatch, "nvidia-cuda-nvcc-cu12")
    assert message(plugin.library) == (
        "nvidia-cuda-nvcc-cu12 not installed: pip install 'mobilenet-tvm[cuda]'"
    )
    without(monkeypatch, "nvidia-cuda-nvcc-cu12", "nvidia-cuda-runtime-cu12")
    said = message(plugin.library)
    assert said.startswith("nvidia-cuda-runtime-cu12 and nvidia-cuda-nvcc-cu12 not installed: pip")


def test_another_build_of_tvm_is_named(fresh, monkeypatch):
    without(monkeypatch, xtc_tvm_python_bindings="0.19.0.10")
    said = message(plugin.library)
    assert f"is 0.19.0.10, and the CUDA plug-in is for {toolchain.pinned()} alone" in said
    assert f"{toolchain.TVM_PACKAGE}=={toolchain.pinned()}" in said


def test_a_tvm_that_is_damaged_is_named(tmp_path):
    (tmp_path / "libtvm.so").write_text("no library")
    assert f"{tmp_path / 'libtvm.so'} cannot be read" in message(
        plugin.build_id, tmp_path / "libtvm.so"
    )
    assert "cannot be read" in message(plugin.build_id, tmp_path / "none.so")


def test_another_system_is_named(fresh, monkeypatch):
    monkeypatch.setattr(plugin.sys, "platform", "darwin")
    monkeypatch.setattr(plugin.platform, "system", lambda: "Darwin")
    assert message(plugin.library) == (
        "CUDA is for Linux, and this is Darwin: do this on a Linux machine"
    )


# --- compilers


def test_cxx_may_have_words(fake_compiler, monkeypatch):
    path = fake_compiler("exit 0", version="fake 2")
    assert compilers.find() == compilers.Compiler((str(path),), "fake 2")
    monkeypatch.setenv("CXX", f"env NAME=value '{path}'")
    assert compilers.find().command == ("env", "NAME=value", str(path))


@pytest.mark.parametrize("words", ["/no/such/compiler", "false", "g++ 'unclosed"])
def test_cxx_that_is_no_compiler_is_said(monkeypatch, words):
    monkeypatch.setenv("CXX", words)
    said = message(compilers.find)
    assert said.startswith("CXX=")
    assert "set it to a C++ compiler" in said


def test_the_order_of_compilers(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    here = {"clang++", "c++"}
    monkeypatch.setattr(
        compilers.shutil, "which", lambda name: f"/bin/{name}" if name in here else None
    )
    monkeypatch.setattr(compilers, "_version", lambda command: f"version of {command[0]}")
    assert compilers.find().command == ("/bin/clang++",)
    here.remove("clang++")
    assert compilers.find().command == ("/bin/c++",)


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compilers.shutil, "which", lambda name: None)


def test_zig_compiles_with_the_headers_of_libstdcxx(no_compiler, tmp_path):
    zig = compilers.find()
    if not compilers._libstdcxx_headers():
        assert zig is None
        return
    assert zig.version.startswith("zig, ")
    (tmp_path / "a.cc").write_text(
        "#include <map>\n#include <string>\nstd::string name(std::map<int, std::string> of) "
        "{ return of[1] + of[2]; }\n"
    )
    library = tmp_path / "a.so"
    for arguments in (
        [*zig.compile_flags, "-fPIC", "-c", str(tmp_path / "a.cc"), "-o", str(tmp_path / "a.o")],
        ["-shared", "-o", str(library), str(tmp_path / "a.o"), *zig.link_flags],
    ):
        done = zig.run(arguments)
        assert done.returncode == 0, done.stderr
    # libc++'s string would be std::__1::basic_string.
    with library.open("rb") as file:
        symbols = [one.name for one in ELFFile(file).get_section_by_name(".dynsym").iter_symbols()]
    assert [name for name in symbols if name.startswith("_Z4name") and "7__cxx11" in name]
    assert not [name for name in symbols if "St3__1" in name]
    ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)  # which libtvm brings
    ctypes.CDLL(str(library), mode=os.RTLD_NOW)


def test_without_those_headers_zig_is_none(no_compiler, fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(compilers, "_INCLUDE", tmp_path)
    assert compilers.find() is None
    said = message(plugin.library)
    assert said.startswith("no C++ compiler to build the CUDA plug-in with: install g++")


def test_the_newest_headers_are_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(compilers, "_INCLUDE", tmp_path)
    machine = compilers.platform.machine()
    for version in ("9", "13"):
        (tmp_path / "c++" / version).mkdir(parents=True)
        own = tmp_path / f"{machine}-linux-gnu" / "c++" / version / "bits"
        own.mkdir(parents=True)
        (own / "c++config.h").write_text("")
    (tmp_path / "c++" / "14").mkdir()  # without the machine's own
    assert compilers._libstdcxx_headers() == (
        tmp_path / "c++" / "13",
        tmp_path / f"{machine}-linux-gnu" / "c++" / "13",
    )


# --- for other programs


def command(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "mobilenet_tvm.cuda", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_path_alone_is_printed(cuda_compiler):
    done = command("--path")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{plugin.library()}\n"


def test_all_that_compiles_is_printed(cuda_compiler):
    done = command("--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "path": str(plugin.library()),
        "compiler": cuda_compiler.version,
        "nvrtc": "12.9",
        "emulated": False,
    }


def test_what_is_missing_ends_with_3(fresh):
    done = command("--path", "--json", CXX="/no/such/compiler")
    assert done.returncode == 3
    assert json.loads(done.stdout) == {
        "error": "CXX='/no/such/compiler' does not run: set it to a C++ compiler, or unset it",
        "exit_code": 3,
    }
    assert done.stderr.startswith("error: CXX=")
    assert done.stderr.count("\n") == 1


CLIENT = """
import json, sys, time
from mobilenet_tvm import toolchain
toolchain.activate()
from tvm import rpc
while True:
    try:
        remote = rpc.connect("127.0.0.1", int(sys.argv[1]))
        break
    except Exception:  # not there yet
        time.sleep(0.2)
names = ("device_api.cuda", "runtime.module.loadbinary_cuda", "mobilenet_tvm.cuda.module")
for name in names:
    remote.get_function(name)
print(json.dumps([len(names), bool(remote.cuda(0).exist)]))
"""


def test_a_stock_server_serves_with_it(cuda_compiler):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["--host", "127.0.0.1", "--port", port, "--port-end", str(int(port) + 1)]
    words += ["--load-library", str(plugin.library())]
    # Not its runtime alone: with that stock TVM finds no --load-library by its path.
    server = subprocess.Popen(
        [sys.executable, "-m", "tvm.exec.rpc_server", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        # A process of its own, for TVM's client waits for ever.
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, port], capture_output=True, text=True, timeout=60
        )
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [3, has_driver()]
