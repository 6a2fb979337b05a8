from __future__ import annotations

import io

from rich.console import Console

from mobilenet_tvm.cli import photo_progress as module
from mobilenet_tvm.cli.photo_progress import photo_progress
from mobilenet_tvm.parity.photos import PhotoTally, Unreadable


def drawn(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    tally = PhotoTally()
    tally.add_unreadable(Unreadable("a.png", "cut"))
    with photo_progress(console) as progress:
        for done in (8, 16, 20):
            progress(done, 20, tally)
    return console.file.getvalue()


def test_outside_a_terminal_a_plain_line_now_and_then_and_one_at_the_end(monkeypatch):
    assert drawn(False) == "photos 20/20, 1 unreadable\n"
    monkeypatch.setattr(module, "_PLAIN_EVERY_S", 0.0)
    assert len(drawn(False).splitlines()) == 3


def test_in_a_terminal_one_live_bar():
    text = drawn(True)
    assert "20/20" in text
    assert "1 unreadable" in text
