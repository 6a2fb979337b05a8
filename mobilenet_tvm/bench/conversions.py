"""The ONNX model in each peer's own format: converted once, and kept in the cache folder."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from mobilenet_tvm.bench import converters, elsewhere
from mobilenet_tvm.bench.protocol import InputSpec
from mobilenet_tvm.build.manifest import ModelInfo
from mobilenet_tvm.errors import DeviceError
from mobilenet_tvm.toolchain import cache_dir

TIMEOUT_S = 300.0  # V3 large takes LiteRT's converter about 20 s
_FOLDER = "peers"
_RECIPE = 1  # counts when what converters.py does changes


def stage(model: Path, info: ModelInfo) -> Path:
    """The folder of a model in the cache, with its ``model.onnx`` and ``spec.json``.

    Its shapes are fixed as the artifact's are, which most converters want.

    Raises:
        UsageError: the file cannot be used.
    """
    import onnx

    from mobilenet_tvm.frontend.shapes import fix_input_shapes, infer_shapes

    proto = onnx.load(model)
    fix_input_shapes(proto, info.shape, info.batch)
    proto = infer_shapes(proto)
    data = proto.SerializeToString()
    folder = cache_dir() / _FOLDER / hashlib.sha256(data).hexdigest()[:16]
    if (folder / converters.SPEC).exists():
        return folder
    weights = {tensor.name for tensor in proto.graph.initializer}
    spec = converters.ModelSpec(
        tuple(
            InputSpec(value.name, _shape(value), _dtype(value))
            for value in proto.graph.input
            if value.name not in weights
        ),
        tuple(converters.OutputSpec(value.name, _shape(value)) for value in proto.graph.output),
    )
    folder.mkdir(parents=True, exist_ok=True)
    # The specification last, and each at once: another bench may be looking.
    _write(folder / converters.MODEL, data)
    _write(folder / converters.SPEC, msgspec.json.encode(spec))
    return folder


def convert(name: str, folder: Path, python: str, versions: Mapping[str, str]) -> Path:
    """The folder of a staged model in ``name``'s format, converted now if it is not there.

    Args:
        name: a key of ``converters.CONVERTERS``.
        folder: as ``stage`` left it.
        python: the Python that has the converter.
        versions: of the distributions that take part.

    Raises:
        DeviceError: the conversion failed or took too long.
    """
    tools = "-".join(f"{tool}{version}" for tool, version in sorted(versions.items()))
    kept = folder / f"{name}-{_RECIPE}-{tools}"
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        _run([*elsewhere.command(python, "converters"), name, str(folder), str(made)], python)
        try:
            made.rename(kept)
        except OSError:
            if not kept.exists():  # nobody else was faster
                raise
    return kept


def _run(command: list[str], python: str) -> None:
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=elsewhere.environment(python),
            start_new_session=True,  # a converter's own children end with it
        )
        try:
            status = child.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _kill_group(child)
            raise DeviceError(f"the conversion took more than {TIMEOUT_S:.0f} s") from None
        except BaseException:
            _kill_group(child)
            raise
        if status:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").splitlines()
            said = [line.strip() for line in lines if line.strip()]
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise DeviceError(f"the conversion failed: {said[-1][:400] if said else how}")


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _shape(value: object) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim  # type: ignore[attr-defined]
    return tuple(dim.dim_value for dim in dims)


def _dtype(value: object) -> str:
    from onnx import helper

    number = value.type.tensor_type.elem_type  # type: ignore[attr-defined]
    return str(helper.tensor_dtype_to_np_dtype(number).name)
