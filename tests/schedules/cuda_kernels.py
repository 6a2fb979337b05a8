"""What the emulated process of ``test_cuda_schedule_numerics`` does; nothing here is a test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np


def _conftest() -> Any:
    """Of this folder, which has no name that this process could import."""
    name = "schedules_conftest"
    if name not in sys.modules:
        path = Path(__file__).with_name("conftest.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def template_outputs(
    kind: str, shapes: Any, how: Any, preset: str, samples: int, seed: int
) -> list[tuple[str, Any, Any]]:
    """``(configuration, output, output with threads in reverse order)`` of the default and some."""
    from tvm import autotvm

    import mobilenet_tvm.schedules  # noqa: F401  (registers the templates)
    from mobilenet_tvm import targets
    from mobilenet_tvm.cuda import emulator

    autotvm.GLOBAL_SCOPE.in_tuning = autotvm.GLOBAL_SCOPE.silent = True
    conftest = _conftest()
    made = conftest.Kernel(kind, targets.resolve(preset), *shapes, *how)
    arrays = conftest.arrays(*shapes)
    results = []
    for config in [made.default, *made.samples(samples, seed)]:
        run = made.build(config)
        outputs = []
        for reverse in (False, True):
            emulator.set_order(reverse=reverse)
            outputs.append(run(*arrays))
        results.append((str(config), *outputs))
    return results


def relay_outputs(text: str, shapes: dict[str, tuple[int, ...]], preset: str) -> tuple[Any, Any]:
    """What a Relay module computes with our schedules on the GPU, and on this CPU."""
    import tvm
    from tvm import autotvm, relay
    from tvm.contrib import graph_executor

    import mobilenet_tvm.schedules
    from mobilenet_tvm import targets, toolchain

    mobilenet_tvm.schedules.use("ours")
    autotvm.GLOBAL_SCOPE.in_tuning, autotvm.GLOBAL_SCOPE.silent = False, True
    random = np.random.default_rng(1)
    values = {n: random.uniform(-1, 1, shape).astype("float32") for n, shape in shapes.items()}
    module = tvm.ir.load_json(text)
    outputs = []
    for target, device in (
        (targets.resolve(preset).tvm_target(), tvm.cuda(0)),
        (tvm.target.Target("llvm"), tvm.cpu(0)),
    ):
        with tvm.transform.PassContext(opt_level=3, config=toolchain.pass_config()):
            library = relay.build(module, target=target)
        executor = graph_executor.GraphModule(library["default"](device))
        executor.run(**values)
        outputs.append(executor.get_output(0).numpy())
    return outputs[0], outputs[1]
