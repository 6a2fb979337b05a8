"""Named targets: each preset is a frozen value that says what to compile for."""

from mobilenet_tvm.targets.host import cpu_features, cpu_name, missing_features, physical_cores
from mobilenet_tvm.targets.presets import Preset, for_gpu, names, resolve

__all__ = [
    "Preset",
    "cpu_features",
    "cpu_name",
    "for_gpu",
    "missing_features",
    "names",
    "physical_cores",
    "resolve",
]
