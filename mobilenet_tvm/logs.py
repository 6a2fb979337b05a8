"""``python -m mobilenet_tvm.logs``: distil, merge, count and verify tuning logs."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich_argparse import RichHelpFormatter

from mobilenet_tvm import frontend, targets
from mobilenet_tvm.cli import log_tables
from mobilenet_tvm.cli.frame import Output, VerbFailedError, run_verb
from mobilenet_tvm.cli.options import add_model_options, resolve_model
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.records import (
    Task,
    choose_records,
    extract_tasks,
    run_path,
    write_workloads,
)
from mobilenet_tvm.records import merge as merging
from mobilenet_tvm.records.ansor_tasks import labels_beside
from mobilenet_tvm.records.lines import target_text
from mobilenet_tvm.records.log import hold
from mobilenet_tvm.records.merge import Log
from mobilenet_tvm.records.replay import Replayed, count_flops, replay_records
from mobilenet_tvm.records.stats import label_of_record, summarise

DESCRIPTION = (
    "Distil (best), merge, count (stats) and verify tuning logs, AutoTVM's and Ansor's. "
    "A LOG may be a folder: it stands for all *.jsonl in it."
)
_MODEL_OPTIONS = (
    "model", "onnx", "alpha", "resolution", "classes", "seed_weights", "batch", "shape"
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The four commands and their options."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def command(name: str, run: Callable[..., dict[str, Any]], text: str) -> Any:
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=RichHelpFormatter
        )
        sub.set_defaults(run=run)
        sub.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="log, or a folder")
        # The frame's own options, which may stand behind the command as well as before it.
        for flags, what in (
            (("--json",), "print one JSON object on stdout"),
            (("-v", "--verbose"), "show tracebacks of errors"),
        ):
            sub.add_argument(*flags, action="store_true", default=argparse.SUPPRESS, help=what)
        return sub

    best = command(
        "best",
        run_best,
        "Write the fastest record of each task to FILE, and its untuned default's.",
    )
    merge = command("merge", run_merge, "Add the logs' records to FILE, the faster of two.")
    for sub in (best, merge):
        sub.add_argument(
            "-o",
            "--output",
            type=Path,
            required=True,
            metavar="FILE",
            help="the log to write, <name>.autotvm.jsonl or <name>.ansor.jsonl",
        )
        sub.add_argument(
            "--assume-same-machine",
            action="store_true",
            help="take logs without a run file for measured on the other logs' machine",
        )
    stats = command("stats", run_stats, "Count trials and failures, show each task's best.")
    stats.add_argument(
        "--peak",
        type=_positive,
        metavar="GFLOPS",
        help="of the cores the logs were measured with (default: measured, on the logs' own CPU)",
    )
    verify = command("verify", run_verify, "Say which records the installed TVM would not use.")
    for sub in (stats, verify):
        sub.add_argument("--target", metavar="PRESET", help="of the model (default: the logs' own)")
        add_model_options(sub)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


_positive.__name__ = "positive number"


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """The command that was asked for."""
    payload: dict[str, Any] = args.run(args, out)
    return payload


def run_best(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Distil; ``FILE`` is replaced.

    Raises:
        UsageError: the logs do not go together, or nothing succeeded in them.
        DeviceError: the disk is full.
    """
    _refuse_folder(args.output)
    logs = _load(args.logs, out)
    if args.output.resolve() in (log.path.resolve() for log in logs):
        raise UsageError(f"{args.output} would lose all but its best records: give -o another file")
    searcher = merging.one_searcher(logs, args.output)
    # One log alone has nothing to be compared with.
    merging.require_one_machine(
        logs, assume_same_machine=args.assume_same_machine or len(logs) == 1
    )
    with hold(args.output):
        trials = [record for log in logs for record in log.records]
        records = merging.with_defaults(merging.distil_records(trials), trials)
        if not records:
            raise UsageError("not one trial in the logs succeeded: tune first")
        tried = merging.merge_records(trials)
        run = merging.combine_runs(
            logs, trials=len(tried), failures=log_tables.failures(tried), searcher=searcher
        )
        merging.write_log(args.output, records, run, [log.path for log in logs])
        if run is None:  # that of an earlier FILE would vouch for these records
            run_path(args.output).unlink(missing_ok=True)
    tasks = len({(record.key, record.target) for record in records})
    out.line(f"{args.output}: the best of {len(tried)} trials for {tasks} tasks")
    return {
        "log": str(args.output),
        "searcher": searcher,
        "records": len(records),
        "trials": len(tried),
    }


def run_merge(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Merge the logs, and what ``FILE`` holds, into ``FILE``.

    Raises:
        UsageError: the logs do not go together, or a tuning run is writing ``FILE``.
        DeviceError: the disk is full; ``FILE`` is as it was.
    """
    output: Path = args.output
    _refuse_folder(output)
    logs = [log for log in _load(args.logs, out) if log.path.resolve() != output.resolve()]
    same = args.assume_same_machine
    if logs:
        merging.one_searcher(logs, output)
        merging.require_one_machine(logs, assume_same_machine=same)
    with hold(output):
        if output.exists():
            logs.insert(0, merging.load(output, out.warn))
        searcher = merging.one_searcher(logs, output)
        merging.require_one_machine(logs, assume_same_machine=same)
        before = len(logs[0].records) if output.exists() else 0
        records = merging.merge_records(record for log in logs for record in log.records)
        run = merging.combine_runs(
            _contributors(logs),
            trials=len(records),
            failures=log_tables.failures(records),
            searcher=searcher,
        )
        merging.write_log(output, records, run, [log.path for log in logs])
    read = sum(len(log.records) for log in logs)
    out.line(
        f"{output}: {len(records)} records, {len(records) - before:+d}; "
        f"{read - len(records)} duplicates dropped"
    )
    return {
        "log": str(output),
        "searcher": searcher,
        "records": len(records),
        "before": before,
        "duplicates": read - len(records),
    }


def _contributors(logs: Sequence[Log]) -> list[Log]:
    """The logs whose search time counts: merging one a second time adds none."""
    seen: set[str] = set()
    counted: list[Log] = []
    for log in logs:
        lines = {record.line for record in log.records}
        if not lines <= seen or not counted:
            counted.append(log)
        seen |= lines
    return counted


def run_stats(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Count and show.

    Raises:
        UsageError: a log or the model cannot be used.
    """
    logs = _load(args.logs, out)
    model = _tasks_of_model(args, logs)
    if model is None and args.target is not None:
        raise UsageError("--target goes with a model: give --model or --onnx too")
    tasks = model or ()
    labels = {key: label for log in logs for key, label in labels_beside(log.path).items()}
    labels |= {task.key: task.label for task in tasks}
    flops = {task.key: task.flops for task in tasks}
    unknown = [r for log in logs for r in log.records if r.key not in flops]
    if unknown:
        with out.working("counting operations"):
            flops |= count_flops(unknown, logs=[log.path for log in logs])
    payload: dict[str, Any] = {"logs": []}
    failures: Counter[str] = Counter()
    found: set[tuple[str, str]] = set()
    for log in logs:
        stats = summarise(log.records, flops=flops, labels=labels)
        peak = _peak_gflops(args.peak, log)
        measured = log.run is None or log.run.timing == "measured"
        counted = log_tables.failures(log.records)
        failures.update(counted)
        found |= {(task.key, task.target) for task in stats}
        rows = [log_tables.task_payload(task, peak, measured) for task in stats]
        payload["logs"].append(
            {
                "log": str(log.path),
                "cpu": log.run and log.run.cpu,
                "preset": log.run and log.run.preset,
                "timing": log.run and log.run.timing,
                "trials": len(log.records),
                "failures": counted,
                "spent_s": log.run and log.run.spent_s,
                "peak_gflops": peak,
                "tasks": rows,
            }
        )
        log_tables.show_log(log, rows, peak, out)
        if not measured:
            out.warn(f"{log.path}: its times are no latencies, and are not shown")
    payload |= {
        "trials": sum(len(log.records) for log in logs),
        "tasks": len(found),
        "failures": dict(sorted(failures.items())),
        "spent_s": sum(log.run.spent_s for log in logs if log.run is not None),
    }
    if len(logs) > 1:
        out.line(
            f"in all    {payload['trials']} trials, {payload['tasks']} tasks, "
            f"{log_tables.failures_text(failures)}, {payload['spent_s']:.0f} s of search"
        )
    if model is not None:
        chosen = choose_records(model, [record for log in logs for record in log.records])
        payload["coverage"] = log_tables.show_coverage(model, set(chosen), "have a record", out)
    return payload


def run_verify(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Replay every successful record.

    Raises:
        UsageError: a log or the model cannot be used.
        VerbFailedError: records would not be hit.
    """
    logs = _load(args.logs, out)
    model = _tasks_of_model(args, logs)
    target = None if args.target is None else target_text(targets.resolve(args.target).target)
    where = {id(record): log.path for log in logs for record in log.records}
    replayed: list[Replayed] = []
    with tempfile.TemporaryDirectory(prefix="mobilenet_tvm-") as folder:
        sidecars = [log.path for log in logs]
        ansor = [task.handle for task in model or () if task.searcher == "ansor"]
        if ansor:
            own = Path(folder, "model.ansor.jsonl")
            write_workloads(own, ansor)
            sidecars.append(own)
        labels = {key: label for log in logs for key, label in labels_beside(log.path).items()}
        labels |= {task.key: task.label for task in model or ()}
        records = [record for log in logs for record in log.records]
        each = replay_records(records, logs=sidecars, target=target)
        # The generator's end is the child's.
        with out.working(f"replaying {len(records)} records"), contextlib.closing(each):
            replayed.extend(each)
    misses = []
    numbers: dict[Path, dict[str, int]] = {}
    for result in replayed:
        if not result:
            record, path = result.record, where[id(result.record)]
            label = labels.get(record.key) or label_of_record(record)
            if path not in numbers:
                numbers[path] = _line_numbers(path)
            line = numbers[path].get(record.line, 0)
            out.line(f"{path}:{line}: {record.searcher} {label}: {result.why}")
            misses.append({"log": str(path), "line": line, "key": record.key, "why": result.why})
    payload: dict[str, Any] = {
        "records": len(records),
        "replayed": len(replayed),
        "failed_trials": len(records) - len(replayed),
        "misses": misses,
    }
    if model is not None:
        hit = choose_records(model, [result.record for result in replayed if result])
        payload["coverage"] = log_tables.show_coverage(model, set(hit), "would be hit", out)
        keys = {task.key for task in model}
        payload["foreign"] = sum(result.record.key not in keys for result in replayed)
        if payload["foreign"]:
            out.line(f"foreign   {payload['foreign']} records are of none of the model's tasks")
    if misses:
        raise VerbFailedError(
            f"{len(misses)} of {len(replayed)} records would not be hit by this TVM: tune those "
            "tasks again, or leave these lines out",
            payload,
        )
    out.line(
        f"verified  all {len(replayed)} successful records would be hit "
        f"({payload['failed_trials']} failed trials were not replayed)"
    )
    return payload


def _refuse_folder(output: Path) -> None:
    if output.is_dir():
        raise UsageError(f"{output} is a folder: give -o a file, <name>.<searcher>.jsonl")


def _load(paths: Iterable[Path], out: Output) -> list[Log]:
    """The logs named, each once."""
    files: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"no *.jsonl in {path}: name a tuning log")
        for file in inside:
            files.setdefault(file.resolve(), file)
    return [merging.load(file, out.warn) for file in files.values()]


def _tasks_of_model(args: argparse.Namespace, logs: Sequence[Log]) -> tuple[Task, ...] | None:
    """The model's tasks for the searchers that the logs have records of; None without a model."""
    if all(getattr(args, name) is None for name in _MODEL_OPTIONS):
        return None
    presets = sorted({log.run.preset for log in logs if log.run is not None})
    if args.target is None and len(presets) > 1:
        raise UsageError(f"the logs are for {', '.join(presets)}: say which with --target")
    preset = targets.resolve(args.target or (presets[0] if presets else "x86"))
    module = frontend.to_relay(resolve_model(args)).module
    searchers = {record.searcher for log in logs for record in log.records}
    tasks: tuple[Task, ...] = ()
    if "autotvm" in searchers or not searchers:
        tasks += extract_tasks(module, preset)
    if "ansor" in searchers:
        from mobilenet_tvm.records.ansor_tasks import extract_ansor_tasks

        tasks += extract_ansor_tasks(module, preset, threads=1)
    return tasks


def _peak_gflops(given: float | None, log: Log) -> float | None:
    """Peak of the cores that measured a log; None where this machine cannot tell."""
    if given is not None:
        return given
    run = log.run
    if run is None or run.timing != "measured" or run.cpu != targets.cpu_name():
        return None
    return _core_peak_gflops() * run.threads


@functools.cache
def _core_peak_gflops() -> float:
    """Peak of one core of this machine, measured once for all logs."""
    from mobilenet_tvm.bench.peak import host_target, measure_peak_gflops

    return measure_peak_gflops(host_target())


def _line_numbers(path: Path) -> dict[str, int]:
    """Where in a log each line stands first."""
    found: dict[str, int] = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), 1):
        found.setdefault(line.rstrip("\r"), number)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_verb("logs", DESCRIPTION, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
