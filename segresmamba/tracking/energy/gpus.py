"""The job's GPUs, by the identity that survives renumbering, and what NVML says of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

BYTES_PER_MB = 1e6


def gpu_uuid(device: Any) -> str | None:
    """NVML's identity of a torch device, such as GPU-4e817856-...; None for a CPU.

    Numbers are relative: CUDA_VISIBLE_DEVICES and cgroups renumber them for each process.
    """
    import torch

    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


class GpuReader:
    """Utilisation, memory and power of some GPUs of this node; of none without NVML.

    Args:
        uuids: NVML's identities.
    """

    def __init__(self, uuids: Sequence[str]) -> None:
        self._handles: list[Any] = []
        if not uuids:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        except Exception as error:  # no driver, no library, a MIG slice: all leave nothing to read
            logger.warning("GPUs are not sampled: %s", error)

    def read(self) -> dict[str, float]:
        """Values of each GPU, in the names of MLflow's own monitor such as gpu_0_..._percentage."""
        values: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            values |= {f"gpu_{index}_{name}": value for name, value in _read(handle).items()}
        return values


def _read(handle: Any) -> dict[str, float]:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_usage_megabytes": memory.used / BYTES_PER_MB,
        "memory_usage_percentage": 100 * memory.used / memory.total,
        "power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
