"""The pytest entry point: ``mobilenet_tvm/pytest_plugin`` without the package around it.

pytest imports the plug-ins of all installed packages in every run. Importing ``mobilenet_tvm``
prepares TVM's environment (``LD_PRELOAD``, and on a fresh machine a compiler run), which a
project that does not ask for us must not get. So the plug-in is loaded by its path here; the
rest of it, and the package itself, follow when an artifact is given.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from types import ModuleType

_NAME = "mobilenet_tvm.pytest_plugin"


def _load() -> ModuleType:
    if _NAME in sys.modules:  # `-p mobilenet_tvm.pytest_plugin` came first
        return sys.modules[_NAME]
    package = importlib.util.find_spec("mobilenet_tvm")  # finds it, and does not import it
    folders = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec(_NAME, folders)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no {_NAME} in {folders}", name=_NAME)
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


plugin = _load()
