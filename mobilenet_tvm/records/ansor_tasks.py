"""The Ansor tasks of a model: every fused subgraph with a reduction, in NHWC.

Ansor schedules a convolution together with the bias, the activation and the residual
addition behind it. A task's label is that of the AutoTVM task for the same convolution, so that
the two searchers' records of one layer can be set against each other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mobilenet_tvm import toolchain
from mobilenet_tvm.frontend.layout import to_nhwc
from mobilenet_tvm.records.tasks import Task, layer_label, tensor_bytes
from mobilenet_tvm.records.workloads import register_workloads
from mobilenet_tvm.targets import Preset

_CACHE_LINE_BYTES = 64
# The widest load of a GPU's thread.
VECTOR_BYTES = 16


def extract_ansor_tasks(module: Any, preset: Preset, *, threads: int = 1) -> tuple[Task, ...]:
    """All Ansor tasks of a Relay module.

    Args:
        module: ``IRModule`` as ``frontend.to_relay`` leaves it, weights bound, layout NCHW.
        preset: the target.
        threads: that the module will run on; Ansor's sketches have as many parallel parts. Not
            of a GPU.
    """
    toolchain.activate()
    from tvm import auto_scheduler

    hardware = auto_scheduler.HardwareParams(**hardware_parameters(preset, threads=threads))
    target = preset.tvm_target()
    rewrite = auto_scheduler.LayoutRewriteOption.get_target_default(target, True)
    return tuple(
        _task(
            auto_scheduler.SearchTask(
                workload_key=key,
                target=target,
                hardware_params=hardware,
                layout_rewrite_option=rewrite,
                desc=",".join(names),
            ),
            weight,
        )
        for key, (weight, names) in _workloads(to_nhwc(module), target).items()
    )


def hardware_parameters(preset: Preset, *, threads: int = 1) -> dict[str, int]:
    """What Ansor is told of a preset's machine; all eight must be given, or it asks a device.

    A GPU's are those that TVM would find on one (``GetDefaultHardwareParams`` in
    src/auto_scheduler/search_task.cc).
    """
    gpu = preset.gpu
    if gpu is not None:
        return {
            "num_cores": -1,
            "vector_unit_bytes": VECTOR_BYTES,
            "cache_line_bytes": _CACHE_LINE_BYTES,
            "max_shared_memory_per_block": gpu.shared_per_block,
            # CUDA has no such limit; registers that do not fit are spilled.
            "max_local_memory_per_block": (1 << 31) - 1,
            "max_threads_per_block": gpu.threads_per_block,
            "max_vthread_extent": gpu.warp // 4,
            "warp_size": gpu.warp,
        }
    return {
        "num_cores": threads,
        "vector_unit_bytes": 4 * preset.peak_lanes,
        "cache_line_bytes": _CACHE_LINE_BYTES,
        "max_shared_memory_per_block": 0,
        "max_local_memory_per_block": 0,
        "max_threads_per_block": 0,
        "max_vthread_extent": 0,
        "warp_size": 0,
    }


def _workloads(module: Any, target: Any) -> dict[str, tuple[int, list[str]]]:
    """How often each workload occurs, and its functions' names, by key.

    As ``auto_scheduler.extract_tasks`` finds them, with the passes off that are off in a build:
    a key is of the fused function to the last operator.
    """
    from tvm import autotvm, relay, transform
    from tvm.auto_scheduler import DispatchContext
    from tvm.auto_scheduler.relay_integration import TracingEnvironment, TracingMode

    def lower() -> None:
        options = {"relay.backend.use_auto_scheduler": True}
        # Weights keep their layout until a schedule is known.
        disabled = [*toolchain.DISABLED_PASSES, "AutoSchedulerLayoutRewrite"]
        with transform.PassContext(opt_level=3, config=options, disabled_pass=disabled):
            relay.vm.VMCompiler().lower(module, target)

    context = DispatchContext.current
    verbose, context.verbose = context.verbose, 0
    silent, autotvm.GLOBAL_SCOPE.silent = autotvm.GLOBAL_SCOPE.silent, True
    try:
        # A thread of its own: TVM's contexts of this one must not mix in.
        with (
            TracingEnvironment(TracingMode.EXTRACT_COMPLEX_TASK_ONLY) as found,
            ThreadPoolExecutor(1) as pool,
        ):
            pool.submit(lower).result()
    finally:
        context.verbose, autotvm.GLOBAL_SCOPE.silent = verbose, silent
    return {
        str(key): (int(weight), list(names))
        for key, (weight, names) in found.wkl_key_to_weight.items()
    }


def _task(handle: Any, weight: int) -> Task:
    tensors = list(handle.compute_dag.tensors)
    moved = sum(tensor_bytes(tensor.shape) for tensor in tensors)
    # -1 where Ansor cannot count: one operation for each number read is near enough for a pool.
    flops = max(float(handle.compute_dag.flop_ct), moved / 4)
    convolution = _convolution(handle.compute_dag)
    label, weight_bytes = handle.desc.removeprefix("vm_mod_fused_"), 0
    if convolution is not None:
        label, weight_bytes = _describe(convolution)
    return Task(
        key=str(handle.workload_key),
        label=label,
        flops=flops,
        weight=weight,
        candidates=(),
        default=None,
        handle=handle,
        searcher="ansor",
        weight_bytes=weight_bytes,
    )


def labels_beside(log: Path) -> dict[str, str]:
    """Labels of the convolutions that the workloads beside an Ansor log hold, by key.

    Raises:
        UsageError: they are damaged.
    """
    keys = register_workloads(log)
    if not keys:
        return {}
    from tvm.auto_scheduler import ComputeDAG

    found = {key: _convolution(ComputeDAG(key)) for key in keys}
    return {key: _describe(op)[0] for key, op in found.items() if op is not None}


def _convolution(dag: Any) -> Any:
    """The convolution of a compute DAG, or None."""
    return next((op for op in dag.ops if "conv2d" in op.name.lower()), None)


def _describe(convolution: Any) -> tuple[str, int]:
    """Label and size of the weights of an NHWC convolution in a compute DAG."""
    import tvm

    if "winograd" in convolution.name:
        return _describe_winograd(convolution)
    data, kernel = convolution.input_tensors
    rows = next(
        load.indices[1]
        for load in _loads(convolution.body[0].source[0])
        if load.producer.op.name == data.op.name
    )
    # The input row is stride * output row + dilation * kernel row.
    stride = tvm.arith.detect_linear_equation(rows, [convolution.axis[1].var])[0]
    while data.op.input_tensors:  # padding
        data = data.op.input_tensors[0]
    _, height, width, channels = (int(size) for size in data.shape)
    kernel_height, kernel_width, third, fourth = (int(size) for size in kernel.shape)
    depthwise = convolution.name == "DepthwiseConv2d"
    filters = third * fourth if depthwise else fourth
    label = layer_label(
        (1, channels, height, width),
        (filters, 1 if depthwise else third, kernel_height, kernel_width),
        int(stride),
        depthwise=depthwise,
    )
    return label, tensor_bytes(kernel.shape)


def _describe_winograd(convolution: Any) -> tuple[str, int]:
    """The same of one by Winograd's method, which TVM takes for a GPU's square ones of stride 1.

    Its weights are transformed beforehand: ``[tile, tile, O, I]``, where a tile is as high as the
    kernel and the part of the output that it yields, less one.
    """
    (inverse,) = convolution.input_tensors
    product = next(tensor for tensor in inverse.op.input_tensors if tensor.op.name == "bgemm")
    (kernel,) = (tensor for tensor in product.op.input_tensors if not tensor.op.input_tensors)
    data = next(tensor for tensor in product.op.input_tensors if tensor.op.input_tensors)
    while data.op.input_tensors:  # tiles, padding; the constants of the method come second
        data = data.op.input_tensors[0]
    _, height, width, channels = (int(size) for size in data.shape)
    tile, _, filters, _ = (int(size) for size in kernel.shape)
    size = tile - int(inverse.shape[0]) + 1
    label = layer_label(
        (1, channels, height, width), (filters, channels, size, size), 1, depthwise=False
    )
    return label, tensor_bytes(kernel.shape)


def _loads(expression: Any) -> list[Any]:
    import tvm

    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, tvm.tir.ProducerLoad):
            found.append(node)

    tvm.tir.stmt_functor.post_order_visit(expression, visit)
    return found
