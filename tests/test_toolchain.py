"""Each work-around: without it something fails, with it it does not.

TVM reads its environment once, when it is loaded, so most tests run a small script in a
process of their own: bare (plain TVM, as if this package were not there) or prepared.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mobilenet_tvm import toolchain

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and prctl are Linux's")


def script(
    body: str, *, prepared: bool = True, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process, with nothing of this process's preparation in it."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LD_PRELOAD", "TOPHUB_LOCATION", "TVM_BIND_THREADS")
    }
    code = ("import mobilenet_tvm\n" if prepared else "") + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def answer(body: str, **how: Any) -> str:
    """Last line that a script printed; it must succeed."""
    done = script(body, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


# --- TopHub


# Builds for a board, with the network replaced by an error.
BUILD_FOR_A_BOARD = """
    import numpy as np, tvm
    from tvm import autotvm, relay
    from tvm.autotvm import tophub

    def offline(*_arguments, **_options):
        raise OSError("no network")

    tophub.download = offline
    x = relay.var("x", shape=(1, 8, 8, 8))
    conv = relay.nn.conv2d(x, relay.const(np.ones((8, 8, 3, 3), "float32")), padding=1)
    autotvm.GLOBAL_SCOPE.silent = True
    with tvm.transform.PassContext(opt_level=3):
        relay.build(
            tvm.IRModule.from_expr(relay.Function([x], conv)),
            target="llvm -device=arm_cpu -mtriple=aarch64-linux-gnu",
        )
    print("built")
"""


@pytest.mark.slow
def test_tophub_an_offline_build_for_a_board(tmp_path: Path) -> None:
    bare = script(BUILD_FOR_A_BOARD, prepared=False, HOME=str(tmp_path))
    assert bare.returncode != 0
    assert "no network" in bare.stderr
    assert answer(BUILD_FOR_A_BOARD, HOME=str(tmp_path)) == "built"


def test_tophub_is_off_in_workers_too() -> None:
    found = answer("""
        import os
        from mobilenet_tvm import toolchain
        print(toolchain.Worker().call(os.getenv, "TOPHUB_LOCATION", timeout_s=30))
    """)
    assert found == "NONE"


def test_tophub_a_users_own_location_stays() -> None:
    body = "import os; print(os.environ['TOPHUB_LOCATION'])"
    assert answer(body, TOPHUB_LOCATION="/my/logs") == "/my/logs"


# --- threads bound to cores


# When the tests are collected: later TVM may have bound this very thread.
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}

# The cores that TVM's pool leaves to the thread that starts it, of a process bound to one.
START_THE_POOL = """
    import os
    os.sched_setaffinity(0, [{core}])
    {prepare}
    import tvm
    tvm.get_global_func("runtime.config_threadpool")(1, 1)
    print(*os.sched_getaffinity(0))
"""


@pytest.mark.skipif(
    len(CORES) < 2, reason="needs two cores, and a system that binds to one of them"
)
def test_a_run_bound_to_a_core_stays_on_it() -> None:
    last = str(max(CORES))
    bare = answer(START_THE_POOL.format(core=last, prepare=""), prepared=False)
    assert bare != last, "TVM keeps to its cores by now: the work-around can go"
    prepared = START_THE_POOL.format(core=last, prepare="import mobilenet_tvm")
    assert answer(prepared, prepared=False) == last
    assert answer(prepared, prepared=False, TVM_BIND_THREADS="1") == bare


@pytest.mark.skipif(0 not in CORES, reason="needs the machine's first core")
def test_a_child_of_a_thread_that_tvm_bound_may_use_all_cores() -> None:
    body = "import os; print(os.getenv('TVM_BIND_THREADS'))"
    bound = f"import os; os.sched_setaffinity(0, [0]); import mobilenet_tvm; {body}"
    assert answer(bound, prepared=False) == "None"


# --- the debug-info library


# A configuration of TVM's stock depthwise template (V1's first layer) whose index vector TVM
# binds with a let; LLVM >= 21 rejects the debug information it emits for that.
BUILD_A_CONFIG = """
    import tvm, tvm.relay
    from tvm import autotvm

    ARGUMENTS = (
        ("TENSOR", (1, 32, 112, 112), "float32"), ("TENSOR", (32, 1, 3, 3), "float32"),
        (1, 1), (1, 1, 1, 1), (1, 1), "NCHW", "NCHW", "float32",
    )
    KNOBS = {"tile_ic": 4, "tile_oc": 8, "tile_ow": 8, "unroll_kw": False}

    def build(config=None):
        import tvm, tvm.relay
        from tvm import autotvm

        autotvm.GLOBAL_SCOPE.in_tuning = True
        task = autotvm.task.create(
            "depthwise_conv2d_NCHWc.x86", ARGUMENTS, "llvm -mcpu=skylake-avx512"
        )
        entity = next(
            entity
            for entity in map(task.config_space.get, range(len(task.config_space)))
            if all(
                (entity[knob].size[-1] if knob != "unroll_kw" else entity[knob].val) == value
                for knob, value in KNOBS.items()
            )
        )
        with task.target, tvm.transform.PassContext(config=config or {}):
            schedule, arguments = task.instantiate(entity)
            tvm.build(schedule, arguments, target=task.target)
        return "built"
"""
REJECTED = "location of #dbg_declare must be a pointer or int"


@LINUX
def test_debug_info_a_depthwise_config() -> None:
    bare = script(BUILD_A_CONFIG + "    print(build())", prepared=False)
    assert bare.returncode != 0
    assert REJECTED in bare.stderr
    assert answer(BUILD_A_CONFIG + "    print(build())") == "built"


@LINUX
@pytest.mark.slow
def test_debug_info_a_depthwise_config_in_a_worker() -> None:
    call = """
    from tvm.contrib.popen_pool import PopenWorker
    worker = PopenWorker()
    worker.send(build)
    print(worker.recv())
    """
    bare = script(BUILD_A_CONFIG + call, prepared=False)
    assert bare.returncode != 0
    assert REJECTED in bare.stderr
    assert answer(BUILD_A_CONFIG + call) == "built"
    ours = """
    from mobilenet_tvm import toolchain
    print(toolchain.Worker().call(build, timeout_s=60))
    """
    assert answer(BUILD_A_CONFIG + ours) == "built"


IMPORT_AUTO_PAD = """
    import numpy as np, onnx
    from onnx import TensorProto, helper, numpy_helper
    from tvm import relay

    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3]
    )
    shapes = {"x": (1, 3, 9, 9), "y": None}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    relay.frontend.from_onnx(model, {"x": (1, 3, 9, 9)})
    print("imported")
"""


@LINUX
def test_debug_info_an_import_with_auto_pad() -> None:
    bare = script(IMPORT_AUTO_PAD, prepared=False)
    assert bare.returncode != 0
    assert "#dbg_declare" in bare.stderr
    assert answer(IMPORT_AUTO_PAD) == "imported"


@LINUX
def test_debug_info_with_no_cache_the_pass_option_cures_the_config() -> None:
    found = answer(
        BUILD_A_CONFIG
        + """
    from mobilenet_tvm import toolchain
    assert toolchain.pass_config() == {"tir.disable_cse_tir": True}
    print(build(toolchain.pass_config()))
    """,
        MOBILENET_TVM_CACHE="/proc/none",
    )
    assert found == "built"


PROBLEMS = """
    import os
    from mobilenet_tvm import toolchain
    print(toolchain.pass_config(), [(p.what, p.mend) for p in toolchain.problems()])
"""


@LINUX
def test_problems_none_here() -> None:
    assert answer(PROBLEMS) == "{'tir.disable_cse_tir': True} []"


@LINUX
@pytest.mark.parametrize("folder", ["/proc/none", "/dev/null", "{tmp}/with space", "{tmp}/a:b"])
def test_problems_an_unusable_cache(folder: str, tmp_path: Path) -> None:
    done = script(PROBLEMS, MOBILENET_TVM_CACHE=folder.format(tmp=tmp_path))
    assert done.returncode == 0
    assert done.stderr == ""  # the loader complains there of a damaged LD_PRELOAD
    assert "tir.disable_cse_tir" in done.stdout
    assert "debug-info library is not active" in done.stdout
    assert f"make {folder.format(tmp=tmp_path)} writable" in done.stdout


@LINUX
def test_problems_tvm_imported_first() -> None:
    found = answer(f"import tvm\nimport mobilenet_tvm\n{textwrap.dedent(PROBLEMS)}", prepared=False)
    assert "import mobilenet_tvm before tvm" in found
    assert "tir.disable_cse_tir" in found


@LINUX
def test_debug_info_the_library_is_built_once_in_any_folder(tmp_path: Path) -> None:
    body = "import os; print(os.environ['LD_PRELOAD'])"
    first = answer(body, cwd=tmp_path, MOBILENET_TVM_CACHE="cache", LD_PRELOAD="/lib/other.so")
    library, other = first.split(":")
    assert Path(library).parent == tmp_path / "cache"  # absolute, though it was given relative
    assert other == "/lib/other.so"
    built = Path(library).stat().st_mtime_ns
    answer(body, MOBILENET_TVM_CACHE=str(tmp_path / "cache"))
    assert Path(library).stat().st_mtime_ns == built
    assert [path.name for path in (tmp_path / "cache").glob("*.so")] == [Path(library).name]


@LINUX
def test_debug_info_a_library_that_is_gone_is_not_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/gone/no_debug_info-x86_64-1.so")
    assert toolchain.pass_config() == {"tir.disable_cse_tir": True}


# --- libinfo


LIBINFO = """
    import numpy as np, tvm
    from tvm import relay, support
    calls = 0
    original = support.get_global_func

    def counting(name, *arguments, **options):
        global calls
        calls += name == "support.GetLibInfo"
        return original(name, *arguments, **options)

    support.get_global_func = counting
    x = relay.var("x", shape=(1, 8, 8, 8))
    out = relay.nn.dense(relay.nn.batch_flatten(relay.nn.relu(x)), relay.const(np.ones((3, 512))))
    out = relay.nn.dense(
        relay.nn.batch_flatten(relay.exp(x)), relay.const(np.ones((3, 512), "float32"))
    )
    relay.build(tvm.IRModule.from_expr(relay.Function([x], out)), target="llvm")
    print(calls)
"""


def test_libinfo_is_asked_for_once() -> None:
    assert int(answer(LIBINFO, prepared=False, TOPHUB_LOCATION="NONE")) > 5
    activate = "from mobilenet_tvm import toolchain\ntoolchain.activate()\n"
    assert int(answer(activate + textwrap.dedent(LIBINFO))) <= 1


def test_libinfo_is_cached_under_every_name_that_took_it() -> None:
    found = answer("""
        from mobilenet_tvm import toolchain
        toolchain.activate()
        import tvm.relay
        from tvm import support
        from tvm.relay.backend import te_compiler
        assert hasattr(support.libinfo, "cache_info")
        print(te_compiler.libinfo is support.libinfo, toolchain.llvm_version())
    """)
    assert found.startswith("True 22.1")


# --- shadowing


def assert_shadowed(done: subprocess.CompletedProcess[str], *told: str) -> None:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    for text in told:
        assert text in line


SHADOWED = """
    from mobilenet_tvm import toolchain
    try:
        toolchain.activate()
    except toolchain.ShadowedTvmError as error:
        assert error.exit_code == 2
        print(error)
"""


def test_shadowing_by_a_tvm_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "tvm").mkdir()
    (tmp_path / "tvm" / "__init__.py").write_text("raise RuntimeError('the wrong tvm')")
    done = script(SHADOWED, PYTHONPATH=str(tmp_path))
    assert_shadowed(done, str(tmp_path / "tvm"), "PYTHONPATH")


@pytest.mark.parametrize("name", ["apache-tvm", "apache-tvm-cu121"])
def test_shadowing_by_another_package(tmp_path: Path, name: str) -> None:
    info = tmp_path / f"{name.replace('-', '_')}-0.25.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.25.0\n")
    done = script(SHADOWED, PYTHONPATH=str(tmp_path))
    assert_shadowed(
        done,
        f"{name} 0.25.0 is installed",
        f"pip uninstall -y {name} {toolchain.TVM_PACKAGE} &&",
        f"--no-deps {toolchain.TVM_PACKAGE}=={toolchain.TVM_VERSION}.",
    )


def test_shadowing_the_files_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(toolchain.ShadowedTvmError, match=r"are gone.*--force-reinstall"):
        toolchain.check_not_shadowed()


def test_shadowing_is_a_problem_in_words(tmp_path: Path) -> None:
    (tmp_path / "tvm").mkdir()
    (tmp_path / "tvm" / "__init__.py").write_text("")
    found = answer(PROBLEMS, PYTHONPATH=str(tmp_path))
    assert "the pinned TVM is not usable" in found


# --- Worker


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[toolchain.Worker]:
    made = toolchain.Worker()
    yield made
    made.close()


@pytest.fixture
def worker(shared_worker: toolchain.Worker) -> toolchain.Worker:
    shared_worker.call(os.getpid, timeout_s=60)  # started, so that the tests time their calls
    return shared_worker


def ends(function: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Whether ``function`` comes true soon."""
    deadline = time.monotonic() + within_s
    while not function():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_worker_returns_and_raises(worker: toolchain.Worker) -> None:
    assert worker.call(divmod, 7, 2, timeout_s=10) == (3, 1)
    first = worker.call(os.getpid, timeout_s=10)
    with pytest.raises(ZeroDivisionError):
        worker.call(divmod, 1, 0, timeout_s=10)
    assert worker.call(os.getpid, timeout_s=10) == first != os.getpid()


def test_worker_times_out_and_starts_again(worker: toolchain.Worker) -> None:
    first = worker.call(os.getpid, timeout_s=10)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        worker.call(time.sleep, 60, timeout_s=0.3)
    assert time.monotonic() - start < 0.3 + toolchain.WORKER_GRACE_S
    assert ends(lambda: gone(first))
    assert worker.call(os.getpid, timeout_s=10) != first


def _hold_pythons_lock() -> None:
    import ctypes

    ctypes.PyDLL(None).sleep(60)


def test_worker_times_out_though_native_code_keeps_pythons_lock(
    worker: toolchain.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "WORKER_GRACE_S", 0.3)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        worker.call(_hold_pythons_lock, timeout_s=0.3)
    assert time.monotonic() - start < 10
    assert worker.call(divmod, 7, 2, timeout_s=10) == (3, 1)


def test_worker_survives_a_crash(worker: toolchain.Worker) -> None:
    with pytest.raises(ChildProcessError):
        worker.call(os.abort, timeout_s=10)
    assert worker.call(divmod, 7, 2, timeout_s=10) == (3, 1)


@LINUX
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_worker_ignores_what_is_sent_to_all(worker: toolchain.Worker, sent: int) -> None:
    pid = worker.call(os.getpid, timeout_s=10)
    os.kill(pid, sent)
    assert worker.call(os.getpid, timeout_s=10) == pid


def test_worker_takes_no_half_sent_call(worker: toolchain.Worker) -> None:
    with pytest.raises((TypeError, AttributeError)):
        worker.call(print, threading.Lock(), timeout_s=10)  # cannot be pickled
    assert worker.call(divmod, 7, 2, timeout_s=10) == (3, 1)


@LINUX
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "pass"])
def test_worker_dies_with_its_parent(end: str) -> None:
    """While it is busy too, when it does not see its pipe close."""
    done = script(f"""
        import os, signal, threading, time
        from mobilenet_tvm import toolchain
        worker = toolchain.Worker()
        print(worker.call(os.getpid, timeout_s=30), flush=True)
        worker._worker.send(time.sleep, (60,))
        {end}
    """)
    assert ends(lambda: gone(int(done.stdout)))


def test_worker_ctrl_c_ends_the_call_and_the_child() -> None:
    done = script("""
        import os, signal, threading, time
        from mobilenet_tvm import toolchain
        worker = toolchain.Worker()
        print(worker.call(os.getpid, timeout_s=30), flush=True)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            worker.call(time.sleep, 60, timeout_s=50)
        except KeyboardInterrupt:
            print(worker.call(divmod, 7, 2, timeout_s=30))
    """)
    pid, result = done.stdout.splitlines()
    assert result == "(3, 1)"
    assert ends(lambda: gone(int(pid)))
