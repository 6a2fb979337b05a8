"""A parity result for a person: a line an output, who stands alone, which photos differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mobilenet_tvm.cli.frame import Output
from mobilenet_tvm.parity import RUNNERS, ParityResult

# More photos than this are in --json alone.
_SHOWN: Final = 20


def print_result(result: ParityResult, out: Output) -> None:
    """All but the verdict's own line."""
    for case in result.cases:
        for line in str(case.comparison).splitlines():
            out.line(f"{case.name}: {line}")
        if not case:
            for standing in case.standings:
                out.line(f"{case.name}: {standing}")
    photos = result.photo_agreement
    if result.folder is not None:
        out.line(_counts(result))
    _some(map(str, photos.confusions), photos.disagreed, out)
    unreadable = (f"{one.photo}: {one.reason}" for one in photos.unreadable)
    _some(unreadable, photos.unreadable_count, out)
    for warning in result.warnings:
        out.warn(warning)
    if not result:
        _some(result.failures[1:], len(result.failures) - 1, out)  # the summary says the first
        if len(result.references) <= 1 and not any(case.unrepeatable for case in result.cases):
            decided = result.decided_by
            both = [decided, *(name for name in RUNNERS if name != decided)]
            out.line(
                f"one reference cannot say who is wrong: ask with --reference {','.join(both)}"
            )


def unreadable_message(result: ParityResult) -> str:
    """Why a parity that passed is no success."""
    photos = result.photo_agreement
    count, total = photos.unreadable_count, photos.unreadable_count + photos.photos
    named = ", ".join(one.photo for one in photos.unreadable[:3])
    more = ", ..." if count > 3 else ""
    return (
        f"{count} of {total} pictures cannot be read ({named}{more}), the others passed: mend or "
        "remove them"
    )


def _counts(result: ParityResult) -> str:
    photos = result.photo_agreement
    told = f"photos: {photos.photos} compared, {photos.failed} failed"
    if photos.top1 is not None:
        same = photos.photos - photos.disagreed
        told += f"; best class the same on {same} ({photos.top1:.4%})"
        if photos.disagreed:
            told += f", another on {photos.disagreed}, {photos.near_ties} of them near ties"
    if photos.top_k is not None:
        told += f"; top-{photos.k} agreement {photos.top_k:.4%}"
    return f"{told}; {photos.unreadable_count} cannot be read"


def _some(lines: Iterable[str], count: int, out: Output) -> None:
    shown = list(lines)[:_SHOWN]
    for line in shown:
        out.line(line)
    if count > len(shown):
        out.line(f"... and {count - len(shown)} more like these (--json has more of them)")
