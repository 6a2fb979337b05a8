"""The emulated board itself: what an RPC server relies on, and kernels compiled for ARM."""

from __future__ import annotations

import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.build.link import link
from mobilenet_tvm.devices.qemu import QemuRuntime, emulated_cpu
from mobilenet_tvm.targets import probe
from tests.build.test_pool import PLAIN, kernels


def python(board: QemuRuntime, body: str, cpu: str = "cortex-a72") -> str:
    """Last line that code printed there; it must succeed."""
    done = board.run_python(
        ["-c", textwrap.dedent(body)], cpu=cpu, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip().splitlines()[-1]


def test_it_is_an_aarch64_linux(board: QemuRuntime) -> None:
    said = python(board, "import platform; print(platform.machine(), platform.python_version())")
    assert said == f"aarch64 {board.python_version}"


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "rpi5", "neoverse-n1", "neoverse-v1"])
def test_it_says_what_cpu_it_is(board: QemuRuntime, name: str) -> None:
    """A preset runs there exactly where its CPU has what the preset's code may use."""
    preset = targets.resolve(name)
    said = python(
        board,
        "from mobilenet_tvm import targets; from mobilenet_tvm.targets import presets; "
        "print(targets.cpu_name(), *(p.name for p in presets.PRESETS if p.runs_here()))",
        preset.qemu or "",
    )
    assert said.startswith(f"{preset.qemu} under qemu (")
    assert name in said.split()
    assert ("cortex-a55" in said.split()) is (name not in ("rpi3", "rpi4"))


def test_this_package_works_there_though_it_cannot_build(board: QemuRuntime) -> None:
    said = python(
        board,
        """
        import os, time
        begin = time.monotonic()
        import mobilenet_tvm
        took_s = time.monotonic() - begin
        from mobilenet_tvm import runtime, targets, toolchain
        from mobilenet_tvm.cli import frame
        toolchain.activate()
        import tvm
        assert tvm.get_global_func("rpc.ServerLoop")
        assert "LD_PRELOAD" not in os.environ
        print(tvm.__version__, took_s < 20, targets.resolve("rpi4").arch)
        """,
    )
    assert said == f"{toolchain.TVM_VERSION} True aarch64"


def test_its_processes_live_and_die_as_on_a_board(board: QemuRuntime) -> None:
    """What a server with a child for each session relies on."""
    said = python(
        board,
        """
        import ctypes, os, signal, socket, subprocess, sys, threading, time
        signal.alarm(60)

        def ends(body):
            child = os.fork()
            if child == 0:
                try:
                    body()
                finally:
                    os._exit(7)
            return child

        def status(child):
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert status(ends(lambda: None)) == 7
        assert status(ends(os.abort)) == -signal.SIGABRT
        assert status(ends(lambda: ctypes.string_at(8))) == -signal.SIGSEGV
        for sent in (signal.SIGKILL, signal.SIGTERM):
            child = ends(lambda: time.sleep(60))
            os.kill(child, sent)
            assert status(child) == -sent

        server = socket.create_server(("127.0.0.1", 0))
        started = threading.Thread(target=server.accept)  # a fork with threads
        started.start()
        assert status(ends(lambda: socket.create_connection(server.getsockname()))) == 7
        started.join()

        read, write = os.pipe()  # closed when the last process that has it is gone

        def child():
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            os.write(write, b"x")
            time.sleep(60)

        def parent():
            ends(child)
            os.read(read, 1)
            os.kill(os.getpid(), signal.SIGKILL)

        assert status(ends(parent)) == -signal.SIGKILL
        os.close(write)
        assert os.read(read, 1) == b""

        again = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True)
        assert again.stdout == b"42\\n", again
        print("all")
        """,
    )
    assert said == "all"


def test_limits_on_memory_do_nothing_there_but_it_can_be_watched(board: QemuRuntime) -> None:
    """When this fails, qemu has learnt it, and the docstring of QemuRuntime can be mended."""
    said = python(
        board,
        """
        import os, resource
        resource.setrlimit(resource.RLIMIT_AS, (200 << 20,) * 2)
        held = bytearray(300 << 20)
        held[::4096] = b"x" * len(held[::4096])
        with open(f"/proc/{os.getpid()}/status") as file:
            (kb,) = (line.split()[1] for line in file if line.startswith("VmRSS:"))
        print(300 << 10 <= int(kb) < 600 << 10, resource.getrlimit(resource.RLIMIT_AS))
        """,
    )
    assert said == "True (-1, -1)"


def test_a_killed_board_is_gone_at_once(board: QemuRuntime) -> None:
    with board.popen(
        ["-c", "import time; print('up'); time.sleep(600)"], stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "up\n"
        started.kill()
        assert started.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "rpi5", "neoverse-v1"])
def test_a_kernel_compiled_here_is_right_there(
    board: QemuRuntime, name: str, tmp_path: Path
) -> None:
    preset = targets.resolve(name)
    assert preset.qemu is not None
    library = tmp_path / "kernel.so"
    probe.compile_kernel(preset.target, preset.linker, str(library))
    run = (
        f"from mobilenet_tvm.targets import probe; probe.run_kernel({str(library)!r}); print('ok')"
    )
    assert python(board, run, preset.qemu) == "ok"


def test_an_artifacts_own_threads_run_there(board: QemuRuntime, tmp_path: Path) -> None:
    preset, library = targets.resolve("rpi3"), tmp_path / "kernels.so"
    link(kernels(preset), library, preset)
    body = PLAIN.replace("sys.argv[1]", repr(str(library))) + textwrap.dedent(
        """
        for count in (2, 1, 3):
            set_threads(count)
            assert always_right(200), count
            assert threads() == before + min(count, cpus) - 1
        child = os.fork()
        if child == 0:
            os._exit(0 if always_right(20) else 1)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert python(board, body, "cortex-a53") == "0"


# No libc: zig would compile one first.
ASSEMBLER = {
    "aarch64": (
        ".arch_extension dotprod\n.globl _start\n_start:\n{} mov x0, #7\n mov x8, #93\n svc #0\n",
        "aarch64-linux-gnu",
    ),
    "armv7l": (
        ".globl _start\n_start:\n{} mov r0, #7\n mov r7, #1\n svc #0\n",
        "arm-linux-gnueabihf",
    ),
}


def program(folder: Path, arch: str, instruction: str = "") -> str:
    text, target = ASSEMBLER[arch]
    source, built = folder / "program.s", folder / "program"
    source.write_text(text.format(f" {instruction}\n" if instruction else ""))
    toolchain.zig("cc", "-target", target, "-nostdlib", "-static", "-o", str(built), str(source))
    return str(built)


def test_dot_products_are_illegal_where_the_cpu_has_none(
    board: QemuRuntime, tmp_path: Path
) -> None:
    dot = program(tmp_path, "aarch64", "sdot v0.4s, v1.16b, v2.16b")
    run = {"capture_output": True, "timeout": 60, "cwd": tmp_path}
    assert board.run([dot], cpu="cortex-a72", **run).returncode == -signal.SIGILL
    assert board.run([dot], cpu=emulated_cpu("cortex-a55").name, **run).returncode == 7
    assert board.run([program(tmp_path, "aarch64")], cpu="cortex-a53", **run).returncode == 7


def test_32_bit_programs_run_too(board: QemuRuntime, tmp_path: Path) -> None:
    assert board.run([program(tmp_path, "armv7l")], timeout=60).returncode == 7
    assert "cortex-a7" in board.cpus("armv7l")
