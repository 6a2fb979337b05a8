"""Progress through a folder of photos: one live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar

from mobilenet_tvm.parity.folder import Progress
from mobilenet_tvm.parity.photos import PhotoTally

# In a log a line now and then, not one a photo.
_PLAIN_EVERY_S: Final = 10.0


@contextmanager
def photo_progress(console: Console) -> Iterator[Progress]:
    """What ``compare_folder`` reports to, fit for ``console``."""
    if not console.is_terminal:
        yield _plain(console)
        return
    bar = RichBar(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("photos"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        refresh_per_second=2,
    )
    line = bar.add_task("", visible=False)

    def show(done: int, total: int, tally: PhotoTally) -> None:
        bar.update(line, completed=done, total=total, description=_told(tally), visible=True)

    with bar:
        yield show


def _plain(console: Console) -> Progress:
    said_s = time.monotonic()

    def show(done: int, total: int, tally: PhotoTally) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s >= _PLAIN_EVERY_S or done == total:
            said_s = now_s
            console.print(f"photos {done}/{total}{_told(tally)}", highlight=False, soft_wrap=True)

    return show


def _told(tally: PhotoTally) -> str:
    """``, 2 failed, 3 of another class, 1 unreadable``: what is not zero."""
    counts = (
        (tally.failed, "failed"),
        (tally.disagreed, "of another class"),
        (tally.unreadable_count, "unreadable"),
    )
    return "".join(f", {count} {what}" for count, what in counts if count)
