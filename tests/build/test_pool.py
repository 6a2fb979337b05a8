"""An artifact's own thread pool: same results whatever the threads, and nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.build import pool
from mobilenet_tvm.build.link import check_library, link, llvm_tool
from mobilenet_tvm.build.static import zig_target
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.runtime.module import set_threads
from mobilenet_tvm.targets.host import quota_cpus

ROWS, COLUMNS = 13, 96
X86 = targets.resolve("x86-sse42")

pytestmark = pytest.mark.skipif(not X86.runs_here(), reason="kernels for x86-64")

# A program with TVM's runtime and no package of ours; what a test adds runs after it.
PLAIN = f"""
import ctypes, os, sys, threading
os.environ["TVM_BIND_THREADS"] = "0"
import numpy as np, tvm
assert not [name for name in sys.modules if name.startswith("mobilenet_tvm")]
library = tvm.runtime.load_module(sys.argv[1])
set_threads = library["mobilenet_tvm_set_threads"]
given = np.random.default_rng(0).uniform(-1, 1, ({ROWS}, {COLUMNS})).astype("float32")

def threads():
    return len(os.listdir("/proc/self/task"))

def run(kernel="double"):
    result = tvm.nd.array(np.full_like(given, np.nan))
    library[kernel](tvm.nd.array(given), result)
    return result.numpy()

def right(found):
    return np.array_equal(found, given + given)

def always_right(count):
    return all(right(run()) for _ in range(count))

before = threads()
cpus = len(os.sched_getaffinity(0))
"""


def kernels(preset: targets.Preset) -> Any:
    """``double(x)``, parallel over rows, and ``fail(x)``, of which a task in the middle fails."""
    toolchain.activate()
    import tvm
    from tvm import te

    given = te.placeholder((ROWS, COLUMNS), name="x")
    doubled = te.compute((ROWS, COLUMNS), lambda i, j: given[i, j] + given[i, j], name="y")
    schedule = te.create_schedule(doubled.op)
    schedule[doubled].parallel(doubled.op.axis[0])
    double = tvm.lower(schedule, [given, doubled], name="double")

    builder = tvm.tir.ir_builder.create()
    source = tvm.tir.decl_buffer((ROWS, COLUMNS), name="x")
    result = tvm.tir.decl_buffer((ROWS, COLUMNS), name="y")
    with builder.for_range(0, ROWS, kind="parallel") as row:
        builder.emit(
            tvm.tir.AssertStmt(row != 11, "row eleven is out of order", tvm.tir.Evaluate(0))
        )
        builder.emit(result.vstore((row, 0), source.vload((row, 0), "float32")))
    fail = tvm.tir.PrimFunc([source, result], builder.get()).with_attr("global_symbol", "fail")
    module = double
    module.update(tvm.IRModule({"fail": fail}))
    return tvm.build(module, target=preset.tvm_target())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kernels, linked as an artifact's are."""
    path = tmp_path_factory.mktemp("pool") / "kernels.so"
    link(kernels(X86), path, X86)
    return path


def plain(library: Path, program: str, start: str = "") -> list[str]:
    """Run a program with TVM's runtime alone; what it printed."""
    given = {k: v for k, v in os.environ.items() if k not in ("TVM_NUM_THREADS", "OMP_NUM_THREADS")}
    given["OPENBLAS_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", f"{start}\n{PLAIN}{textwrap.dedent(program)}", str(library)],
        capture_output=True,
        text=True,
        timeout=60,
        env=given,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_every_number_of_threads_gives_the_same(library: Path) -> None:
    program = """
    for count in (1, 2, 3, 4, 64, 1000, 2, 1):
        set_threads(count)
        assert always_right(300), count
        # Never more workers than CPUs, and none left over.
        assert threads() == before + min(count, cpus) - 1, (count, threads())
    try:
        set_threads(0)
    except tvm.TVMError as error:
        print("refused" if "takes one number, 1 or more" in str(error) else error)
    """
    assert plain(library, program) == ["refused"]


def test_threads_come_from_the_environment_and_only_when_they_are_needed(library: Path) -> None:
    program = """
    assert threads() == before  # none when it is loaded
    child = os.fork()
    if child == 0:  # the cores, of which it has no more than CPUs
        os._exit(threads() if right(run()) else 0)
    whole = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 1 <= whole <= cpus
    cases = [
        (1, {"TVM_NUM_THREADS": "1"}, cpus),
        (1, {"OMP_NUM_THREADS": "1"}, cpus),
        (2, {"TVM_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, cpus),
        (2, {"TVM_NUM_THREADS": "2"}, 1),
        # What is no number from 1 on says nothing.
        (1, {"TVM_NUM_THREADS": "auto", "OMP_NUM_THREADS": "1"}, cpus),
        (2, {"TVM_NUM_THREADS": "", "OMP_NUM_THREADS": "2"}, cpus),
        (3, {"TVM_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, cpus),
        (whole, {"TVM_NUM_THREADS": "0", "OMP_NUM_THREADS": "-2"}, cpus),
        (1, {}, 1),
    ]
    for count, environment, allowed in cases:
        child = os.fork()
        if child == 0:
            os.environ.update(environment)
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:allowed])
            os._exit(0 if right(run()) and threads() == min(count, allowed) else 1)
        assert os.waitpid(child, 0)[1] == 0, (count, environment, allowed)
    print("chosen")
    """
    assert plain(library, program) == ["chosen"]


# What /proc/self/cgroup says, the files of its groups, and what they are worth.
GROUPS = {
    "none": ("0::/\n", {}, None),
    "version 2, no quota": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "a container's": ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
    "less than one": ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
    "the host's path": ("0::/kube/pod/x\n", {"cpu.max": "300000 100000\n"}, 3),
    "the least of a way up": (
        "0::/a/b\n",
        {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "400000 100000"},
        2,
    ),
    "version 1": (
        "3:cpuset:/\n2:cpu,cpuacct:/a\n1:memory:/m\n0::/\n",
        {"cpu/a/cpu.cfs_quota_us": "350000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1, no quota": (
        "2:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "not of CPU time": (
        "2:cpuset:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "nonsense": ("what\n0:\n\n", {"cpu.max": "many 0\n"}, None),
}


@pytest.fixture(scope="module")
def quota_in(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pool's own reader of quotas."""
    source = tmp_path_factory.mktemp("quota") / "quota.c"
    path = source.with_suffix(".so")
    source.write_text(
        f'#include "{Path(pool.__file__).parent / "c" / "pool.c"}"\n'
        "int64_t quota(const char *list, const char *mount) { return quota_in(list, mount); }\n"
    )
    toolchain.zig("cc", *zig_target(X86), "-shared", "-O1", "-o", str(path), str(source))
    reader = ctypes.CDLL(str(path)).quota
    reader.argtypes, reader.restype = (ctypes.c_char_p, ctypes.c_char_p), ctypes.c_int64
    return reader


@pytest.mark.parametrize("name", GROUPS)
def test_a_containers_quota_is_read(name: str, quota_in: Any, tmp_path: Path) -> None:
    said, files, worth = GROUPS[name]
    groups, mount = tmp_path / "cgroup", tmp_path / "mount"
    groups.write_text(said)
    for file, text in files.items():
        (mount / file).parent.mkdir(parents=True, exist_ok=True)
        (mount / file).write_text(text)
    assert quota_in(str(groups).encode(), str(mount).encode()) == (worth or 64)
    assert quota_cpus(groups, mount) == worth


@pytest.fixture
def group_of_one_cpu() -> Iterator[Path]:
    """A control group of this machine whose quota is one CPU."""
    for root, quota in (
        (Path("/sys/fs/cgroup"), {"cpu.max": "100000 100000"}),
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_quota_us": "100000"}),
    ):
        group = root / f"mobilenet_tvm-{os.getpid()}"
        with contextlib.ExitStack() as stack:
            try:
                if not (root / "cgroup.procs").exists():  # of the other version
                    continue
                group.mkdir()
                stack.callback(group.rmdir)
                for name, text in quota.items():
                    (group / name).write_text(text)
            except OSError:
                continue
            yield group
            return
    pytest.skip("this process may not make control groups with a quota")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU has no more threads anyway")
def test_no_more_threads_start_than_the_quota_is_worth(
    library: Path, group_of_one_cpu: Path
) -> None:
    procs = group_of_one_cpu / "cgroup.procs"
    said = plain(
        library,
        """
        assert always_right(50)
        print(threads() - before)
        set_threads(2)
        assert always_right(50)
        print(threads() - before)
        """,
        start=f"open({str(procs)!r}, 'w').write('0')",
    )
    assert said == ["0", "1"]


def test_a_failure_in_a_worker_reaches_the_caller(library: Path) -> None:
    program = """
    for count in (1, 2, 4):
        set_threads(count)
        for _ in range(50):
            try:
                run("fail")
            except tvm.TVMError as error:
                assert "row eleven is out of order" in str(error), error
            else:
                raise SystemExit("nothing was raised")
        assert always_right(50)
    print("told")
    """
    assert plain(library, program) == ["told"]


def test_a_forked_child_has_workers_of_its_own(library: Path) -> None:
    program = """
    set_threads(2)
    assert always_right(100)
    child = os.fork()
    if child == 0:
        assert threads() == 1
        good = always_right(100) and threads() == min(2, cpus)
        set_threads(1)  # ends what is there, and nothing that is not
        os._exit(0 if good and right(run()) and threads() == 1 else 1)
    assert always_right(100)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    child = os.fork()
    if child == 0:
        sys.exit(0)  # all that is unloaded at exit finds no worker to end, and does not wait
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert plain(library, program) == ["0", "0"]


def test_a_change_to_one_thread_during_a_launch_ends_the_workers_after_it(library: Path) -> None:
    program = """
    native = ctypes.CDLL(sys.argv[1])
    asked = []
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def change(task, group, data):
        asked.append(task)
        set_threads(1)
        return 0
    set_threads(2)
    assert native.mobilenet_tvm_launch(change, None, 0) == 0
    assert sorted(asked) == [0, 1] and threads() - before == min(2, cpus) - 1
    assert right(run())
    print(threads() - before)
    """
    assert plain(library, program) == ["0"]


def test_two_callers_at_once(library: Path) -> None:
    program = """
    set_threads(2)
    good = []
    def call():
        good.append(always_right(1500))
    callers = [threading.Thread(target=call) for _ in range(3)]
    [caller.start() for caller in callers]
    [caller.join() for caller in callers]
    print(good)
    """
    assert plain(library, program) == ["[True, True, True]"]


def test_unloading_ends_the_workers(library: Path) -> None:
    program = """
    import gc
    for _ in range(5):
        set_threads(2)
        assert always_right(20) and threads() == before + min(2, cpus) - 1
        del library, set_threads
        gc.collect()
        assert sys.argv[1] not in open("/proc/self/maps").read()
        print(threads() - before)
        library = tvm.runtime.load_module(sys.argv[1])
        set_threads = library["mobilenet_tvm_set_threads"]
    """
    assert plain(library, program) == ["0"] * 5


def test_sleeping_workers_wake_and_stopping_is_harmless(library: Path) -> None:
    program = """
    import signal, subprocess, time
    set_threads(2)
    for _ in range(20):
        assert right(run())
        time.sleep(0.005)  # longer than a worker looks for tasks
    waker = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    assert always_right(100)
    waker.wait()
    time.sleep(0.05)
    used = time.process_time()
    time.sleep(0.2)
    print(time.process_time() - used < 0.05)  # nobody spins
    """
    assert plain(library, program) == ["True"]


def test_the_caller_keeps_its_affinity_and_gets_all_signals(library: Path) -> None:
    program = """
    import signal
    allowed = os.sched_getaffinity(0)
    set_threads(2)
    assert right(run()) and os.sched_getaffinity(0) == allowed
    for task in os.listdir("/proc/self/task"):
        text = open(f"/proc/self/task/{task}/status").read()
        blocked = int(text.split("SigBlk:")[1].split()[0], 16)
        if int(task) != os.getpid():
            assert os.sched_getaffinity(int(task)) == allowed
            assert blocked >> (signal.SIGINT - 1) & 1
        else:
            assert blocked == 0
    print("kept")
    """
    assert plain(library, program) == ["kept"]


def undefined_and_defined(path: Path) -> tuple[set[str], set[str]]:
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".dynsym")
        symbols = [(s.name, s["st_shndx"]) for s in table.iter_symbols() if s.name]
    return (
        {name for name, where in symbols if where == "SHN_UNDEF"},
        {name for name, where in symbols if where != "SHN_UNDEF"},
    )


@pytest.mark.parametrize("name", ["x86-avx512", "rpi3", "neoverse-v1"])
def test_the_runtime_cannot_find_the_pointer(tmp_path: Path, name: str) -> None:
    preset, path = targets.resolve(name), tmp_path / "kernels.so"
    link(kernels(preset), path, preset)
    check_library(path, preset)
    undefined, defined = undefined_and_defined(path)
    assert "__TVMBackendParallelLaunch" not in defined
    assert pool.SET_THREADS in defined
    assert "pthread_create" in undefined


def test_kernels_that_need_no_pool_or_another_keep_tvms(tmp_path: Path) -> None:
    objcopy = llvm_tool("llvm-objcopy")

    def object_of(source: str) -> list[str]:
        text, path = tmp_path / "x.c", tmp_path / "x.o"
        text.write_text(source)
        toolchain.zig("cc", "-target", "x86_64-linux-gnu", "-c", "-o", str(path), str(text))
        return [str(path)]

    serial = object_of("int f(void) { return 1; }")
    assert pool.with_pool(serial, X86, objcopy) == serial
    launch = "void *__TVMBackendParallelLaunch;"
    barrier = object_of(launch + "void *__TVMBackendParallelBarrier;")
    assert pool.with_pool(barrier, X86, objcopy) == barrier
    parallel = object_of(launch)
    for other in ("armv7", "apple-m1", "cuda-sm80"):
        assert pool.with_pool(parallel, targets.resolve(other), objcopy) == parallel
    assert len(pool.with_pool(parallel, X86, objcopy)) == 2


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, cache = kernels(X86), tmp_path / "cache"
    cache.write_text("a file")
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(cache))
    with pytest.raises(DeviceError, match=f"cannot write {cache}/pool: .*set MOBILENET_TVM_CACHE"):
        link(kernel, tmp_path / "kernels.so", X86)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_threads_are_set_where_the_artifact_runs() -> None:
    class Library:
        def get_function(self, name: str, *, query_imports: bool) -> Callable[[int], None]:
            if name not in self.has or not query_imports:
                raise AttributeError(name)
            return lambda threads: asked.append((name, threads))

        def __init__(self, *has: str) -> None:
            self.has = has

    asked: list[object] = []

    def of_tvm(big_cores_first: int, threads: int) -> None:
        asked.append((big_cores_first, threads))

    set_threads(Library(pool.SET_THREADS), 3, of_tvm)
    set_threads(Library(), 2, of_tvm)
    assert asked == [(pool.SET_THREADS, 3), (1, 2)]
    with pytest.raises(UsageError, match="threads is 65: an artifact's own pool has 64 at most"):
        set_threads(Library(pool.SET_THREADS), 65, of_tvm)
    assert len(asked) == 2
