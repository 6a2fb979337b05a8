"""The kernels that ``fused.py`` times, a library for each layer, with a thread pool of its own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenet_tvm import targets, toolchain
from mobilenet_tvm.build.link import link

OTHER_BYTES = 8 << 20  # of other layers, read between two calls: more than all L2 caches
SCRATCH_BYTES = 512 << 10  # of a fused kernel's buffer at most: half of an L2 cache
NEARLY = 1.1  # a register tile that takes so many times the best one's cycles may still win
PAIR_CONFIGS = {"depthwise": 12, "pointwise": 20}  # of the templates, beside their defaults


@dataclass(frozen=True)
class Layer:
    """A depthwise 3x3 convolution with ReLU6 on ``[1, channels, size, size]``, and the pointwise
    one behind it, with ReLU6 too in V1."""

    model: str
    channels: int
    size: int
    filters: int
    stride: int = 1

    @property
    def label(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.model} {self.channels}{stride}@{self.size}->{self.filters}"

    @property
    def out_size(self) -> int:
        return self.size // self.stride

    @property
    def flops(self) -> int:
        return 2 * self.out_size**2 * self.channels * (9 + self.filters)

    @property
    def strides(self) -> tuple[int, int]:
        return self.stride, self.stride

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """As TensorFlow pads: stride 2 on an even size at the bottom and on the right alone."""
        before = 2 - self.stride
        return before, before, 1, 1


@dataclass(frozen=True)
class Fusion:
    """Knobs of the fused kernel.

    A buffer of ``band`` x ``span`` pixels of all channels is filled by register tiles of
    ``window`` (rows, columns; ``taps_outer``: the order of a tile's sums), and read by those of
    ``tile`` (channel blocks, rows, columns). With ``pixels_outer`` a tile's pixels meet all
    weights before the next pixels do.
    """

    band: int
    span: int
    window: tuple[int, int]
    taps_outer: bool
    tile: tuple[int, int, int]
    pixels_outer: bool


def build(layer: Layer, path: Path, configs: int, seed: int) -> dict[str, list[str]]:
    """Compile a layer's kernels into a library, ``configs`` fused ones among them, and return their
    names by kind."""
    toolchain.activate()
    import tvm

    preset = targets.resolve("x86")
    target = preset.tvm_target()
    sample = random.Random(f"{seed} {layer.label}")
    module, names = tvm.IRModule(), {}
    with target, tvm.transform.PassContext(config=toolchain.pass_config()):
        every = itertools.chain(
            template_kernels(layer, sample, target),
            fused_kernels(layer, sample, configs),
            other_kernels(layer),
        )
        for name, schedule, arguments in every:
            module.update(tvm.lower(schedule, arguments, name=name))
            names.setdefault(name.partition("_")[0], []).append(name)
        link(tvm.build(module, target=target), path, preset)
    return names


def tensors_of(layer: Layer) -> list[Any]:
    """Placeholders of the input, of weights and biases of both convolutions, and of what is
    between them; for the current target."""
    from tvm import te

    from mobilenet_tvm.schedules.x86.layout import channel_block

    x, y = channel_block(layer.channels), channel_block(layer.filters)
    c, k, out = layer.channels // x, layer.filters // y, layer.out_size
    return [
        te.placeholder((1, c, layer.size, layer.size, x), name="data"),
        te.placeholder((c, 1, 3, 3, 1, x), name="window"),
        te.placeholder((1, c, 1, 1, x), name="window_bias"),
        te.placeholder((k, c, 1, 1, x, y), name="weights"),
        te.placeholder((1, k, 1, 1, y), name="bias"),
        te.placeholder((1, c, out, out, x), name="between"),
    ]


def epilogue(sums: Any, bias: Any, *, relu6: bool) -> Any:
    """Bias and ReLU6 as an operator of the kind that the templates take into their kernels."""
    from tvm import te, tir

    def value(n: Any, c: Any, h: Any, w: Any, i: Any) -> Any:
        biased = sums[n, c, h, w, i] + bias[0, c, 0, 0, i]
        return tir.max(tir.min(biased, 6.0), 0.0) if relu6 else biased

    return te.compute(sums.shape, value, name="result", tag="injective")


def register_tiles(layer: Layer) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """The tiles that the package's model of a core likes best: of the depthwise convolution (rows,
    columns) and of the pointwise one (channel blocks, rows, columns)."""
    from mobilenet_tvm.schedules.layout import divisors
    from mobilenet_tvm.schedules.x86.layout import channel_block
    from mobilenet_tvm.schedules.x86.model import sums_cycles, window_cycles
    from mobilenet_tvm.schedules.x86.template import this_core

    core = this_core()
    most = core.most_sums
    x, y = channel_block(layer.channels), channel_block(layer.filters)
    columns = divisors(layer.out_size, most)
    windows = {
        tile: window_cycles(core, x, (3, 3), layer.strides, *tile)
        for tile in itertools.product((1, 2), columns)
        if tile[0] * tile[1] <= most
    }
    tiles = {
        (chunks, rows, wide): sums_cycles(core, y, chunks, rows * wide) / (chunks * rows * wide)
        for chunks, rows, wide in itertools.product(
            divisors(layer.filters // y, 6), (1, 2, 4), columns
        )
    }
    return (
        [tile for tile, cost in windows.items() if cost <= NEARLY * min(windows.values())],
        [tile for tile, cost in tiles.items() if cost <= NEARLY * min(tiles.values())],
    )


def template_kernels(
    layer: Layer, sample: random.Random, target: Any
) -> Iterator[tuple[str, Any, list[Any]]]:
    """Our templates' defaults, and a sample of those configurations that have a good tile."""
    from tvm import autotvm, te

    from mobilenet_tvm.records.tasks import default_config
    from mobilenet_tvm.schedules.layout import shape_of
    from mobilenet_tvm.schedules.x86 import depthwise, pointwise

    *first, weights, bias, between = tensors_of(layer)
    windows, tiles = register_tiles(layer)
    strided, plain = (layer.strides, layer.padding), ((1, 1), (0, 0, 0, 0))
    for room, place, knobs, good, arguments in (
        (depthwise, strided, ("rows", "columns"), windows, first),
        (pointwise, plain, ("chunks", "rows", "columns"), tiles, [between, weights, bias]),
    ):
        data, kernel, shift = arguments
        n, c, h, w, x = shape_of(data)
        outer, inner, kernel_h, kernel_w, inner_block, outer_block = shape_of(kernel)
        image = te.placeholder((n, c * x, h, w))
        filters = te.placeholder((outer * outer_block, inner * inner_block, kernel_h, kernel_w))
        options = (*place, (1, 1), "NCHW", "NCHW", "float32")
        task = autotvm.task.create(room.TASK, (image, filters, *options), target)
        space = task.config_space
        every = (space.get(i) for i in range(space.range_length) if space.is_index_valid(i))
        liked = [one for one in every if tuple(one[knob].val for knob in knobs) in good]
        kind = room.TASK.partition("_")[0]
        chosen = sample.sample(liked, min(PAIR_CONFIGS[kind], len(liked)))
        for index, config in enumerate([space.get(default_config(task)), *chosen]):
            with autotvm.task.ApplyConfig(config):
                sums = getattr(room, f"{kind}_conv2d")(data, kernel, *options)
                relu6 = kind == "depthwise" or layer.model == "V1"
                result = epilogue(sums, shift, relu6=relu6)
                schedule = getattr(room, f"schedule_{kind}_conv2d")([result])
            yield f"{kind}_{index}", schedule, [*arguments, result]


def fused_kernels(
    layer: Layer, sample: random.Random, configs: int
) -> Iterator[tuple[str, Any, list[Any]]]:
    """A sample of the fused kernel's configurations."""
    from mobilenet_tvm.schedules.layout import divisors

    windows, tiles = register_tiles(layer)
    out = layer.out_size
    found = [
        Fusion(band, span, window, taps_outer, tile, pixels_outer)
        # At least two bands, for two threads.
        for band, span in itertools.product(divisors(out, out // 2), divisors(out, out))
        if band <= 8 and layer.channels * band * span * 4 <= SCRATCH_BYTES
        for tile in tiles
        if band % tile[1] == 0 and span % tile[2] == 0
        for window in windows
        if band % window[0] == 0 and span % window[1] == 0
        for taps_outer, pixels_outer in itertools.product((False, True), repeat=2)
    ]
    for index, fusion in enumerate(sample.sample(found, min(configs, len(found)))):
        yield f"fused_{index}", *fused(layer, fusion)


def fused(layer: Layer, fusion: Fusion) -> tuple[Any, list[Any]]:
    """Schedule and arguments of a fused kernel: our templates' computations in one schedule."""
    from tvm import autotvm, te

    from mobilenet_tvm.schedules import depthwise, pointwise
    from mobilenet_tvm.schedules.layout import shape_of
    from mobilenet_tvm.schedules.x86.layout import channel_block

    data, window, window_bias, weights, bias, _ = tensors_of(layer)
    config = autotvm.task.space.FallbackConfigEntity()
    options = {"channel_block": channel_block, "define_space": lambda *_: None}
    window_sums = depthwise.compute(
        config, data, window, layer.strides, layer.padding, tag="window_sums", **options
    )
    between = epilogue(window_sums, window_bias, relu6=True)
    sums = pointwise.compute(config, between, weights, tag="sums", **options)
    result = epilogue(sums, bias, relu6=layer.model == "V1")

    schedule = te.create_schedule(result.op)
    stage, (chunks, rows, columns) = schedule[result], fusion.tile
    n, k, h, w, o = result.op.axis
    k_outer, k_inner = stage.split(k, chunks)
    band, h = stage.split(h, fusion.band)
    span, w = stage.split(w, fusion.span)
    h_outer, h_inner = stage.split(h, rows)
    w_outer, w_inner = stage.split(w, columns)
    pixels = [h_outer, w_outer]
    loops = [*pixels, k_outer] if fusion.pixels_outer else [k_outer, *pixels]
    stage.reorder(n, band, span, *loops, k_inner, h_inner, w_inner, o)
    stage.parallel(stage.fuse(n, band))
    unrolled(stage, (k_inner, h_inner, w_inner), o)

    stage = schedule[sums]
    stage.compute_at(schedule[result], loops[-1])
    _, k, h, w, o = sums.op.axis
    outer, inner = stage.split(sums.op.reduce_axis[0], shape_of(data)[-1])
    stage.reorder(outer, inner, k, h, w, o)
    unrolled(stage, (k, h, w), o)

    stage, (rows, columns) = schedule[between], fusion.window
    stage.compute_at(schedule[result], span)
    _, c, h, w, i = between.op.axis
    h_outer, h_inner = stage.split(h, rows)
    w_outer, w_inner = stage.split(w, columns)
    stage.reorder(c, h_outer, w_outer, h_inner, w_inner, i)
    unrolled(stage, (h_inner, w_inner), i)

    stage = schedule[window_sums]
    stage.compute_at(schedule[between], w_outer)
    _, c, h, w, i = window_sums.op.axis
    taps = list(window_sums.op.reduce_axis)
    stage.reorder(c, *([*taps, h, w] if fusion.taps_outer else [h, w, *taps]), i)
    unrolled(stage, (*taps, h, w), i)
    return schedule, [data, window, window_bias, weights, bias, result]


def unrolled(stage: Any, axes: tuple[Any, ...], lanes: Any) -> None:
    """A register tile: ``axes`` unrolled around vectors of ``lanes``."""
    for axis in axes:
        stage.unroll(axis)
    stage.vectorize(lanes)


def other_kernels(layer: Layer) -> Iterator[tuple[str, Any, list[Any]]]:
    """What happens between two calls, ``others`` and ``before``; ``nothing`` is a call's cost."""
    from tvm import te, tir

    others = te.placeholder((64, OTHER_BYTES // 4096, 16), name="others")
    line = te.reduce_axis((0, OTHER_BYTES // 4096), name="line")
    read = te.compute((64, 16), lambda p, i: te.max(others[p, line, i], axis=line), name="read")
    schedule = te.create_schedule(read.op)
    p, i = read.op.axis
    schedule[read].reorder(p, line, i)
    schedule[read].parallel(p)
    schedule[read].vectorize(i)
    yield "others", schedule, [others, read]

    data = tensors_of(layer)[0]
    written = te.compute(data.shape, lambda *i: tir.max(data(*i), 0.0), name="written")
    schedule = te.create_schedule(written.op)
    n, c, h, w, i = written.op.axis
    schedule[written].reorder(n, h, c, w, i)
    schedule[written].parallel(h)  # rows, as the layer before writes them
    schedule[written].vectorize(i)
    yield "before", schedule, [data, written]

    numbers = [te.placeholder((1,), name=f"number{index}") for index in range(3)]
    total = te.compute((1,), lambda i: numbers[0][i] + numbers[1][i] + numbers[2][i], name="total")
    yield "nothing", te.create_schedule(total.op), [*numbers, total]
