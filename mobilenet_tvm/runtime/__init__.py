"""Load an artifact and run it with numpy arrays."""

from mobilenet_tvm.runtime.module import (
    ForeignArtifactError,
    Module,
    load,
    verify_checked,
    verify_file,
    verify_machine,
)

__all__ = [
    "ForeignArtifactError",
    "Module",
    "load",
    "verify_checked",
    "verify_file",
    "verify_machine",
]
