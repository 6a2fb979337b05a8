"""Which logs ``compile`` takes, and what serves the layers of its model from them."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mobilenet_tvm import targets, tuning_logs
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.cli.logs_given import logs_of_folder, read_logs
from mobilenet_tvm.records import CLEARLY, CLEARLY_ESTIMATED, Record
from mobilenet_tvm.records.choose import WRONG_OUTPUT
from mobilenet_tvm.records.merge import Log
from mobilenet_tvm.records.serving import Served, current, serve

# In place of a log's path.
NO_LOGS = "none"


def add_logs_options(parser: argparse.ArgumentParser) -> None:
    """Add where records come from."""
    parser.add_argument(
        "--logs",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="tuning logs, or folders of them; 'none' compiles untuned (default: the logs of this "
        "model under -o; where there are none, those that come with the package)",
    )
    parser.add_argument(
        "--no-transfer",
        action="store_true",
        help="a layer without a record of its own runs untuned: no record of another shape "
        "serves it",
    )


@dataclass(frozen=True)
class Logs:
    """The logs of a compilation.

    Attributes:
        found: which they are.
        shipped: whether they are the package's.
        stale: records in those of the model's own logs that are left out, for all that they hold
            is of another version of the templates.
    """

    found: tuple[Log, ...]
    shipped: bool = False
    stale: int = 0

    @property
    def records(self) -> list[Record]:
        """All of them."""
        return [record for log in self.found for record in log.records]


def find_logs(args: argparse.Namespace, job: Job, out: Output) -> Logs:
    """The logs that ``--logs`` names; else those of the model under ``-o``; else, or where all of
    these are of another version of the templates, the shipped ones of the preset. What is not
    comparable or not of this machine is said.

    Raises:
        UsageError: a log cannot be read, or ``--logs`` names none.
    """
    given: Sequence[Path] | None = args.logs
    if given is not None and [str(path) for path in given] == [NO_LOGS]:
        return Logs(())
    logs = read_logs(own_logs(job) if given is None else given, out.warn)
    stale = 0
    if given is None:
        old = [log for log in logs if log.records and not current(job.tasks, log.records)]
        stale = sum(len(log.records) for log in old)
        logs = [log for log in logs if log not in old]
    shipped = given is None and not logs
    if shipped:
        logs = read_logs(shipped_logs_of(job), out.warn)
        logs = [log for log in logs if _is_for(log, job)]
    elif args.logs is None:
        right = [log for log in logs if log.run is None or log.run.threads == job.threads]
        logs = right or logs
    if not shipped:
        _warn_of_foreign(logs, job, out)
    return Logs(tuple(_comparable(logs, out)), shipped, stale)


def own_logs(job: Job) -> list[Path]:
    """The model's logs under ``-o``: by either searcher, with any number of threads."""
    name = re.compile(
        rf"{re.escape(job.info.name)}(?P<stock>\.stock)?(\.\d+-threads)?"
        r"\.(?P<searcher>autotvm|ansor)\.jsonl"
    )
    found = []
    for path in sorted(job.logs_folder.glob("*.jsonl")):
        match = name.fullmatch(path.name)
        if match is None or (match["stock"] and job.schedules == "ours"):
            continue
        if match["searcher"] == "autotvm" or job.schedules == "best":
            found.append(path)
    return found


def shipped_logs_of(job: Job) -> list[Path]:
    """The logs that come with the package for the job's preset."""
    return logs_of_folder(Path(tuning_logs.__path__[0]) / job.preset.name)


def _is_for(log: Log, job: Job) -> bool:
    """Whether a shipped log may serve: an emulator's times say nothing of speed, and Ansor's
    records, whose tasks take seconds to find, are of use to their own model only."""
    run = log.run
    if run is not None and run.timing == "emulated":
        return False
    if not log.path.name.endswith(".ansor.jsonl"):
        return True
    return run is not None and job.schedules == "best" and job.info.name in run.model.split(", ")


def serve_job(logs: Logs, args: argparse.Namespace, job: Job, out: Output) -> Served:
    """Find what serves each layer of the job's model, and say it in a line where that is more
    than the model's own log."""
    # Times of different numbers of threads do not compare: the nearest number comes first.
    groups: dict[int, list[Record]] = {job.threads: []}
    for log in logs.found:
        threads = job.threads if log.run is None else log.run.threads
        groups.setdefault(threads, []).extend(log.records)
    order = sorted(groups, key=lambda count: (abs(math.log(count / job.threads)), -count))
    if logs.shipped and not job.timed:
        # Schedules for fewer threads may leave the others idle, which nothing would show here.
        order = [count for count in order if count >= job.threads]
    # Of times that nobody measured another shape's would be a guess upon a guess.
    estimated = any(log.run is not None and log.run.timing != "measured" for log in logs.found)
    groups_in_order = [groups[count] for count in order]
    clearly = CLEARLY_ESTIMATED if estimated else CLEARLY
    transfer = not args.no_transfer and not estimated
    served = serve(job.all_tasks, groups_in_order, transfer=transfer, clearly=clearly)
    # TVM's own templates come in where their records are of this very model.
    stock = serve(job.stock_tasks, groups_in_order, transfer=False, clearly=clearly)
    served = replace(served, best=stock.best | served.best, stale=served.stale + stock.stale)
    if stale := served.stale + logs.stale:
        out.warn(
            f"{stale} records are of another version of the schedules and left out: tune "
            "again with python -m mobilenet_tvm.tune"
        )
    if served.best:
        if logs.shipped or served.transferred:
            out.line(f"records   {_summary(served, job, logs, order)}")
    elif stale:
        pass  # said already, and what is said below would not be true
    elif logs.found and not logs.shipped:
        out.warn(
            f"none of the {len(logs.records)} records is of this model's tasks on "
            f"{job.preset.name}: compiling with untuned schedules"
        )
    elif args.logs is None and not args.require_tuned:  # that has its own words for it
        out.warn(
            f"no log at {job.log_of('autotvm')}, and no shipped record is near enough: compiling "
            "with untuned schedules; tune first with python -m mobilenet_tvm.tune, or name a log "
            "with --logs"
        )
    return served


def _summary(served: Served, job: Job, logs: Logs, order: Sequence[int]) -> str:
    """``18 of 20 tasks by shipped records, 2 by the nearest shapes``, in AutoTVM's tasks."""
    keys = {task.key for task in job.tasks}
    exact, lent = len(keys & served.exact.keys()), len(keys & served.transferred)
    text = f"{exact} of {len(keys)} tasks by {'shipped ' if logs.shipped else ''}records"
    if lent:
        text += f", {lent} by the nearest shape{'' if lent == 1 else 's'}"
    if untuned := len(keys) - exact - lent:
        text += f", {untuned} untuned"
    if any(log.run is not None and log.run.timing == "estimated" for log in logs.found):
        text += "; their times are estimates"
    threads = [order[served.groups[key]] for key in keys & served.groups.keys()]
    if foreign := [count for count in threads if count != job.threads]:
        counts = " or ".join(map(str, sorted(set(foreign))))
        text += f"; {len(foreign)} of them were measured with --threads {counts}, not {job.threads}"
    return text


def _comparable(logs: Sequence[Log], out: Output) -> list[Log]:
    """The logs of measured times, where there are any: those of an emulator or an estimate are
    left out beside them, for they would be compared. That a kernel computes something else is
    true all the same."""
    measured = [log for log in logs if log.run is None or log.run.timing == "measured"]
    others = [log for log in logs if log not in measured]
    if not others or not any(log.records for log in measured):
        return list(logs)
    out.warn(
        f"{_first_of([str(log.path) for log in others])}: left out beside logs of measured times"
    )
    wrong = (tuple(r for r in log.records if r.error == WRONG_OUTPUT) for log in others)
    return [
        *measured,
        *(Log(log.path, kept, None) for log, kept in zip(others, wrong, strict=True)),
    ]


def _warn_of_foreign(logs: Sequence[Log], job: Job, out: Output) -> None:
    """Say once that times are of another machine or thread count, and once that they are none."""
    here = targets.cpu_name()
    foreign: list[str] = []
    unmeasured: dict[str, list[str]] = {}
    for log in logs:
        run = log.run
        if run is None:
            continue
        if run.timing != "measured":
            text = f"{log.path} holds {run.timing} times, not measured ones"
            unmeasured.setdefault(run.timing, []).append(text)
        # What is compiled for another machine is tuned on another machine.
        elif run.threads != job.threads or (run.cpu != here and job.preset.runs_here()):
            foreign.append(f"{log.path} was measured on {run.cpu} with --threads {run.threads}")
    if foreign:
        out.warn(
            f"{_first_of(foreign)}; this is {here} with --threads {job.threads}: other schedules "
            "may be faster here, tune first with python -m mobilenet_tvm.tune --from that log"
        )
    for timing, texts in unmeasured.items():
        ranks = (
            "rank schedules, and say" if timing == "estimated" else "say which schedules run, and"
        )
        out.warn(f"{_first_of(texts)}: they {ranks} nothing of their speed")


def _first_of(texts: Sequence[str]) -> str:
    return texts[0] + (f" (and {len(texts) - 1} more logs like it)" if len(texts) > 1 else "")
