"""From ONNX to what a peer loads, in a process of its own: converters import gigabytes, print
much and may crash.

    converters.py NAME MODEL_FOLDER OUTPUT_FOLDER    (what is wrong is the last line on stderr)

A model folder is ``conversions.stage``'s: ``model.onnx``, its shapes fixed, and ``spec.json``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mobilenet_tvm.bench.protocol import InputSpec
from mobilenet_tvm.errors import UsageError

MODEL = "model.onnx"
SPEC = "spec.json"


class OutputSpec(msgspec.Struct, frozen=True):
    """One output of a model, in ONNX's layout."""

    name: str
    shape: tuple[int, ...]


class ModelSpec(msgspec.Struct, frozen=True):
    """What a model takes and gives: for runtimes whose own files name or lay it out otherwise."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]


def read_spec(folder: Path) -> ModelSpec:
    """The specification of a model folder."""
    return msgspec.json.decode((folder / SPEC).read_bytes(), type=ModelSpec)


def only_image(spec: ModelSpec, runtime: str) -> InputSpec:
    """The one image input of a model.

    Raises:
        UsageError: the model takes something else.
    """
    image = spec.inputs[0]
    if len(spec.inputs) != 1 or len(image.shape) != 4 or image.dtype != "float32":
        raise UsageError(f"{runtime} is run here with models of one float32 [N, C, H, W] input")
    return image


def image_shape(image: InputSpec) -> tuple[int, ...]:
    """The shape of an input of a staged model, where all are fixed."""
    return tuple(size for size in image.shape if size is not None)


def to_ncnn(folder: Path, output: Path) -> None:
    """``model.ncnn.param`` and ``.bin``, by pnnx, weights in float32 (it halves them if let)."""
    import pnnx

    only_image(read_spec(folder), "ncnn")
    source = output / MODEL  # pnnx writes beside what it reads, under its name
    shutil.copy(folder / MODEL, source)
    _run([pnnx.EXEC_PATH, MODEL, "fp16=0"], output)
    kept = ("model.ncnn.param", "model.ncnn.bin")
    for file in output.iterdir():
        if file.name not in kept:
            file.unlink()
    _require(output, *kept)


def to_mnn(folder: Path, output: Path) -> None:
    """``model.mnn``, by MNN's own converter, weights in float32 as it leaves them."""
    only_image(read_spec(folder), "MNN")
    _run(
        [
            *(sys.executable, "-c", "from MNN.tools.mnnconvert import main; main()"),
            *("-f", "ONNX", "--modelFile", str(folder / MODEL)),
            *("--MNNModel", "model.mnn", "--bizCode", "bench"),
        ],
        output,
    )
    _require(output, "model.mnn")


def to_litert(folder: Path, output: Path) -> None:
    """``model.tflite`` with its image in NHWC, LiteRT's own layout, by way of PyTorch."""
    import litert_torch
    import torch

    image = only_image(read_spec(folder), "LiteRT")
    network = torch_network(folder)
    _spell_hard_sigmoids(network)
    sample = (torch.rand(image_shape(image)).permute(0, 2, 3, 1).contiguous(),)
    converted = litert_torch.convert(litert_torch.to_channel_last_io(network, args=[0]), sample)
    converted.export(str(output / "model.tflite"))


def torch_network(folder: Path) -> Any:
    """The model as a ``torch.nn.Module``."""
    import onnx
    import onnx2torch

    return onnx2torch.convert(onnx.load(folder / MODEL)).eval()


def _spell_hard_sigmoids(network: Any) -> None:
    """LiteRT's XNNPACK has no hard sigmoid as PyTorch has it: each would be run outside of it and
    cut the network in pieces. As ``relu6(x + 3) / 6`` the whole network is XNNPACK's."""
    import torch

    class HardSigmoid(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.relu6(x + 3) * (1 / 6)

    for name, module in list(network.named_modules()):
        if isinstance(module, torch.nn.Hardsigmoid):
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, HardSigmoid())


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise UsageError(
            f"exit status {done.returncode}: {said[-1] if said else 'it said nothing'}"
        )


def _require(folder: Path, *names: str) -> None:
    """Some of the tools end with 0 when they have failed."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise UsageError(f"it wrote no {' and no '.join(missing)}")


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "litert": to_litert,
    "mnn": to_mnn,
    "ncnn": to_ncnn,
}


def main() -> None:
    """Convert what the arguments say; exit status 1 with one line on stderr if it fails."""
    name, folder, output = sys.argv[1:]
    try:
        CONVERTERS[name](Path(folder), Path(output))
    except Exception as error:
        said = " ".join(str(error).split())[:400]
        kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        raise SystemExit(f"{kind}{said}") from None


if __name__ == "__main__":
    main()
