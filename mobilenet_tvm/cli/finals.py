"""The end of a search: the fastest few of each layer, timed where they stand in the model.

A kernel's own trials cannot know which caches and which neighbours it will meet. So the model is
built as often as there are finalists of a layer, each time with another one of every layer, and
the builds' kernels are timed by turns. What each took goes into its line of the log, where it
decides from then on (``records.choose``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobilenet_tvm.bench.in_model import time_in_model
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.cli.options import positive
from mobilenet_tvm.cli.scratch import folder_beside
from mobilenet_tvm.errors import DeviceError, UsageError, carries_interrupt, last_line
from mobilenet_tvm.records import Record, RecordLog
from mobilenet_tvm.records.finalists import find_finalists
from mobilenet_tvm.records.serving import current

FINALISTS = 6


def add_finals_options(parser: argparse.ArgumentParser) -> None:
    """Add how many take part."""
    parser.add_argument_group("finals").add_argument(
        "--finalists",
        type=positive,
        default=FINALISTS,
        metavar="N",
        help="so many of each layer's fastest configurations are timed once more where they stand "
        "in the model, after the search and beyond its --time-budget, where that is this "
        f"machine's CPU; 1 leaves it out (default: {FINALISTS})",
    )


def play_finals(
    job: Job, records: list[Record], args: argparse.Namespace, out: Output
) -> list[Record]:
    """Time the finalists in the model and write it into the log, where that can be done: for the
    CPU of this machine, and templates of ours, which all have the same kernels.

    Where all of them have such a time from an earlier run, nothing is repeated. Finals that fail
    are said, and change nothing.

    Args:
        job: with the device of the search.
        records: all that it may be built with.
        args: with ``finalists`` and ``seed``.
        out: told what happens.

    Returns:
        ``records``, those of the finalists with their times in the model.
    """
    device = job.device
    if args.finalists < 2 or job.templates != "ours" or device is None or not device.here:
        return records
    finalists = find_finalists(job.tasks, current(job.tasks, records), args.finalists)
    if _played(finalists, job.info.digest):
        return records
    try:
        times = _time(job, finalists, args.seed, out)
        with RecordLog(job.log_of("autotvm"), _said_already) as log:
            changed = log.annotate(times, job.info.digest)
    except (DeviceError, UsageError) as error:
        out.warn(f"no finals: {error}; of each layer the fastest alone is taken")
        return records
    tasks = len({one.key for one in changed.values()})
    out.line(f"finals    {len(times)} configurations of {tasks} tasks timed in the model")
    return [changed.get(one.line, one) for one in records]


def _said_already(_warning: str) -> None:
    """The search said it when it opened the log."""


def _played(finalists: Mapping[str, Sequence[Record]], model: str) -> bool:
    """Whether there is nothing to compare, or all was compared in the model of that digest.

    A layer none of whose finalists has a time beside layers that have cannot be timed: several
    tasks share its label.
    """
    several = [line_up for line_up in finalists.values() if len(line_up) > 1]
    known = [[one.in_model_of == model for one in line_up] for line_up in several]
    timed = [one for one in known if any(one)]
    return all(map(all, timed)) if timed else not several


def _time(
    job: Job, finalists: Mapping[str, Sequence[Record]], seed: int, out: Output
) -> dict[str, float]:
    """Seconds in the model by line."""
    count = max(map(len, finalists.values()))
    with folder_beside(job.artifact) as folder:
        paths = [_build(job, finalists, number, count, folder, out) for number in range(count)]
        with out.working(f"timing {count} builds kernel by kernel, by turns"):
            times = time_in_model(paths, threads=job.threads, seed=seed)
    for index in times.wrong:
        out.warn(
            f"the build of each layer's finalist {index + 1} computes something else than the "
            "first: none of them is counted"
        )
    return times.seconds


def _build(
    job: Job,
    finalists: Mapping[str, Sequence[Record]],
    number: int,
    count: int,
    folder: Path,
    out: Output,
) -> Path:
    """The build whose layers have each its finalist of this number, beginning anew where there
    are fewer.

    Raises:
        DeviceError: it cannot be built.
    """
    path = folder / f"finalists {number + 1}" / job.artifact.name
    with out.working(f"building the model with each layer's finalist {number + 1} of {count}"):
        try:
            compile_model(
                job.relay,
                job.preset,
                path,
                info=job.info,
                tasks=job.tasks,
                best={key: line_up[number % len(line_up)] for key, line_up in finalists.items()},
                linker=job.linker,
            )
        except RuntimeError as error:  # TVM's; a Ctrl-C may come as one too
            if carries_interrupt(error):
                raise
            why = f"the one of finalists {number + 1} cannot be built: {last_line(error)}"
            raise DeviceError(why) from error
    return path
