"""What a tuning run's children do for a board: one kind builds for it, one kind talks to it.

Both may be killed. A builder, because LLVM may take minutes or abort; a talker, because a call
over a connection whose other end lost its power does not return. Each function here is one call
of a ``toolchain.Worker``, and what it must keep between calls it keeps in this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobilenet_tvm.devices.cuda import AS_IN_THE_MODEL, FLUSH, ServedGpu
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.runtime.module import set_threads
from mobilenet_tvm.search.candidates import (
    SENT_NAME,
    Candidate,
    Kernel,
    build_launch,
    build_reference_here,
    build_to_send,
)
from mobilenet_tvm.search.gpu import call_once, time_launch, time_on_gpu
from mobilenet_tvm.search.measure import (
    HOPELESS,
    MAX_CALLS,
    MEASURE_S,
    MIN_CALLS,
    random_data,
)

if TYPE_CHECKING:
    from mobilenet_tvm.cuda.codegen import Compiled
    from mobilenet_tvm.devices.rpc import BoardLostError, BoardSession, RpcDevice
    from mobilenet_tvm.targets import Preset

# A kernel so slow that its calls would take longer than this is timed by fewer of them.
_ENOUGH_S = 2.0
_FEW_CALLS = 3
# In TVM's runtime: writes back and drops every argument's cache lines but the first one's.
_FLUSH = "cache_flush_cpu_non_first_arg"


@dataclass(frozen=True)
class Sent:
    """A candidate linked for the board.

    ``tensors`` are shape and dtype of each argument, the last one the result. ``sources`` are of
    a GPU's images: CUDA C and SHA-256.
    """

    path: Path
    tensors: tuple[tuple[tuple[int, ...], str], ...]
    sources: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Opened:
    """A session: the board's name, what its CPU is, and whether its times mean anything.

    ``machine``, ``features`` and ``cores`` are None where the board does not tell: a stock server.
    ``cpu`` is the GPU where things run on that, and ``gpu`` what is known of it.
    """

    board: str
    cpu: str
    timing: Literal["measured", "emulated"] = "measured"
    machine: str | None = None
    features: tuple[str, ...] | None = None
    cores: int | None = None
    gpu: ServedGpu | None = None


@dataclass(frozen=True)
class NoBoard:
    """None came free in time, and why."""

    why: str


@dataclass(frozen=True)
class Lost:
    """The session died. ``how``: the board itself says that the kernel crashed or took too long
    there; or the connection broke (``gone``), or nothing comes any more (``silent``)."""

    how: Literal["crashed", "too long", "gone", "silent"]
    why: str


def build_for_board(
    candidate: Candidate,
    preset: Preset,
    path: Path,
    weight_bytes: int,
    *,
    as_in_model: bool,
    linker: Sequence[str] | None,
) -> Sent:
    """Builder: compile a candidate and link it into ``path``."""
    from mobilenet_tvm.build.link import link
    from mobilenet_tvm.cuda import codegen

    with codegen.collecting() as compiled:
        kernel = build_to_send(candidate, weight_bytes, as_in_model=as_in_model)
    link(kernel.function, path, preset, linker=linker)
    return Sent(path, _tensors(kernel), _sources(compiled))


def build_launch_for_board(preset: Preset, path: Path, linker: Sequence[str] | None) -> Sent:
    """Builder: the smallest kernel of a GPU, linked into ``path``."""
    from mobilenet_tvm.build.link import link
    from mobilenet_tvm.cuda import codegen

    with codegen.collecting() as compiled:
        module = build_launch(preset.target, preset.host)
    link(module, path, preset, linker=linker)
    return Sent(path, (((1,), "float32"),), _sources(compiled))


def _sources(compiled: Sequence[Compiled]) -> tuple[tuple[str, str], ...]:
    from mobilenet_tvm.cuda import sources

    return tuple((one.source, sources.digest(one.image)) for one in compiled)


def _tensors(kernel: Kernel) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple((tuple(map(int, t.shape)), str(t.dtype)) for t in kernel.arguments)


def reference_result(candidate: Candidate, weight_bytes: int) -> Any:
    """Builder: what the unscheduled computation makes of the random inputs, on this machine."""
    import tvm

    kernel = build_reference_here(candidate, weight_bytes)
    data = random_data(_tensors(kernel), len(kernel.arguments) - 1)
    arrays = [tvm.nd.array(one, tvm.cpu(0)) for one in data]
    kernel.function(*arrays)
    return arrays[-1].numpy()


# The session that is open, one at a time.
_sessions: list[BoardSession] = []


def open_board(device: RpcDevice, session_s: float, wait_s: float) -> Opened | NoBoard | Lost:
    """Talker: open a session that the board ends after ``session_s`` at the latest."""
    from mobilenet_tvm.devices.rpc import BoardLostError

    close_board()
    try:
        session = device.open(session_timeout_s=session_s, wait_s=wait_s)
        _sessions.append(session)
        info = session.info()
        if info is None:
            return Opened(session.board, session.cpu_name(), session.timing)
        told = (info.machine, info.features, info.cores, info.gpu)
        return Opened(session.board, session.cpu_name(), session.timing, *told)
    except BoardLostError as error:
        return _lost(error)
    except DeviceError as error:
        return NoBoard(str(error))


def close_board() -> None:
    """Talker: end the session."""
    while _sessions:
        _sessions.pop().close()


def time_on_board(
    sent: Sent, threads: int, best_s: float, model_bytes: int
) -> tuple[float, ...] | Lost:
    """Talker: time a kernel in the open session. Seconds of one call each.

    Before every call what the kernel does not find in the caches in the model is flushed from
    them, by the one function for it that every TVM runtime has: it drops the weights (since they
    were used last, all other layers' went by) and spares the input, which the layer before has
    just written. The result is dropped too, which a model's arena may still hold; and on 32-bit
    ARM, which lets no program do so, nothing is. On a GPU see ``search.gpu``.

    An emulator is only asked whether the kernel runs.
    """

    def time_it(session: BoardSession) -> tuple[float, ...]:
        module, arrays = _load(session, sent, threads)
        device = arrays[0].device

        def time_calls(calls: int) -> tuple[float, ...]:
            timer = module.time_evaluator(
                SENT_NAME, device, number=1, repeat=calls, f_preproc=_FLUSH
            )
            return tuple(timer(*arrays).results)

        if session.gpu:
            if session.timing == "emulated":
                return (call_once(module[SENT_NAME], arrays),)
            return time_on_gpu(
                module,
                SENT_NAME,
                arrays,
                model_bytes=model_bytes,
                best_s=best_s,
                prepare=_prepare(session),
            )
        if session.timing == "emulated":
            return time_calls(1)
        once = min(first := time_calls(_FEW_CALLS))
        if once > HOPELESS * best_s:
            return first
        usual = min(max(MEASURE_S / max(once, 1e-6), MIN_CALLS), MAX_CALLS)
        calls = max(_FEW_CALLS, int(min(usual, _ENOUGH_S / max(once, 1e-6))))
        # Whatever else the board does only ever adds: the faster half is the kernel's own.
        return tuple(sorted(time_calls(calls))[: (calls + 1) // 2])

    found: tuple[float, ...] | Lost = _in_session(time_it)
    return found


def _prepare(session: BoardSession) -> str:
    """What a GPU's kernel is timed after: a stock server knows only how to flush everything."""
    return FLUSH if session.info() is None else AS_IN_THE_MODEL


def launch_on_board(sent: Sent, model_bytes: int) -> float | Lost:
    """Talker: seconds that a launch takes on the board's GPU; 0 of the emulator, which has none."""

    def time_it(session: BoardSession) -> float:
        module, (array,) = _load(session, sent, 1)
        if session.timing == "emulated":
            return 0.0
        return time_launch(module, array, model_bytes=model_bytes, prepare=_prepare(session))

    found: float | Lost = _in_session(time_it)
    return found


def result_on_board(sent: Sent, threads: int) -> Any:
    """Talker: what the kernel makes of the random inputs in the open session, or ``Lost``."""

    def run(session: BoardSession) -> Any:
        module, arrays = _load(session, sent, threads)
        module[SENT_NAME](*arrays)
        return arrays[-1].numpy()

    return _in_session(run)


def _in_session(work: Callable[[BoardSession], Any]) -> Any:
    """Do some work in the open session; ``Lost`` where that died.

    Raises:
        RuntimeError: the work failed there, and the session lives on.
    """
    from mobilenet_tvm.devices.rpc import BoardLostError

    (session,) = _sessions
    try:
        with session.calls():
            return work(session)
    except BoardLostError as error:
        return _lost(error)
    except DeviceError as error:  # in the parent that would mean that there is no board
        raise RuntimeError(str(error)) from None


def _load(session: BoardSession, sent: Sent, threads: int) -> tuple[Any, list[Any]]:
    """The kernel on the board, and the random data there."""
    import tvm

    if session.gpu and session.timing == "emulated":
        for source, digest in sent.sources:
            session.add_source(source, digest)
    module, device = session.upload(sent.path), session.device()
    set_threads(module, threads, session.function("runtime.config_threadpool"))
    data = random_data(sent.tensors, len(sent.tensors) - 1)
    return module, [tvm.nd.array(one, device) for one in data]


def _lost(error: BoardLostError) -> Lost:
    if error.reason == "connection":
        return Lost("gone", str(error))
    if error.reason == "timeout":
        # Said by the board, or by us of a board that says nothing.
        silent = "did not answer" in str(error)
        return Lost("silent" if silent else "too long", str(error))
    return Lost("crashed", str(error))
