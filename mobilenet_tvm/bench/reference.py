"""The ONNX model that an artifact was made from, for a peer to run."""

from __future__ import annotations

from pathlib import Path

from mobilenet_tvm.build.manifest import Manifest


def reference_model(manifest: Manifest, onnx: Path | None, folder: Path) -> tuple[Path, int]:
    """The model's ONNX file (a zoo's is written to ``folder``) and its Mult-Adds."""
    import onnx as onnx_package

    from mobilenet_tvm import zoo
    from mobilenet_tvm.frontend.shapes import fix_input_shapes, infer_shapes
    from mobilenet_tvm.parity import reference_onnx

    data = reference_onnx(manifest, onnx)
    proto = onnx_package.load_model_from_string(data)
    fix_input_shapes(proto, manifest.model.shape, manifest.model.batch)
    mult_adds: int = zoo.costs(infer_shapes(proto)).mult_adds
    if onnx is None and manifest.model.zoo is None and manifest.model.path is not None:
        onnx = Path(manifest.model.path)  # where its external data is, if it has any
    if onnx is None:
        onnx = folder / "model.onnx"
        onnx.write_bytes(data)
    return onnx, mult_adds
