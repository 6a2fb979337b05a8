"""Other runtimes that a model can be held against, as values: on the CPU and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from mobilenet_tvm.bench.protocol import ContenderKind


@dataclass(frozen=True)
class Absent:
    """A peer that was asked for and does not run: why, and the command that may mend it, if any
    may."""

    name: str
    reason: str
    command: str = ""

    def __str__(self) -> str:
        mended = f" ({self.command})" if self.command else ""
        return f"{self.name}: absent, {self.reason}{mended}"


@dataclass(frozen=True)
class Peer:
    """A runtime that could be held against.

    Attributes:
        title: its name.
        modules: what must be importable; the first one's distribution gives the version.
        distributions: that the first module may be of, the one to install first.
        command: installs all.
        rows: kind and what is said of it beside the name; ``graph_rows`` where CUDA graphs are
            asked for as well.
    """

    title: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    command: str
    rows: tuple[tuple[ContenderKind, str], ...]
    graph_rows: tuple[tuple[ContenderKind, str], ...] = ()


@dataclass(frozen=True)
class PeerRow:
    """One way to run a peer, to be timed."""

    peer: str
    kind: ContenderKind
    label: str
