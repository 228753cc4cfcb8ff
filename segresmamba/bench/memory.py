"""Peak memory of training, and a limit for it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from segresmamba.data.volumes.mapped_arrays import release_freed_memory
from segresmamba.tracking.memory import BYTES_PER_GIB, KIB_PER_GIB, status_kib


class PeakMemory:
    """The peak of the memory that is taken after this object is made, including the weights.

    Args:
        device: On a GPU the memory of tensors counts. On a CPU it is resident memory above that of
            this moment, which is known on Linux only.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before_kib = 0.0
        if device.type != "cuda" and sys.platform == "linux":
            # glibc keeps memory that was freed. Training would use it without a rise of the peak.
            release_freed_memory()
            self._before_kib = status_kib("VmRSS") or 0.0
        self.forget()

    def forget(self) -> None:
        """Forget the peak so far. Memory that is in use now still counts."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")

    def gib(self) -> float | None:
        """The peak since then; None where it is not known."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / BYTES_PER_GIB
        if sys.platform != "linux":
            return None
        return ((status_kib("VmHWM") or 0.0) - self._before_kib) / KIB_PER_GIB


def default_limit_gib() -> float | None:
    """Nine tenths of the host memory that is available now; None where that is not known."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    lines = info.read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable"))
    return 0.9 * int(available.split()[1]) / KIB_PER_GIB


def limit_memory(gib: float | None, device: torch.device) -> None:
    """Make allocations fail that would take this process above a limit.

    Raises:
        MemoryError: If the process is above the limit already.
    """
    if gib is None:
        return
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * BYTES_PER_GIB / total), device)
    else:
        idle_gib = (status_kib("VmData") or 0.0) / KIB_PER_GIB  # what RLIMIT_DATA limits
        if idle_gib > gib:
            raise MemoryError(f"Python and its libraries alone take {idle_gib:.2f} GiB")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * BYTES_PER_GIB), hard))


def lift_limit() -> None:
    """Remove the limit, so that there is memory to report that it ran out."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
