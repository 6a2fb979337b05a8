"""The end of a search: the fastest few of each layer, timed where they stand in the model.

A kernel's own trials cannot know which caches and which neighbours it will meet. So the model is
built as often as there are finalists of a layer, each time with another one of every layer, and
the builds' kernels are timed by turns. What each took goes into its line of the log, where it
decides from then on (``records.choose``).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from mobilenet_tvm.bench.in_model import InModel, time_in_model
from mobilenet_tvm.build import compile_model
from mobilenet_tvm.cli.artifact import Job
from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.cli.scratch import folder_beside
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.records import Config, Record, RecordLog, Task
from mobilenet_tvm.records.finalists import find_finalists

FINALISTS = 6


def play_finals(
    job: Job, records: list[Record], args: argparse.Namespace, out: Output
) -> list[Record]:
    """Time the finalists in the model and write it into the log, where that can be done: for the
    CPU of this machine, and templates of ours, which all have the same kernels.

    Where all of them have such a time from an earlier run, nothing is repeated. A final that fails
    is said, and changes nothing.

    Returns:
        ``records``, those of the finalists with their times in the model.
    """
    device = job.device
    if args.finalists < 2 or job.templates != "ours" or device is None or not device.here:
        return records
    finalists = find_finalists(job.tasks, records, args.finalists)
    count = max(map(len, finalists.values()), default=0)
    timed = all(one.in_model_s is not None for line_up in finalists.values() for one in line_up)
    if count < 2 or timed:
        return records
    try:
        with folder_beside(job.artifact) as folder:
            paths = [_build(job, finalists, number, count, folder, out) for number in range(count)]
            with out.working(f"timing {count} builds kernel by kernel, by turns"):
                times = time_in_model(paths, threads=job.threads, seed=args.seed)
    except DeviceError as error:
        out.warn(f"nothing is known of the layers in the model: {error}")
        return records
    with RecordLog(job.log_of("autotvm"), out.warn) as log:
        changed = log.annotate(attribute(times, job.tasks, finalists))
    out.line(
        f"finals    {len(changed)} configurations of {len(finalists)} tasks timed in the model"
    )
    return [changed.get(one.line, one) for one in records]


def _build(
    job: Job,
    finalists: Mapping[str, Sequence[Record]],
    number: int,
    count: int,
    folder: Path,
    out: Output,
) -> Path:
    """The build whose layers have each its finalist of this number."""
    path = folder / f"finalists {number + 1}" / job.artifact.name
    with out.working(f"building the model with each layer's finalist {number + 1} of {count}"):
        compile_model(
            job.relay,
            job.preset,
            path,
            info=job.info,
            tasks=job.tasks,
            best={key: line_up[number % len(line_up)] for key, line_up in finalists.items()},
            linker=job.linker,
        )
    return path


def attribute(
    timed: InModel, tasks: Sequence[Task], finalists: Mapping[str, Sequence[Record]]
) -> dict[tuple[str, str, Config], float]:
    """Seconds of one call in the model by a finalist's key, target and configuration.

    Build ``i`` has each layer's finalist ``i``, beginning anew where there are fewer. Layers that
    two tasks may be of are left out: nobody knows which of them a kernel is.
    """
    by_label: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_label[task.label].append(task)
    places: dict[str, list[int]] = defaultdict(list)
    for place, layer in enumerate(timed.layers):
        own = by_label.get(layer.task or "", [])
        if len(own) == 1:
            places[own[0].key].append(place)
    samples_s: dict[tuple[str, str, Config], list[float]] = defaultdict(list)
    for key, line_up in finalists.items():
        if not places[key]:
            continue
        for build, kernels_us in enumerate(timed.kernels_us):
            record = line_up[build % len(line_up)]
            mean_s = float(np.mean(kernels_us[places[key]])) * 1e-6
            if np.isfinite(mean_s):
                samples_s[record.key, record.target, record.config].append(mean_s)
    return {identity: fmean(times) for identity, times in samples_s.items()}
