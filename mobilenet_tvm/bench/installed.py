"""What the peers' Python has: asked of it in a process of its own, for importing takes seconds.

installed.py '{"modules": [...], "distributions": [...]}'    prints an ``Installed`` as JSON
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterable

import msgspec

from mobilenet_tvm.bench import elsewhere
from mobilenet_tvm.errors import UsageError

_TIMEOUT_S = 120.0
_COMPILERS = ("g++", "clang++", "c++")  # those that torch.compile looks for


class Question(msgspec.Struct, frozen=True):
    """What is asked for."""

    modules: tuple[str, ...]
    distributions: tuple[str, ...]


class Installed(msgspec.Struct, frozen=True):
    """What is there.

    Attributes:
        modules: those of the asked for that can be imported.
        versions: of the asked for distributions that are installed.
        openvino_default: the precision that OpenVINO computes in when nobody says which, as it
            calls it (``bf16``, ``f32`` ...); empty without OpenVINO.
        compiler: a C++ compiler is on the PATH.
    """

    modules: tuple[str, ...]
    versions: dict[str, str]
    openvino_default: str
    compiler: bool


def look(question: Question) -> Installed:
    """Answer in this process. Nothing is imported but OpenVINO, which alone knows its default."""
    modules = tuple(name for name in question.modules if _importable(name))
    return Installed(
        modules,
        dict(_versions(question.distributions)),
        _openvino_default() if "openvino" in modules else "",
        any(shutil.which(name) for name in _COMPILERS),
    )


def ask(python: str, question: Question) -> Installed:
    """Answer for ``python``.

    Raises:
        UsageError: it does not run, or lacks what every peer's worker needs.
    """
    command = [*elsewhere.command(python, "installed"), msgspec.json.encode(question).decode()]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=elsewhere.environment(python),
        )
    except OSError as error:
        raise UsageError(
            f"{elsewhere.VARIABLE}={python}: no such Python ({error.strerror})"
        ) from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{python} did not say within {_TIMEOUT_S:.0f} s what it has") from None
    try:
        # A library that is imported may print, too.
        return msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=Installed)
    except msgspec.MsgspecError:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise UsageError(
            f"{python} cannot run peers: {said[-1] if said else 'it said nothing'} "
            f"({python} -m pip install numpy msgspec platformdirs)"
        ) from None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing
        return False


def _versions(distributions: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in distributions:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _openvino_default() -> str:
    try:
        import openvino

        return str(openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string())
    except Exception:  # then its row says what is wrong with it
        return ""


def main() -> None:
    """Answer the question in the first argument on stdout."""
    found = look(msgspec.json.decode(sys.argv[1], type=Question))
    print(msgspec.json.encode(found).decode(), flush=True)


if __name__ == "__main__":
    main()
