"""RESULTS.md: one section for each benchmark and model, written by the command named in it."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def write(title: str, text: str, path: Path = RESULTS) -> None:
    """Put the section ``## <title>`` into the file, in place of its old one."""
    head = "# Results\n\nEvery figure is written by the command beside it.\n"
    sections = path.read_text().split("\n## ")[1:] if path.exists() else []
    kept = [section for section in sections if section.partition("\n")[0] != title]
    body = "".join("\n## " + section.rstrip() + "\n" for section in kept)
    path.write_text(f"{head}{body}\n## {title}\n\n{text.strip()}\n")
