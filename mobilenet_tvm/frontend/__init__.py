"""Any ONNX MobileNet in, clean Relay out: ``read`` -> ``clean`` -> ``to_relay``."""

from mobilenet_tvm.frontend.clean import CleanModel, clean
from mobilenet_tvm.frontend.model import Model, from_proto, read
from mobilenet_tvm.frontend.preprocessing import guess_preprocessing, load_image
from mobilenet_tvm.frontend.relay import RelayModel, to_relay

__all__ = [
    "CleanModel",
    "Model",
    "RelayModel",
    "clean",
    "from_proto",
    "guess_preprocessing",
    "load_image",
    "read",
    "to_relay",
]
