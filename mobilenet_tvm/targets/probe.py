"""Can this machine compile for a preset, and run the result? Tried on a tiny kernel.

The functions run in a ``toolchain.Worker``, which an LLVM abort or an illegal instruction may
kill. They import no more of the package than they need, so that a broken one can be examined.
"""

from __future__ import annotations

import subprocess

from mobilenet_tvm import toolchain

_LENGTH = 64  # a few vectors of the widest preset


def compile_kernel(target: str, linker: tuple[str, ...], path: str) -> None:
    """Compile ``y = 2 x + 1`` over 64 floats for ``target`` and link it into ``path``.

    Raises:
        tvm.TVMError: LLVM cannot compile for the target.
        RuntimeError: it cannot be linked.
    """
    toolchain.activate()
    import tvm
    from tvm import te

    x = te.placeholder((_LENGTH,), "float32", name="x")
    y = te.compute(x.shape, lambda i: x[i] * 2.0 + 1.0, name="y")
    schedule = te.create_schedule(y.op)
    schedule[y].vectorize(y.op.axis[0])
    with tvm.transform.PassContext(config=toolchain.pass_config()):
        module = tvm.build(schedule, [x, y], target=target, name="kernel")
    module.save(path + ".o")
    if not linker:  # it is linked on the target
        return
    try:
        toolchain.zig(*linker, "-o", path, path + ".o")
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines() or [str(error)]
        raise RuntimeError(f"it cannot be linked: {said[-1]}") from None


def run_kernel(path: str) -> None:
    """Load what ``compile_kernel`` linked, run it, and compare with numpy.

    Raises:
        tvm.TVMError: it cannot be loaded here.
        ValueError: it computes something else.
    """
    toolchain.activate()
    import numpy as np
    import tvm

    given = np.arange(_LENGTH, dtype="float32")
    x, y = tvm.nd.array(given), tvm.nd.array(np.zeros_like(given))
    tvm.runtime.load_module(path)["kernel"](x, y)
    if not np.array_equal(y.numpy(), given * 2 + 1):
        raise ValueError("the kernel computes wrong results")
