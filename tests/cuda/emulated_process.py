"""A process whose CUDA device is the emulator.

A process has one CUDA device for good, and many test files share a process (pytest-xdist), so none
of them may choose the emulator for itself. Instead the fixture ``emulated`` (conftest.py) starts
one process for a test file, with the emulator active, and a test sends functions there::

    def _add(n):            # runs there: a function of the test file, with arguments to pickle
        import tvm
        ...
        return result.numpy()

    def test_add(emulated):
        np.testing.assert_array_equal(emulated.call(_add, 3), ...)

What the function raises, ``call`` raises here; all functions of a file see the same process.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import multiprocessing
import os
import sys
import types
from collections.abc import Callable
from typing import Any

_modules: dict[str, types.ModuleType] = {}


class EmulatedProcess:
    """One child process with the emulator as its CUDA device.

    Args:
        arch: whose limits it has.
        activate: whether TVM is imported and the device there before the first call.
        environment: more variables of the child.
    """

    def __init__(
        self,
        arch: str = "sm_80",
        *,
        activate: bool = True,
        environment: dict[str, str] | None = None,
    ) -> None:
        variables = {
            "MOBILENET_TVM_CUDA": "emulated",
            "MOBILENET_TVM_CUDA_ARCH": arch,
            **(environment or {}),
        }
        self._pool = concurrent.futures.ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(variables, activate),
        )

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 120.0) -> Any:
        """``function(*arguments)`` there.

        Raises:
            TimeoutError: it took longer; the process is gone then.
            concurrent.futures.process.BrokenProcessPool: it died.
            Exception: whatever the function raised.
        """
        file = function.__code__.co_filename
        future = self._pool.submit(_call, file, function.__name__, arguments)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            for process in list(self._pool._processes.values()):
                process.kill()
            raise TimeoutError(f"{function.__name__} took longer than {timeout_s} s") from None

    def close(self) -> None:
        self._pool.shutdown()


def _start(variables: dict[str, str], activate: bool) -> None:
    os.environ.pop("MOBILENET_TVM_CUDA_ORDER", None)
    os.environ.update(variables)
    if activate:
        from mobilenet_tvm import cuda

        cuda.activate()


def _call(file: str, name: str, arguments: tuple[Any, ...]) -> Any:
    # pytest's own name of a test module is not one that another process can import.
    if file not in _modules:
        called = f"emulated_{len(_modules)}"
        spec = importlib.util.spec_from_file_location(called, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[called] = module
        spec.loader.exec_module(module)
        _modules[file] = module
    return getattr(_modules[file], name)(*arguments)
