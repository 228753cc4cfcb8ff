"""How much memory training takes, how much it may take, and how one sees that it was too little."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

BYTES_PER_GIB = 1 << 30
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """The most memory that is taken after this object is made, weights and all.

    Args:
        device: On a GPU, what tensors take is counted; on a CPU, resident memory above that of this
            moment, which only Linux can tell.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before_bytes = 0
        if device.type != "cuda" and sys.platform == "linux":
            _return_free_memory()
            self._before_bytes = _status_bytes("VmRSS")
        self.forget()

    def forget(self) -> None:
        """Look for the peak from now on; what is taken already still counts."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")

    def gib(self) -> float | None:
        """The peak until now."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / BYTES_PER_GIB
        if sys.platform != "linux":
            return None
        return (_status_bytes("VmHWM") - self._before_bytes) / BYTES_PER_GIB


def default_limit_gib() -> float | None:
    """Nine tenths of the host memory that is available now; None where that cannot be told."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    lines = info.read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable"))
    return 0.9 * (int(available.split()[1]) << 10) / BYTES_PER_GIB


def limit_memory(gib: float | None, device: torch.device) -> None:
    """Let allocations fail that would take this process above a limit.

    Raises:
        MemoryError: If it is above that already.
    """
    if gib is None:
        return
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * BYTES_PER_GIB / total), device)
    else:
        idle_gib = _status_bytes("VmData") / BYTES_PER_GIB if sys.platform == "linux" else 0.0
        if idle_gib > gib:
            raise MemoryError(f"Python and its libraries alone take {idle_gib:.2f} GiB")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * BYTES_PER_GIB), hard))


def lift_limit() -> None:
    """Make room again to report that memory ran out."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _return_free_memory() -> None:
    """What glibc keeps of freed memory would count as taken before training."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int:
    """VmRSS, the resident memory, VmHWM, its peak, or VmData, what RLIMIT_DATA limits."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10
