"""Tuning with no board: rank candidates by a static cost (docs/estimate.md).

Block counts from qemu-user, times ``llvm-mca``'s cycles for the core, plus the traffic between
modelled caches. What it yields is tagged ``estimated`` and is no latency.
"""

from mobilenet_tvm.devices.estimate.cores import CORES, Core, core_of
from mobilenet_tvm.devices.estimate.cost import Cost
from mobilenet_tvm.devices.estimate.measurer import EstimateMeasurer, why_not

__all__ = ["CORES", "Core", "Cost", "EstimateMeasurer", "core_of", "why_not"]
