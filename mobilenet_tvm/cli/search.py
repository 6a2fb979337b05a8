"""The tuning run of ``tune``: its logs, what it begins with, and its run files."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mobilenet_tvm import bench, targets, toolchain
from mobilenet_tvm.bench.peak import measure_peak_gflops
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.boards import Device
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.cli.options import parse_duration, positive
from mobilenet_tvm.cli.transfer import (
    Known,
    Where,
    logs_in,
    proposals,
    read_known,
    shipped_logs,
    siblings,
)
from mobilenet_tvm.cuda.gpu import watch
from mobilenet_tvm.errors import MobilenetTvmError, UsageError
from mobilenet_tvm.records import (
    LAUNCH_BOUND,
    Config,
    Record,
    RecordLog,
    RunInfo,
    SearcherName,
    Task,
    best_records,
    read_run,
    run_path,
    workloads_path,
    write_run,
    write_workloads,
)
from mobilenet_tvm.records.lines import trial_seconds, with_in_model
from mobilenet_tvm.records.serving import current
from mobilenet_tvm.search import (
    AnsorSearcher,
    AutoTvmSearcher,
    Budget,
    CostModel,
    PlainProgress,
    RichProgress,
    Searcher,
    Summary,
    first_configs,
    tune_tasks,
)
from mobilenet_tvm.search.trial import count_failures

TUNERS: dict[str, tuple[SearcherName, ...]] = {
    "autotvm": ("autotvm",),
    "ansor": ("ansor",),
    "all": ("autotvm", "ansor"),
}
# A template's space has some hundred configurations; Ansor's has no end.
DEFAULT_TRIALS: dict[SearcherName, int] = {"autotvm": 96, "ansor": 512}


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add who searches, how long, and where it begins."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--tuner",
        choices=tuple(TUNERS),
        default="all",
        help="who searches (default: all; the fastest model of those found is kept)",
    )
    group.add_argument(
        "--trials",
        type=positive,
        metavar="N",
        help="at most so many trials a task, earlier runs' included (default: "
        + ", ".join(f"{count} of {name}" for name, count in DEFAULT_TRIALS.items())
        + ")",
    )
    group.add_argument(
        "--time-budget",
        type=parse_duration,
        metavar="TIME",
        help="at most so long searching, e.g. 90s or 20m (default: until nothing is to be gained)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the search (default: 0)"
    )
    group.add_argument(
        "--fresh",
        action="store_true",
        help="start new logs; the old ones are kept beside them as .old",
    )
    group.add_argument(
        "--from",
        dest="transfer",
        type=Path,
        action="append",
        default=[],
        metavar="LOG",
        help="begin with what this log, or each log of this folder, found: of other models, "
        "machines or presets; may be given again (the shipped logs are used without asking)",
    )
    group.add_argument(
        "--no-transfer",
        action="store_true",
        help="begin from nothing: without the shipped logs and those of other models in DIR",
    )


def searchers(args: argparse.Namespace) -> tuple[SearcherName, ...]:
    """Who searches. Templates are AutoTVM's, so where one kind is asked for Ansor is not.

    Raises:
        UsageError: it alone was asked for.
    """
    if args.schedules == "best":
        return TUNERS[args.tuner]
    if args.tuner == "ansor":
        raise UsageError(
            f"--schedules {args.schedules} is of templates, and --tuner ansor has none: leave one "
            "of the two out"
        )
    return TUNERS["autotvm"]


def search(
    job: Job, device: Device, args: argparse.Namespace, out: Output
) -> tuple[list[Record], Summary]:
    """Run the search of a job on a device, and close its measurer.

    Returns:
        All records of its logs, and what the run did.

    Raises:
        UsageError: a log is of another machine, is being written, or cannot be read.
        DeviceError: nothing could be measured, or a log cannot be written.
    """
    names = searchers(args)
    where = Where(device.cpu, args.threads, device.timing)
    tasks = [task for task in (*job.tasks, *job.ansor_tasks) if task.searcher in names]
    asked_for = [path for given in args.transfer for path in logs_in(given)]
    beside = [path for name in names for path in siblings(job.log_of(name))]
    without_asking = [] if args.no_transfer else [*beside, *shipped_logs(job.preset.name)]
    if not args.fresh:
        for name in names:
            _refuse_foreign(job.log_of(name), where)
    with out.working("looking at what other logs know"):  # before --fresh moves one of them
        known = read_known(without_asking, out.warn, asked_for=asked_for)
    summary = Summary()
    with contextlib.ExitStack() as stack:
        logs = {name: stack.enter_context(RecordLog(job.log_of(name), out.warn)) for name in names}
        adopted = {}
        for name, log in logs.items():
            _open(log, tasks, job, args, out)
            near = set() if args.fresh else set(siblings(log.path))
            adopted[name] = _adopt(
                log, tasks, [one for one in known if one.path in near], where, out
            )
        with out.working("learning from what is known"):
            seeds = _Seeds(tasks, logs, known, where, args, out)
        runs = {
            name: _Run(job, args, where, name, log, adopted[name]) for name, log in logs.items()
        }
        for run in runs.values():
            # At once, so that even after a kill -9 the log says which machine it is of.
            run.write()
        peak_flops = device.peak_flops
        if device.here:
            _warn_of_noise(args.threads, out)
            peak_flops = _peak_flops(job, args.threads, tasks, logs.values())
        progress = (RichProgress if out.console.is_terminal else PlainProgress)(
            out.console, timed=device.timing == "measured"
        )
        notes = list(device.notes)
        try:
            with progress, _watching_gpu(device, notes, out):
                tune_tasks(
                    tasks,
                    make_searcher=seeds.searcher,
                    measurer=device.measurer,
                    logs=logs,
                    budget=Budget(args.time_budget),
                    progress=progress,
                    floor_s=lambda task: max(task.flops / peak_flops, device.launch_s),
                    summary=summary,
                )
        except BaseException as error:
            if not isinstance(error, MobilenetTvmError):  # Ctrl-C, however TVM may carry it
                for log in logs.values():
                    out.line(f"{log.path}: {len(log.records)} finished trials are kept")
                out.line("run the same command again to go on")
            raise
        finally:
            device.measurer.close()
            records = [record for log in logs.values() for record in log.records]
            notes += launch_notes(tasks, records, device.launch_s)
            for run in runs.values():
                run.write(notes)
        _report(summary, out)
        for note in notes[len(device.notes) :]:
            out.line(f"          {note}")
        return records + _other_searchers(job, where, args, out), summary


@contextlib.contextmanager
def _watching_gpu(device: Device, notes: list[str], out: Output) -> Iterator[None]:
    """Note how this machine's GPU did within the block."""
    if not device.gpu:
        yield
        return
    try:
        with watch() as seen:
            yield
    finally:
        if (summary := seen.summary()) is not None:
            notes.append(f"GPU: {summary}")
            if summary.throttled or summary.others:
                out.warn(
                    f"the GPU was not at its best ({summary}): trials are that uncertain: cool it, "
                    "stop what else runs there, then use --fresh"
                )


def launch_notes(tasks: Iterable[Task], records: Sequence[Record], launch_s: float) -> list[str]:
    """What is to be said of layers that take hardly longer than a GPU's launch."""
    best = best_records(records)
    known = [best[task.key] for task in tasks if task.key in best]
    bound = [r for r in known if r.cost_s is not None and r.cost_s <= LAUNCH_BOUND * launch_s]
    if not bound:
        return []
    return [
        f"{len(bound)} of {len(known)} tasks take hardly longer than a launch does "
        f"({1e6 * launch_s:.1f} us): which of their configurations is the fastest is chance"
    ]


def _peak_flops(job: Job, threads: int, tasks: Sequence[Task], logs: Iterable[RecordLog]) -> float:
    """Operations a second that no kernel exceeds: measured, and by what earlier trials reached.

    Twice, for a peak that is read too low while a neighbour is busy would stop layers early.
    """
    measured = max(measure_peak_gflops(job.preset.target) for _ in range(2)) * 1e9 * threads
    flops = {task.key: task.flops for task in tasks}
    reached = [
        flops[record.key] / record.cost_s
        for log in logs
        for record in log.records
        if record.cost_s is not None and record.key in flops
    ]
    return max([measured, *reached])


def _other_searchers(job: Job, where: Where, args: argparse.Namespace, out: Output) -> list[Record]:
    """What earlier runs by a searcher that is not asked now found, or of TVM's own templates: the
    model is chosen of all."""
    if args.fresh or job.schedules != "best":
        return []
    logs = [job.log_of(name) for name in TUNERS["all"] if name not in searchers(args)]
    logs.append(job.log_of("autotvm", "stock"))
    found: list[Record] = []
    for one in read_known([log for log in logs if log.exists()], out.warn):
        if one.of(where):
            out.line(f"also      {one.path}: {len(one.records)} trials of earlier runs")
            found += one.records
        else:
            out.warn(f"{one.path} is of another machine or another --threads: left out")
    return found


def _refuse_foreign(log: Path, where: Where) -> None:
    """A log from another CPU, or of another number of threads, says nothing about this run.

    A run of ours writes its run file before its first trial.
    """
    if not log.exists() or log.stat().st_size == 0:
        return
    run = read_run(log)
    how = ": use --fresh or another -o to tune here, or --from to begin with what it found"
    if run is None:
        raise UsageError(f"{log} has no run file beside it that says where it was measured{how}")
    what = f"{log} was measured "
    if run.timing != where.timing:
        raise UsageError(f"{log} holds {run.timing} times, not {where.timing} ones{how}")
    if run.cpu != where.cpu:
        here = "this machine is" if where.cpu == targets.cpu_name() else "this run is for"
        raise UsageError(f"{what}on {run.cpu}, {here} {where.cpu}{how}")
    if run.threads != where.threads:
        raise UsageError(f"{what}with --threads {run.threads}, this run has {where.threads}{how}")


def _open(
    log: RecordLog, tasks: Sequence[Task], job: Job, args: argparse.Namespace, out: Output
) -> None:
    """Set an unwanted log aside, now that no other run can be writing it."""
    if args.fresh:
        _set_aside([log.path, run_path(log.path), workloads_path(log.path)])
        log.records.clear()
    keys = {task.key for task in tasks}
    usable = current(tasks, log.records)
    known = sum(record.key in keys for record in usable)
    if known:
        out.line(f"resuming  {log.path}: {known} finished trials are not repeated")
    if stale := len(log.records) - len(usable):
        out.line(f"          {stale} are of another version of the schedules and left out")
    if job.ansor_tasks and log.path == job.log_of("ansor"):
        write_workloads(log.path, [task.handle for task in job.ansor_tasks])


def _set_aside(paths: Sequence[Path]) -> None:
    """Rename those that are there to ``<name>.old``, or all to the first of ``.old2``, ``.old3``
    ... that none of them has yet: files that belong together keep doing so."""
    for suffix in itertools.chain([".old"], (f".old{number}" for number in itertools.count(2))):
        old = {path: path.with_name(path.name + suffix) for path in paths}
        if not any(map(Path.exists, old.values())):
            break
    for path in filter(Path.exists, paths):
        path.replace(old[path])


def _adopt(
    log: RecordLog, tasks: Sequence[Task], near: Sequence[Known], where: Where, out: Output
) -> int:
    """Take over what the logs of other models beside it hold of the same tasks: they were
    measured here too. How many trials those were."""
    keys = {(task.key, task.target) for task in tasks}
    have = {(record.key, record.config) for record in current(tasks, log.records)}
    adopted = 0
    for one in near:
        if not one.of(where):
            continue
        for record in current(tasks, one.records):
            new = (record.key, record.config) not in have
            if new and (record.key, record.target) in keys:
                log.append(with_in_model(record, None).line)  # that was another model
                have.add((record.key, record.config))
                adopted += 1
    if adopted:
        out.line(f"adopted   {adopted} trials of equal tasks from the logs beside {log.path.name}")
    return adopted


class _Seeds:
    """What the searchers begin with: configurations, and a cost model that has learnt."""

    def __init__(
        self,
        tasks: Sequence[Task],
        logs: dict[SearcherName, RecordLog],
        known: Sequence[Known],
        where: Where,
        args: argparse.Namespace,
        out: Output,
    ) -> None:
        self._args = args
        self._first: dict[str, list[Config]] = first_configs(tasks, proposals(known))
        self._model: CostModel | None = None
        if "ansor" in logs:
            self._model = CostModel(seed=args.seed, cores=targets.physical_cores())
            keys = {task.key for task in tasks}
            target = next((task.target for task in tasks), "")
            lessons = [r for one in known for r in one.lessons(keys, target, where)]
            # What was adopted from the logs beside stands in both.
            lines = {record.line: record for record in (*lessons, *logs["ansor"].records)}
            self._model.learn_records(lines.values(), keys.union(*(one.workloads for one in known)))
        if self._first:
            out.line(f"transfer  {len(self._first)} of {len(tasks)} tasks begin with known records")

    def searcher(self, task: Task, done: Mapping[Config, float]) -> Searcher:
        """A searcher for a task, given the cost of what was tried before."""
        trials = self._args.trials or DEFAULT_TRIALS[task.searcher]
        first = self._first.get(task.key, [])
        if task.searcher == "autotvm":
            return AutoTvmSearcher(
                task, trials=trials, seed=self._args.seed, done=done, first=first
            )
        assert self._model is not None
        return AnsorSearcher(
            task, trials=trials, seed=self._args.seed, model=self._model, done=done, first=first
        )


def _warn_of_noise(threads: int, out: Output) -> None:
    noise = bench.machine_noise(threads)
    if noise > bench.NOISY:
        out.warn(
            f"this machine is not quiet: equal work takes up to {noise:.2f} times as long "
            "(p95 / p5); trials are that uncertain: stop what else runs, then use --fresh"
        )


def _report(summary: Summary, out: Output) -> None:
    failed = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
    by_searcher = " + ".join(f"{count} {name}" for name, count in summary.by_searcher.items())
    out.line(
        f"searched  {summary.trials} trials ({by_searcher}) in {summary.spent_s:.0f} s"
        + (f", failed: {failed} (first: {summary.first_error})" if failed else "")
        + ("; the time budget is used up" if summary.out_of_time else "")
    )


class _Run:
    """The run file of one log."""

    def __init__(
        self,
        job: Job,
        args: argparse.Namespace,
        where: Where,
        name: SearcherName,
        log: RecordLog,
        adopted: int,
    ) -> None:
        self._job, self._args, self._name, self._log = job, args, name, log
        self._where = where
        earlier = read_run(log.path)
        # A killed run leaves trials behind that its run file does not count.
        counted = min(earlier.trials, len(log.records)) if earlier else 0
        killed = log.records[counted : len(log.records) - adopted]
        self._spent_s = earlier.spent_s if earlier else 0.0
        self._spent_s += sum(map(trial_seconds, killed))
        self._known = len(log.records)

    def write(self, notes: Sequence[str] = ()) -> None:
        """Write it as things stand."""
        job, records = self._job, self._log.records
        write_run(
            self._log.path,
            RunInfo(
                format_version=1,
                preset=job.preset.name,
                target=job.preset.target,
                cpu=self._where.cpu,
                tvm=toolchain.TVM_VERSION,
                llvm=toolchain.llvm_version(),
                model=job.info.name,
                model_digest=job.info.digest,
                searcher=self._name,
                seed=self._args.seed,
                threads=self._where.threads,
                spent_s=self._spent_s + sum(map(trial_seconds, records[self._known :])),
                trials=len(records),
                failures=count_failures(record.error for record in records),
                timing=self._where.timing,
                notes=tuple(notes),
            ),
        )
