"""The frame around a verb: parse, run, print, and turn errors into exit statuses.

A verb is ``run(args, out) -> payload``: the payload is the one JSON object that ``--json``
prints on stdout; all else goes to ``out``, which writes to stderr when ``--json`` is given.
A verb that fails under ``--json`` prints one object as well, with ``error`` and ``exit_code``.
Exit status: 0 done; 1 a check failed; 2 bad usage or input; 3 the device or a worker failed
for good, or a bug of ours; 130 on Ctrl-C or SIGTERM; 141 when the reader of the output went
away, as for any Unix tool.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich_argparse import RichHelpFormatter

from mobilenet_tvm.cli.interrupts import Interrupts, interruptible
from mobilenet_tvm.errors import MobilenetTvmError

INTERRUPTED = 130
READER_GONE = 141


class _Console(Console):
    """A console that leaves it to ``run_verb`` what a broken pipe means."""

    def on_broken_pipe(self) -> None:
        """Called by rich inside its handler; its own version ends with status 1."""
        raise


@dataclass(frozen=True)
class Output:
    """Where a verb speaks to a person.

    ``console`` is stdout, or stderr under ``--json``; warnings always go to ``errors`` (stderr).
    """

    console: Console
    errors: Console
    verbose: bool = False

    def line(self, text: str) -> None:
        """Print one plain line, unwrapped."""
        self.console.print(escape(text), soft_wrap=True, highlight=False)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show ``what`` with a spinner while it goes on; nothing where there is no terminal."""
        if self.console.is_terminal:
            # Drawing takes time from the cores, which may be measuring.
            with self.console.status(escape(what), refresh_per_second=1):
                yield
        else:
            yield

    def warn(self, text: str) -> None:
        """Print one warning line on stderr, unwrapped."""
        self.errors.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True, highlight=False)


class VerbFailedError(MobilenetTvmError):
    """A verb that ended in a failure after printing its payload (a failed parity check)."""

    def __init__(self, message: str, payload: dict[str, Any], exit_code: int = 1) -> None:
        super().__init__(message)
        self.payload = payload
        self.exit_code = exit_code


def run_verb(
    verb: str,
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace, Output], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse ``argv``, run the verb, print its payload under ``--json``, return the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m mobilenet_tvm.{verb}",
        description=description,
        formatter_class=RichHelpFormatter,
    )
    add_arguments(parser)
    common = parser.add_argument_group("output")
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    common.add_argument("-v", "--verbose", action="store_true", help="show tracebacks of errors")
    args = parser.parse_args(argv)

    try:
        text, status = _run(args, run)
        if args.json:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`... | head`); there is nobody left to tell.
        _silence(sys.stdout)
        _silence(sys.stderr)
        return READER_GONE
    return status


def _run(
    args: argparse.Namespace, run: Callable[[argparse.Namespace, Output], dict[str, Any]]
) -> tuple[str, int]:
    """Run the verb, say on stderr what went wrong; its payload as JSON and the exit status."""
    errors = _Console(stderr=True)
    out = Output(errors if args.json else _Console(), errors, args.verbose)
    interrupts = Interrupts()
    try:
        with interruptible() as interrupts, _stdout_for_json(args.json):
            payload = run(args, out)
        return _json(payload), 0
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if interrupts.seen or isinstance(error, KeyboardInterrupt):
            errors.print("[yellow]interrupted[/]")
            return _json({"error": "interrupted", "exit_code": INTERRUPTED}), INTERRUPTED
        message, exit_code = _explain(error)
        if args.verbose:
            errors.print_exception()
        errors.print(f"[red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
        payload = error.payload if isinstance(error, VerbFailedError) else {}
        return _json({**payload, "error": message, "exit_code": exit_code}), exit_code


def _json(payload: dict[str, Any]) -> str:
    return msgspec.json.encode(payload).decode()


def _explain(error: Exception) -> tuple[str, int]:
    """One line for a person, and the exit status."""
    if isinstance(error, MobilenetTvmError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder we may not write
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}", 3
    if isinstance(error, MemoryError):
        return "out of memory", 3
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
    return (
        f"a bug in mobilenet_tvm: {type(error).__name__} at {Path(last.filename).name}:"
        f"{last.lineno}{': ' if said else ''}{said[:300]}; run the command again with -v and "
        "please report the traceback"
    ), 3


@contextmanager
def _stdout_for_json(wanted: bool) -> Iterator[None]:
    """What anybody prints meanwhile goes to stderr, native code included."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    try:
        descriptor = sys.stdout.fileno()
    except (io.UnsupportedOperation, AttributeError):  # replaced, by a test for one
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    kept = os.dup(descriptor)
    os.dup2(sys.stderr.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, descriptor)
        os.close(kept)


def _silence(stream: Any) -> None:
    """Let the interpreter's last flush of a broken stream go nowhere."""
    with contextlib.suppress(io.UnsupportedOperation, AttributeError, OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
