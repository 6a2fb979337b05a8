"""TVM's own schedules with the best records of a stock search: what tuning gives without ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mobilenet_tvm import frontend, targets
from mobilenet_tvm.bench.alternate import Contender
from mobilenet_tvm.bench.cpu_peers import TVM_PEERS, Field
from mobilenet_tvm.bench.peers import Absent
from mobilenet_tvm.build.compile import compile_model
from mobilenet_tvm.build.manifest import Manifest
from mobilenet_tvm.build.plans import Plan, make_plans
from mobilenet_tvm.cli.logs_given import read_logs
from mobilenet_tvm.errors import DeviceError, UsageError
from mobilenet_tvm.records import Record, Task, choose_records
from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks
from mobilenet_tvm.records.merge import Log
from mobilenet_tvm.records.serving import current
from mobilenet_tvm.records.tasks import extract_tasks

# What searches for each row's records.
_SEARCHES = {
    "tvm-autotvm": "--tuner autotvm --schedules stock",
    "tvm-ansor": "--tuner ansor",
}


def build_stock_tuned(
    names: Sequence[str],
    manifest: Manifest,
    onnx: Path,
    logs: Path | None,
    folder: Path,
    *,
    threads: Sequence[int],
    warn: Callable[[str], None],
    on_step: Callable[[str], None] = lambda step: None,
) -> Field:
    """The rows of those of ``names`` (keys of ``TVM_PEERS``) that there are records for.

    Only times that this machine measured count, and those of different numbers of threads do not
    compare: where ``threads`` has several, each that there are records of makes a row of its own,
    whose label says so.

    Args:
        names: of rows.
        manifest: the artifact's.
        onnx: the model's file.
        logs: a tuning log, or a folder of them; None makes every row absent.
        folder: where the builds go.
        threads: the numbers of threads that the rows are measured with.
        warn: told of logs of elsewhere, and of lines that cannot be read.
        on_step: called with what is done next.

    Raises:
        UsageError: the model or a log cannot be used.
    """
    if not names:
        return Field((), ())
    if logs is None:
        return Field(
            (), tuple(_absent(name, "no --tvm-logs was given", manifest) for name in names)
        )
    records = _records_by_threads(read_logs([logs], warn), threads, warn)
    info, preset = manifest.model, targets.resolve(manifest.target.preset)
    model = frontend.to_relay(
        frontend.clean(frontend.read(onnx), shape=info.shape, batch=info.batch)
    )
    contenders, absent = [], []
    for name in names:
        searcher = name.removeprefix("tvm-")
        built = 0
        for count, known in records.items():
            label = TVM_PEERS[name] + (
                f" (tuned with --threads {count})" if len(threads) > 1 else ""
            )
            on_step(f"compiling {label}")
            # Its own tasks: ours have other templates' names, so no record of ours fits them.
            tasks = extract_tasks(model.module, preset, schedules="stock")
            plan = None
            if name == "tvm-ansor":
                tasks = (*tasks, *extract_ansor_tasks(model.module, preset, threads=count))
            mine = current(tasks, [one for one in known if one.searcher == searcher])
            best = choose_records(tasks, mine)
            if name == "tvm-ansor":
                plan = _all_ansor(model.module, tasks, best)
            if not best or (name == "tvm-ansor" and plan is None):
                continue
            built += 1
            path = folder / f"{name}.{count}-threads.so"
            try:
                compile_model(
                    model,
                    preset,
                    path,
                    info=info,
                    tasks=tasks,
                    best=best,
                    schedules="stock",
                    plan=plan,
                )
            except (DeviceError, UsageError) as error:
                absent.append(_absent(name, f"it does not compile: {error}", manifest))
                continue
            contenders.append(Contender(label, "artifact", str(path), peer=name))
        if not built:
            counts = " or ".join(map(str, threads))
            why = (
                f"{logs} has no record of it for this model on {preset.name}, measured on this "
                f"machine with --threads {counts}"
            )
            absent.append(_absent(name, why, manifest))
    return Field(tuple(contenders), tuple(absent))


def _records_by_threads(
    logs: Sequence[Log], threads: Sequence[int], warn: Callable[[str], None]
) -> dict[int, list[Record]]:
    """The records that this machine measured, by the number of threads, in the order of
    ``threads``; what else the logs hold is named."""
    found: dict[int, list[Record]] = {count: [] for count in threads}
    for log in logs:
        run = log.run
        if run is None:
            warn(f"{log.path} has no run file that says where it was measured: left out")
        elif run.timing != "measured" or run.cpu != targets.cpu_name():
            warn(
                f"{log.path} was {run.timing} on {run.cpu}, not measured on this machine: left out"
            )
        elif run.threads in found:
            found[run.threads] += log.records
    return {count: known for count, known in found.items() if known}


def _all_ansor(module: object, tasks: Sequence[Task], best: Mapping[str, Record]) -> Plan | None:
    """The plan with most of Ansor's layers; None where it has none."""
    plans = make_plans(module, tasks, best)
    plan = max(plans, key=lambda plan: len(plan.positions))
    return plan if plan.positions else None


def _absent(name: str, why: str, manifest: Manifest) -> Absent:
    return Absent(
        TVM_PEERS[name],
        why,
        f"python -m mobilenet_tvm.tune --target {manifest.target.preset} {_SEARCHES[name]} "
        f"{_model_options(manifest)} -o DIR, then --tvm-logs DIR",
    )


def _model_options(manifest: Manifest) -> str:
    """What names the artifact's model to ``tune``."""
    info = manifest.model
    if info.zoo is None:
        return f"--onnx {info.path or 'FILE'}"
    named = {**info.zoo}
    options = [f"--model {named.pop('name')}"]
    options += [
        f"--{key} {named[key]}" for key in ("alpha", "resolution", "classes") if named.get(key)
    ]
    return " ".join(options)
