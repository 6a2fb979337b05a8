"""A whole folder of photos, on every core: each worker process has a module and references.

TVM's graph executor is not thread-safe and its thread pool is the process's own, so a core's
share of the photos is a process's. Each runs single-threaded and sends back a ``Case`` a photo:
numbers, never outputs.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenet_tvm.build.manifest import Manifest
from mobilenet_tvm.errors import DeviceError, MobilenetTvmError, UsageError, last_line
from mobilenet_tvm.parity.case import PHOTO, Case, Subject
from mobilenet_tvm.parity.gate import tolerance_of
from mobilenet_tvm.parity.inputs import photo_feed, photo_input, photo_names, shapes_of
from mobilenet_tvm.parity.photos import PhotoAgreement, PhotoTally, Unreadable
from mobilenet_tvm.parity.references import RUNNERS, reference_onnx
from mobilenet_tvm.toolchain import Worker

if TYPE_CHECKING:
    from mobilenet_tvm.runtime import Module

# Told after every chunk: photos done, photos in all, what has come together.
Progress = Callable[[int, int, PhotoTally], None]

# So many photos go to a worker at once: seldom enough to ask, soon enough to show and to stop.
_CHUNK = 8

# For opening the model and a chunk, with the slower reference on a network as large as VGG-16.
_TIMEOUT_S = 600.0


# Of a broken artifact every photo differs, and the float64 evaluator takes 20 times as long as
# the rest: after so many in a process it is clear who stands alone.
_ASKED = 20


@dataclass(frozen=True)
class FolderCheck:
    """What a worker needs to know: an artifact, who it is compared with, and how."""

    artifact: Path
    references: tuple[str, ...]
    onnx: Path | None = None
    tolerance: float | None = None
    top_k: int = 5
    cuda_graph: bool = False


def compare_folder(
    what: FolderCheck,
    manifest: Manifest,
    images: Sequence[Path],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    module: Module | None = None,
) -> PhotoAgreement:
    """Compare the artifact with its references on every picture, in ``jobs`` processes.

    ``jobs`` None is one for each core that this process may use. A ``module`` that is loaded
    already, on a board, is run from this process alone.

    Raises:
        UsageError: the model takes no photos, or its ONNX file cannot be had.
        DeviceError: a worker died or hung, or the artifact cannot be run.
    """
    photo_input(manifest)
    tally = PhotoTally(manifest.labels, what.top_k)
    photos = list(zip(photo_names(images), images, strict=True))
    chunks = [photos[start : start + _CHUNK] for start in range(0, len(photos), _CHUNK)]
    done = 0
    if module is None:
        examined = _in_processes(what, chunks, jobs or cores())
    else:
        here = _opened(what, module)
        examined = (_examine_chunk(here, chunk) for chunk in chunks)
    for results in examined:
        for one in results:
            if isinstance(one, Unreadable):
                tally.add_unreadable(one)
            else:
                tally.add(one)
        done += len(results)
        if progress is not None:
            progress(done, len(photos), tally)
    return tally.result()


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_Chunk = list[tuple[str, Path]]
_Results = list[Case | Unreadable]
# The list is of the photos that the other references were asked of.
_Opened = tuple[Manifest, Subject, list[str]]


def _in_processes(what: FolderCheck, chunks: Sequence[_Chunk], jobs: int) -> Iterator[_Results]:
    """The results of all chunks, in the order in which they are ready."""
    todo, lock = iter(chunks), threading.Lock()
    ready: queue.SimpleQueue[_Results | Exception | None] = queue.SimpleQueue()
    stop = threading.Event()
    # A thread a worker, for a worker dies with the thread that started it.
    workers = [Worker() for _ in range(max(1, min(jobs, len(chunks))))]

    def serve(worker: Worker) -> None:
        try:
            while not stop.is_set():
                with lock:
                    chunk = next(todo, None)
                if chunk is None:
                    break
                ready.put(_call(worker, what, chunk))
        except Exception as error:
            ready.put(error)
        finally:
            worker.close()
            ready.put(None)

    threads = [threading.Thread(target=serve, args=(worker,)) for worker in workers]
    running = len(threads)
    for thread in threads:
        thread.start()
    try:
        while running:
            result = ready.get()
            if isinstance(result, Exception):
                raise result
            if result is None:
                running -= 1
            else:
                yield result
    finally:  # a Ctrl-C comes through here too: nothing is left behind
        stop.set()
        for worker in workers:
            worker.abort()
        for thread in threads:
            thread.join()


def _call(worker: Worker, what: FolderCheck, chunk: _Chunk) -> _Results:
    where = chunk[0][0] if len(chunk) == 1 else f"one of {chunk[0][0]} to {chunk[-1][0]}"
    try:
        results: _Results = worker.call(_examine, what, chunk, timeout_s=_TIMEOUT_S)
    except MobilenetTvmError:
        raise
    except TimeoutError:
        raise DeviceError(
            f"the artifact or a reference hung on {where} ({_TIMEOUT_S:.0f} s)"
        ) from None
    except ChildProcessError:
        raise DeviceError(f"the process that ran the artifact died on {where}") from None
    except Exception as error:
        raise DeviceError(f"the artifact cannot be run on {where}: {last_line(error)}") from error
    return results


def _examine(what: FolderCheck, chunk: _Chunk) -> _Results:
    """In the worker: a case a photo."""
    return _examine_chunk(_open(what), chunk)


def _examine_chunk(opened: _Opened, chunk: _Chunk) -> _Results:
    manifest, subject, asked = opened
    found: _Results = []
    for name, path in chunk:
        try:
            feed = photo_feed(path, manifest)
        except UsageError as error:
            found.append(Unreadable(name, str(error)))
            continue
        if len(asked) >= _ASKED:
            subject = dataclasses.replace(subject, others=())
        # That a second run gives the same bits is shown by the inputs that are made up.
        case, _ = subject.examine(name, PHOTO, feed, twice=False, ask_always=False)
        found.append(case)
        if case.standings:
            asked.append(name)
    return found


@functools.lru_cache(maxsize=1)
def _open(what: FolderCheck) -> _Opened:
    """In the worker, once."""
    from mobilenet_tvm.runtime import load

    # TVM would bind this thread to the first core, and so every worker's.
    os.environ["TVM_BIND_THREADS"] = "0"
    return _opened(what, load(what.artifact, threads=1, cuda_graph=what.cuda_graph))


def _opened(what: FolderCheck, module: Module) -> _Opened:
    manifest = module.manifest
    data, shapes = reference_onnx(manifest, what.onnx), shapes_of(manifest)
    first, *others = (RUNNERS[name](data, shapes) for name in what.references)
    tolerance = tolerance_of(manifest, what.tolerance)
    return manifest, Subject(module.run, first, tuple(others), tolerance, what.top_k), []
