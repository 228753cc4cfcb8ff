"""Peak memory of this process, on the host and on its device."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

KIB_PER_GIB = 1 << 20
BYTES_PER_GIB = 1 << 30


def peak_memory() -> dict[str, float]:
    """The most memory this process has held since it started, in GiB.

    Returns:
        memory/host_peak_gib: Resident memory of this process, without reader processes. With a CUDA
            device also memory/device_peak_allocated_gib, what tensors took, and
            memory/device_peak_reserved_gib, what the allocator held for them.
    """
    import torch

    gauges = {"memory/host_peak_gib": _host_peak_kib() / KIB_PER_GIB}
    if torch.cuda.is_available():
        gauges["memory/device_peak_allocated_gib"] = (
            torch.cuda.max_memory_allocated() / BYTES_PER_GIB
        )
        gauges["memory/device_peak_reserved_gib"] = torch.cuda.max_memory_reserved() / BYTES_PER_GIB
    return gauges


def _host_peak_kib() -> float:
    """Peak resident memory.

    Linux: VmHWM. `ru_maxrss` would start at the size of the parent that forked this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else float(peak)
