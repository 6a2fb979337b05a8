"""What is missing for CUDA."""

from mobilenet_tvm.errors import DeviceError


class CudaError(DeviceError):
    """CUDA cannot be used here, for want of a compiler, NVIDIA's wheels, the driver or the GPU."""
