"""The gate: does a module compute what its ONNX model computes, on made-up inputs and photos?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet_tvm.build.manifest import Manifest, NpzInfo, sha256_file
from mobilenet_tvm.errors import UsageError
from mobilenet_tvm.parity.case import NPZ, PHOTO, Again, Case, Runner, Subject
from mobilenet_tvm.parity.comparison import compare
from mobilenet_tvm.parity.inputs import photo_feed, photo_input, photo_names
from mobilenet_tvm.parity.kinds import DEFAULT_KINDS, Feed, generate
from mobilenet_tvm.parity.npz import read_npz
from mobilenet_tvm.parity.photos import Unreadable
from mobilenet_tvm.parity.references import Reference
from mobilenet_tvm.parity.result import ParityResult
from mobilenet_tvm.parity.tolerances import tolerance_for

__all__ = ["Case", "ParityResult", "check", "check_feeds"]


def check(
    run: Runner,
    manifest: Manifest,
    reference: Runner,
    *,
    others: Sequence[Reference] = (),
    inputs: int | None = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
    npz: Sequence[Path] = (),
    images: Sequence[Path] = (),
    tolerance: float | None = None,
    top_k: int = 5,
    seed: int = 0,
    again: Again | None = None,
) -> ParityResult:
    """Run both on made-up inputs, files and photos, and compare all outputs.

    ``inputs`` of ``kinds`` are made up (default: one of each), each of ``npz`` is a feed.

    It passes when on every input max |error| <= ``tolerance`` * max |reference| for every
    output, a second run gives the same bits, and on every photo the best class is the
    reference's or a near tie with it. ``tolerance`` is that of the outputs' dtypes where it is
    not given. ``others`` decide nothing: they tell who stands alone. ``again`` is the second run
    where that is another than ``run``.

    A picture that cannot be opened is listed in the result and makes no verdict.

    Raises:
        UsageError: there is nothing to compare, a file is not what the inputs are, or the model
            takes no photos.
    """
    if (len(kinds) if inputs is None else inputs) + len(npz) + len(images) < 1:
        raise UsageError("parity needs an input: ask for random inputs or give photos")
    if images:
        photo_input(manifest)
    unreadable: list[Unreadable] = []
    result = check_feeds(
        run,
        manifest,
        reference,
        _feeds(manifest, inputs, kinds, seed, npz, images, unreadable),
        others=others,
        tolerance=tolerance,
        top_k=top_k,
        again=again,
    )
    return dataclasses.replace(
        result,
        seed=seed,
        npz=tuple(NpzInfo(path.name, sha256_file(path)) for path in npz),
        unreadable=tuple(unreadable),
    )


def check_feeds(
    run: Runner,
    manifest: Manifest,
    reference: Runner,
    feeds: Iterable[tuple[str, str, Feed]],
    *,
    others: Sequence[Reference] = (),
    tolerance: float | None = None,
    top_k: int = 5,
    again: Again | None = None,
) -> ParityResult:
    """``check`` on inputs that are there already: each a name, a kind and a feed.

    Raises:
        UsageError: a reference does not run the model.
    """
    subject = Subject(
        run, reference, tuple(others), tolerance_of(manifest, tolerance), top_k, again
    )
    cases: list[Case] = []
    # Outputs whose reference has been the same, within the tolerance, on every input so far.
    unmoved: dict[str, NDArray[Any]] = {}
    for name, kind, feed in feeds:
        case, expected = subject.examine(name, kind, feed)
        unmoved = (
            {
                o: v
                for o, v in unmoved.items()
                if compare({o: expected[o]}, {o: v}, subject.tolerance)
            }
            if cases
            else {o: np.array(v) for o, v in expected.items()}
        )
        cases.append(case)
    warnings = [warning for case in cases for warning in case.warnings]
    if len(cases) > 1:
        warnings += [
            f"{output}: the reference is the same on every input, so parity says nothing of the "
            "layers before it"
            for output in unmoved
        ]
    return ParityResult(
        title_of(reference),
        subject.tolerance,
        tuple(cases),
        tuple(warnings),
        references=(title_of(reference), *(other.name for other in others)),
        labels=manifest.labels,
    )


def tolerance_of(manifest: Manifest, tolerance: float | None) -> float:
    """``tolerance``, else that of the outputs' dtypes."""
    if tolerance is not None:
        return tolerance
    return tolerance_for(spec.dtype for spec in manifest.outputs)


def title_of(reference: Runner) -> str:
    """A reference's name and version."""
    return reference.name if isinstance(reference, Reference) else "a given function"


def _feeds(
    manifest: Manifest,
    inputs: int | None,
    kinds: Sequence[str],
    seed: int,
    npz: Sequence[Path],
    images: Sequence[Path],
    unreadable: list[Unreadable],
) -> Iterator[tuple[str, str, Feed]]:
    yield from generate(manifest.inputs, kinds, inputs, seed)
    for name, path in zip(photo_names(npz), npz, strict=True):
        yield name, NPZ, read_npz(path, manifest.inputs)
    for name, path in zip(photo_names(images), images, strict=True):
        try:
            feed = photo_feed(path, manifest)
        except UsageError as error:
            unreadable.append(Unreadable(name, str(error)))
            continue
        yield name, PHOTO, feed
