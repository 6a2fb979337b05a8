"""The frame around a verb: parse, run, print, and turn errors into exit statuses.

A verb is ``run(args, out) -> payload``: the payload is the one JSON object that ``--json``
prints on stdout; all else goes to ``out``, which writes to stderr when ``--json`` is given.
Exit status: 0 done; 1 a check failed; 2 bad usage or input; 3 the device or a worker failed
for good; 130 on Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich_argparse import RichHelpFormatter

from mobilenet_tvm.errors import MobilenetTvmError


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
            with self.console.status(escape(what)):
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

    errors = Console(stderr=True)
    out = Output(errors if args.json else Console(), errors, args.verbose)

    def on_sigterm(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        _print_json(args.json, run(args, out))
    except KeyboardInterrupt:
        errors.print("[yellow]interrupted[/]: everything measured so far is kept", soft_wrap=True)
        return 130
    except BrokenPipeError:
        # The reader of our stdout went away (`... | head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MobilenetTvmError as error:
        if isinstance(error, VerbFailedError):
            _print_json(args.json, error.payload)
        if args.verbose:
            errors.print_exception()
        errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return error.exit_code
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _print_json(wanted: bool, payload: dict[str, Any]) -> None:
    if wanted:
        sys.stdout.write(msgspec.json.encode(payload).decode() + "\n")
        sys.stdout.flush()
