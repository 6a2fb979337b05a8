"""Runs a part of the bench in a Python that need not have TVM: the peers' own.

    PYTHON elsewhere.py ROLE ARGUMENT...    (ROLE: worker, converters or installed)

Started by its path, so that nothing of this package is installed there. The package's own
``__init__`` prepares for TVM and needs much that a peer does not: two empty packages stand in
for it and for ``bench``, and the modules are found beside this file. What those roles import is
numpy, msgspec and platformdirs, and the peers themselves.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path

VARIABLE = "MOBILENET_TVM_PEERS"  # a Python in which the peers are installed


def peers_python() -> str:
    """The Python that runs peers: ``$MOBILENET_TVM_PEERS``, by default this one."""
    return os.environ.get(VARIABLE) or sys.executable


def command(python: str, role: str) -> tuple[str, ...]:
    """What starts ``role`` in ``python``."""
    return (python, str(Path(__file__).resolve()), role)


def environment(python: str) -> dict[str, str]:
    """This process's environment, without what leads another Python to this one's packages."""
    foreign = () if python == sys.executable else ("PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in foreign}


def main() -> None:
    """Run the role that the first argument names on the others."""
    folder = Path(__file__).resolve().parent
    # Python puts a script's folder first, and there a `process` or `results` is ours.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]
    for name, path in (("mobilenet_tvm", folder.parent), ("mobilenet_tvm.bench", folder)):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    role = sys.argv.pop(1)
    importlib.import_module(f"mobilenet_tvm.bench.{role}").main()


if __name__ == "__main__":
    main()
