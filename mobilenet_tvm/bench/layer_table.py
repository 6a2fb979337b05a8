"""A profile for a person: the kernels that lose most come first."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from mobilenet_tvm.bench.layers import NEAR_ROOFLINE, Layer, LayerProfile


def layer_table(profile: LayerProfile) -> Table:
    """A row a kernel, by the time that it loses to its roofline, and the sums.

    See docs/profile.md for how to read it.
    """
    cores = f"{profile.threads} thread{'' if profile.threads == 1 else 's'}"
    view = Table(
        box=box.SIMPLE,
        title=f"{profile.artifact}, {cores}",
        title_justify="left",
        title_style="",
        caption=_caption(profile),
        caption_justify="left",
        caption_style="",
    )
    view.add_column("#", justify="right", no_wrap=True)
    view.add_column("layer", overflow="fold", min_width=20)
    numbers = ("us", "p5-p95", "GFLOP/s", "of\npeak", "GB/s", "roofline\nus", "lost\nus", "lost\n%")
    for heading in numbers:
        view.add_column(heading, justify="right", no_wrap=True)
    scheduled = any(layer.schedule for layer in profile.layers)
    if scheduled:
        view.add_column("schedule", overflow="fold")
    for layer in sorted(profile.layers, key=lambda one: one.lost_us, reverse=True):
        cells = _cells(layer)
        view.add_row(*(escape(cell) for cell in cells[: len(view.columns)]))
    view.add_section()
    view.add_row(*_total(profile))
    return view


def _cells(layer: Layer) -> list[str]:
    schedule = layer.schedule
    if layer.records:
        schedule += f" {', '.join(str(index + 1) for index in layer.records)}"
    if layer.config:
        schedule += f": {layer.config}"
    return [
        str(layer.index + 1),
        layer.label,
        _us(layer.median_us),
        f"{_us(layer.p5_us)}-{_us(layer.p95_us)}",
        "-" if layer.gflops is None else f"{layer.gflops:.1f}",
        "-" if layer.peak_fraction is None else f"{layer.peak_fraction:.0%}",
        f"{layer.gbps:.1f}",
        f"{_us(layer.roofline_us)} {layer.bound[0]}",
        _us(layer.lost_us),
        f"{100 * layer.lost_fraction:.1f}",
        schedule,
    ]


def _total(profile: LayerProfile) -> list[str]:
    layers = profile.layers
    total_us = sum(one.median_us for one in layers)
    gflops = sum(one.flops or 0 for one in layers) / total_us / 1e3
    moved = sum(one.input_bytes + one.weight_bytes + one.output_bytes for one in layers)
    return [
        "",
        f"{len(layers)} kernels",
        _us(total_us),
        "",
        f"{gflops:.1f}",
        f"{gflops / profile.peak_gflops / profile.threads:.0%}",
        f"{moved / total_us / 1e3:.1f}",
        _us(sum(one.roofline_us for one in layers)),
        _us(sum(one.lost_us for one in layers)),
        f"{100 * sum(one.lost_fraction for one in layers):.1f}",
    ]


def print_layers(console: Console, profile: LayerProfile) -> None:
    """The table, as wide as it is where nobody's terminal limits it."""
    view = layer_table(profile)
    if not console.is_terminal:
        options = console.options.update(max_width=1000)
        console = Console(file=console.file, width=Measurement.get(console, options, view).maximum)
    console.print(view)


def _us(value_us: float) -> str:
    return f"{value_us:.0f}" if value_us >= 100 else f"{value_us:.1f}"


def _caption(profile: LayerProfile) -> str:
    whole, bandwidth = profile.end_to_end_us, profile.bandwidth
    levels = ", ".join(f"{level} {gbps:.0f}" for level, gbps in bandwidth.gbps.items())
    lines = [
        f"end to end {whole:.0f} us ({profile.p5_us:.0f}-{profile.p95_us:.0f}): the kernels "
        f"together {profile.kernels_us:.0f} us, between them {profile.between_us:.1f} us "
        f"({profile.between_us / whole:.1%}); called from Python {profile.from_python_us:.0f} us",
        *_launch(profile),
        f"{profile.near_roofline:.0%} of the kernels' time is within {NEAR_ROOFLINE - 1:.0%} of "
        "its roofline (F: by FLOPs, b: by bytes)",
        f"{profile.machine}; peak {profile.peak_gflops:.0f} GFLOP/s a core; reading, GB/s: "
        f"{levels}, the model's {bandwidth.model_bytes / 1e6:.1f} MB {bandwidth.model_gbps:.0f}",
        f"medians of {profile.samples} inferences in {profile.rounds} rounds",
    ]
    return escape("\n".join(lines))


def _launch(profile: LayerProfile) -> list[str]:
    if profile.launch_us is None:
        return []
    return [
        f"a launch of {profile.threads} threads takes {profile.launch_us:.2f} us, in the kernels' "
        "times"
    ]
