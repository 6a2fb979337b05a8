"""How one configuration of a task becomes a kernel: AutoTVM's way and Ansor's.

``describe`` runs in the parent and yields what can be sent; the ``build`` functions run in the
child that may die.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from mobilenet_tvm import cuda, toolchain
from mobilenet_tvm.records import Config, SearcherName, Task
from mobilenet_tvm.records.ansor_tasks import VECTOR_BYTES
from mobilenet_tvm.records.tasks import tensor_bytes
from mobilenet_tvm.search.trial import Trial

# The function of a module that goes to another machine.
SENT_NAME = "kernel"
# What TVM writes as the cost of a trial that failed.
_FAILED_COST_S = 1e10


@dataclass(frozen=True)
class Candidate:
    """One configuration, ready to be sent to another process.

    Attributes:
        searcher: whose it is.
        task: an ``autotvm.task.Task``, or a serialized computation (TVM's workload registry).
        config: index in the space, or the record line that holds Ansor's steps.
        host: TVM's target string of the host, where the kernel is for a GPU: record lines and
            ``str(target)`` leave it out.
    """

    searcher: SearcherName
    task: Any
    config: Any
    host: str | None = None


@dataclass(frozen=True)
class Kernel:
    """A compiled candidate.

    Attributes:
        function: the built module.
        arguments: its tensors, in the order that it takes them.
    """

    function: Any
    arguments: tuple[Any, ...]

    @property
    def result(self) -> int:
        """Which argument the result is: Ansor's last one, AutoTVM's first."""
        return _result_of(self.arguments)


def _result_of(arguments: tuple[Any, ...]) -> int:
    from tvm.te import PlaceholderOp

    (result,) = (i for i, a in enumerate(arguments) if not isinstance(a.op, PlaceholderOp))
    return int(result)


def describe(task: Task, config: Config) -> Candidate:
    """What a child needs to build one configuration."""
    host = getattr(task.handle.target, "host", None)
    host = None if host is None else str(host)
    if task.searcher == "autotvm":
        return Candidate("autotvm", task.handle, config, host)
    toolchain.activate()
    from tvm.auto_scheduler.workload_registry import serialize_workload_registry_entry

    entry = serialize_workload_registry_entry(task.key)
    return Candidate("ansor", entry, ansor_line(task, str(config)), host)


def build(candidate: Candidate) -> Kernel:
    """Compile a candidate as the model would contain it."""
    target, schedule, arguments = _schedule(candidate, as_in_model=True)
    return _compile(target, schedule, arguments)


def build_to_check(candidate: Candidate) -> Kernel:
    """Compile a candidate so that it takes the arguments that its reference kernel takes.

    Ansor's layout of the weights, which the model changes beforehand, is left out.
    """
    return _compile(*_schedule(candidate, as_in_model=False))


def build_reference(candidate: Candidate, host: str | None = None) -> Kernel:
    """Compile what a candidate is to be compared with: its computation with no schedule.

    Of a GPU's, which cannot run that, it runs on this machine's CPU.

    Args:
        candidate: whose.
        host: a target to compile for in place of the candidate's own.
    """
    import tvm
    from tvm import te

    target, _, arguments = _schedule(candidate, as_in_model=False)
    if host is None and is_gpu(target):
        host = "llvm"
    target = tvm.target.Target(host) if host else target
    return _compile(target, te.create_schedule(arguments[_result_of(arguments)].op), arguments)


def _schedule(candidate: Candidate, *, as_in_model: bool) -> tuple[Any, Any, tuple[Any, ...]]:
    """Target, schedule and arguments."""
    toolchain.activate()
    from tvm import autotvm

    import mobilenet_tvm.schedules  # noqa: F401  (registers our templates)

    if candidate.searcher == "autotvm":
        handle = candidate.task
        # Templates then take the layout they want as their input, as they find it in the model.
        before, autotvm.GLOBAL_SCOPE.in_tuning = autotvm.GLOBAL_SCOPE.in_tuning, True
        try:
            with handle.target:
                schedule, arguments = handle.instantiate(handle.config_space.get(candidate.config))
        finally:
            autotvm.GLOBAL_SCOPE.in_tuning = before
        return with_host(handle.target, candidate.host), schedule, tuple(arguments)

    from tvm.auto_scheduler.compute_dag import LayoutRewriteOption
    from tvm.auto_scheduler.measure import recover_measure_input
    from tvm.auto_scheduler.measure_record import load_record_from_string
    from tvm.auto_scheduler.workload_registry import deserialize_workload_registry_entry

    deserialize_workload_registry_entry(candidate.task)
    given = recover_measure_input(load_record_from_string(candidate.config)[0])
    task = given.task
    rewrite = task.layout_rewrite_option if as_in_model else LayoutRewriteOption.NO_REWRITE
    with task.target:
        schedule, arguments = task.compute_dag.apply_steps_from_state(
            given.state, layout_rewrite=rewrite
        )
    return with_host(task.target, candidate.host), schedule, tuple(arguments)


def _compile(
    target: Any, schedule: Any, arguments: tuple[Any, ...], name: str = "default_function"
) -> Kernel:
    import tvm

    import mobilenet_tvm.schedules

    config = mobilenet_tvm.schedules.pass_config(toolchain.pass_config())
    if is_gpu(target):
        cuda.activate()
        # After the last pass of TVM's that allocates memory or splits loops.
        config["tir.add_lower_pass"] = [(3, limits_pass(target))]
    with target, tvm.transform.PassContext(config=config):
        try:
            built = tvm.build(schedule, list(arguments), target=target, name=name)
        except tvm.TVMError as error:
            if _VIOLATED not in str(error):
                raise
            raise RuntimeError(_violations(str(error))) from None
        except cuda.CudaError as error:  # NVRTC refuses it: in the parent that would end the run
            raise RuntimeError(str(error)) from None
    return Kernel(built, arguments)


# What TVM's pass says of a kernel that needs more than the GPU has, and the lines that say of what.
_VIOLATED = "GPU constraint(s) violated:"
_TOO_MUCH = re.compile(r"^\s*((?:Used|Extent of|Number of) .*\)) *;?$", re.MULTILINE)
# CUDA C++ Programming Guide, "Compute Capabilities": of any GPU.
_MOST_THREADS_Z = 64


def is_gpu(target: Any) -> bool:
    """Whether a TVM target's kernels run on an NVIDIA GPU."""
    return str(target.kind.name) == "cuda"


def with_host(target: Any, host: str | None) -> Any:
    """A TVM target with that host; as it is where that is None."""
    import tvm

    return target if host is None else tvm.target.Target(target, host=host)


def limits_pass(target: Any) -> Any:
    """A pass over lowered functions that raises where one exceeds the target's limits.

    NVRTC lets shared memory and threads pass that no GPU would launch.
    """
    import tvm

    threads = int(target.attrs["max_threads_per_block"])
    return tvm.get_global_func("tir.transform.VerifyGPUCode")(
        {
            "max_shared_memory_per_block": int(target.attrs["max_shared_memory_per_block"]),
            "max_threads_per_block": threads,
            "max_thread_x": threads,
            "max_thread_y": threads,
            "max_thread_z": _MOST_THREADS_Z,
            "max_vector_bytes": VECTOR_BYTES,
        }
    )


def _violations(text: str) -> str:
    """What TVM's pass says is too much, in one line."""
    return f"it exceeds the GPU's limits: {'; '.join(dict.fromkeys(_TOO_MUCH.findall(text)))}"


def build_to_send(candidate: Candidate, weight_bytes: int, *, as_in_model: bool) -> Kernel:
    """Compile a candidate for another machine: a module with one function, ``SENT_NAME``.

    Args:
        candidate: the configuration.
        weight_bytes: size of the weights among its arguments.
        as_in_model: as ``build``, or else as ``build_to_check`` does.
    """
    target, schedule, arguments = _schedule(candidate, as_in_model=as_in_model)
    return _compile(target, schedule, _activation_first(arguments, weight_bytes), SENT_NAME)


def build_reference_here(candidate: Candidate, weight_bytes: int) -> Kernel:
    """As ``build_reference``, to run on this machine, with the arguments of ``build_to_send``.

    The computation stays the one that the candidate's own target asks for: its layouts, say.
    """
    import tvm
    from tvm import te

    _, _, arguments = _schedule(candidate, as_in_model=False)
    naive = te.create_schedule(arguments[_result_of(arguments)].op)
    return _compile(tvm.target.Target("llvm"), naive, _activation_first(arguments, weight_bytes))


def build_launch(target: str, host: str | None) -> Any:
    """The smallest kernel, ``SENT_NAME(array)``: one thread adds one to ``[1] float32``.

    What it takes in a row of launches is what a launch takes.
    """
    toolchain.activate()
    import tvm
    from tvm import te

    number = te.placeholder((1,), "float32", name="number")
    more = te.compute((1,), lambda i: number[i] + 1.0, name="more")
    schedule = te.create_schedule(more.op)
    schedule[more].bind(schedule[more].op.axis[0], te.thread_axis("threadIdx.x"))
    place = tvm.tir.decl_buffer((1,), "float32", name="place")
    cuda.activate()
    return tvm.build(
        schedule,
        [place],
        target=tvm.target.Target(target, host=host),
        name=SENT_NAME,
        binds={number: place, more: place},
    )


def _activation_first(arguments: tuple[Any, ...], weight_bytes: int) -> tuple[Any, ...]:
    """The arguments with what the layer before wrote in front, and the result at the end.

    TVM's own functions that flush a cache spare the first argument.
    """
    result = arguments[_result_of(arguments)]
    inputs = [tensor for tensor in arguments if tensor is not result]
    first = next((t for t in inputs if tensor_bytes(t.shape) != weight_bytes), inputs[0])
    return (first, *(tensor for tensor in inputs if tensor is not first), result)


def ansor_line(task: Task, steps: str, trial: Trial | None = None) -> str:
    """An Ansor configuration as TVM's own record line (auto_scheduler/measure_record.cc).

    Args:
        task: whose it is.
        steps: the transform steps, JSON text.
        trial: its outcome; None for a line that only carries the steps.
    """
    costs = trial.costs_s if trial is not None else ()
    failure = trial.failure if trial is not None else None
    return json.dumps(
        {
            "i": [_ansor_head(task.handle), [[], json.loads(steps)]],
            "r": [
                list(costs) or [_FAILED_COST_S],
                0 if failure is None else failure.measure_error,
                trial.elapsed_s if trial is not None else 0.0,
                int(time.time()),
            ],
            "v": "v0.6",
        }
    )


def ansor_steps(task: Task, state: Any) -> str:
    """The transform steps of one of Ansor's states as a ``Config``."""
    return json.dumps(_dumped(task.handle, state)["i"][1][1], separators=(",", ":"))


def ansor_state(task: Task, steps: str) -> Any:
    """One of Ansor's states from its transform steps."""
    toolchain.activate()
    from tvm.auto_scheduler.measure_record import load_record_from_string

    given, _ = load_record_from_string(ansor_line(task, steps))
    return task.handle.compute_dag.infer_bound_from_state(given.state).state_object


def _ansor_head(handle: Any) -> Any:
    """What Ansor's record lines of a task begin with: workload, target, hardware ..."""
    return _dumped(handle, handle.compute_dag.get_init_state())["i"][0]


def _dumped(handle: Any, state: Any) -> Any:
    toolchain.activate()
    from tvm.auto_scheduler.measure import MeasureInput, MeasureResult
    from tvm.auto_scheduler.measure_record import dump_record_to_string

    result = MeasureResult([_FAILED_COST_S], 0, "", 0.0, 0.0)
    return json.loads(dump_record_to_string(MeasureInput(handle, state), result))
