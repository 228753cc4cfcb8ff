"""The job's GPUs: which they are, and what NVML measures on them.

The number of a GPU depends on who asks: CUDA_VISIBLE_DEVICES and cgroups renumber GPUs for each
process. Its UUID is the same everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

BYTES_PER_MB = 1e6


def gpu_uuid(device: Any) -> str | None:
    """NVML's UUID of a torch device, such as GPU-4e817856-...; None for a CPU."""
    import torch

    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def machine_gpus() -> list[dict[str, Any]]:
    """What the driver shows this process, whatever CUDA_VISIBLE_DEVICES is set to."""
    from codecarbon.core import gpu

    if not (gpu.is_nvidia_system() or gpu.is_rocm_system()):
        return []
    found: list[dict[str, Any]] = gpu.AllGPUDevices().get_gpu_static_info()
    return found


def indices_of(uuids: Sequence[str], machine: Sequence[Mapping[str, Any]]) -> list[int]:
    """The driver's numbers of some GPUs, as CodeCarbon wants them.

    CodeCarbon 3.3.2 also takes UUIDs, but it strips the G of "GPU-" and so finds none of them.

    Args:
        uuids: NVML's UUIDs.
        machine: What `machine_gpus` returned.
    """
    numbers = {str(gpu["uuid"]): int(gpu["gpu_index"]) for gpu in machine}
    missing = [uuid for uuid in uuids if uuid not in numbers]
    if missing:  # a MIG slice has no meter of its own
        logger.warning("the energy of these GPUs is not measured: %s", ", ".join(missing))
    return sorted(numbers[uuid] for uuid in uuids if uuid in numbers)


def job_gpus(environment: Mapping[str, str], visible: int) -> list[int] | None:
    """The driver's numbers of the job's GPUs on this node.

    Under Slurm each rank may see only its own GPU, so CUDA_VISIBLE_DEVICES would name too few. The
    variables of Slurm name all of them, numbered as in the machine. If Slurm hides the other GPUs,
    the driver numbers those of the job from zero.

    Args:
        environment: The environment of this process.
        visible: How many GPUs the driver shows this process.

    Returns:
        None leaves the choice to CodeCarbon: the GPUs in CUDA_VISIBLE_DEVICES, or all.
    """
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    numbers = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS")
    if numbers is None:
        return None
    mine = [int(number) for number in numbers.split(",")]
    return mine if len(mine) < visible else list(range(visible))


class GpuReader:
    """Reads utilisation, memory and power of some GPUs of this node; nothing without NVML.

    Args:
        uuids: NVML's UUIDs.
    """

    def __init__(self, uuids: Sequence[str]) -> None:
        self._handles: dict[int, Any] = {}
        self._silent: set[tuple[int, str]] = set()
        """What a GPU has failed to answer, and the log has said."""
        if not uuids:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # no driver, or no library
            logger.warning("GPUs are not sampled: %s", error)
            return
        for index, uuid in enumerate(uuids):
            try:
                self._handles[index] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            except pynvml.NVMLError as error:  # a MIG slice
                logger.warning("GPU %d, %s, is not sampled: %s", index, uuid, error)

    def read(self) -> dict[str, float]:
        """Values of each GPU, in the names of MLflow's own monitor such as gpu_0_..._percentage.

        What a GPU does not measure is left out: a virtual GPU or a MIG slice has no power meter.
        """
        if not self._handles:
            return {}
        import pynvml

        values: dict[str, float] = {}
        for index, handle in self._handles.items():
            gpu = f"gpu_{index}"
            with self._answering(index, "utilisation"):
                rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
                values[f"{gpu}_utilization_percentage"] = float(rates.gpu)
            with self._answering(index, "memory"):
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                values[f"{gpu}_memory_usage_megabytes"] = memory.used / BYTES_PER_MB
                values[f"{gpu}_memory_usage_percentage"] = 100 * memory.used / memory.total
            with self._answering(index, "power"):
                watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
                values[f"{gpu}_power_usage_watts"] = watts
        return values

    @contextmanager
    def _answering(self, index: int, name: str) -> Iterator[None]:
        """Go on where a GPU does not answer a question, and say so once."""
        import pynvml

        try:
            yield
        except pynvml.NVMLError as error:
            if (index, name) not in self._silent:
                self._silent.add((index, name))
                logger.warning("GPU %d does not report its %s: %s", index, name, error)
