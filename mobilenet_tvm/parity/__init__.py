"""Parity: does a compiled module compute what its ONNX model computes?

``compare`` sets two results side by side, ``check`` runs a module and a reference on the same
inputs, ``check_artifact`` does so for an artifact on disk and marks its manifest.
"""

from mobilenet_tvm.parity.artifact import check_artifact
from mobilenet_tvm.parity.case import Case
from mobilenet_tvm.parity.comparison import Comparison, OutputComparison, compare
from mobilenet_tvm.parity.gate import check
from mobilenet_tvm.parity.kinds import DEFAULT_KINDS, FAMILIES, KINDS
from mobilenet_tvm.parity.photos import PhotoAgreement
from mobilenet_tvm.parity.references import (
    RUNNERS,
    Reference,
    onnx_runner,
    onnxruntime_runner,
    reference_onnx,
)
from mobilenet_tvm.parity.result import ParityResult
from mobilenet_tvm.parity.standing import Standing
from mobilenet_tvm.parity.tolerances import TOLERANCES, tolerance_for

__all__ = [
    "DEFAULT_KINDS",
    "FAMILIES",
    "KINDS",
    "RUNNERS",
    "TOLERANCES",
    "Case",
    "Comparison",
    "OutputComparison",
    "ParityResult",
    "PhotoAgreement",
    "Reference",
    "Standing",
    "check",
    "check_artifact",
    "compare",
    "onnx_runner",
    "onnxruntime_runner",
    "reference_onnx",
    "tolerance_for",
]
