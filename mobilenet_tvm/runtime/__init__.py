"""Load an artifact and run it with numpy arrays."""

from mobilenet_tvm.runtime.module import (
    ForeignArtifactError,
    Module,
    load,
    verify_checked,
    verify_file,
    verify_machine,
)
from mobilenet_tvm.runtime.remote import RemoteModule, load_remote

__all__ = [
    "ForeignArtifactError",
    "Module",
    "RemoteModule",
    "load",
    "load_remote",
    "verify_checked",
    "verify_file",
    "verify_machine",
]
