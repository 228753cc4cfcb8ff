"""Peak memory of this process, on the host and on its device, in each phase of a run."""

from __future__ import annotations

# torch is imported inside functions: the launcher and the uploader import this package too, and do
# not need torch, whose import takes seconds.
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Literal

KIB_PER_GIB = 1 << 20
BYTES_PER_GIB = 1 << 30

Phase = Literal["load", "train", "validate", "save"]
Gauges = dict[str, float]
"""Memory in GiB by name.

- host_peak_gib: peak of the resident memory of this process, without its reader processes.
- shared_gib: the part of it that was shared with them when the phase ended.
- device_peak_allocated_gib, on CUDA: peak of what tensors took.
- device_peak_reserved_gib, on CUDA: peak of what PyTorch's allocator held for them.
"""


class PhaseMemory:
    """Peaks of this process by phase; the first phase is "load".

    A phase that comes again keeps its highest peak. Where the kernel does not let a process reset
    its peak, the host peak of a phase is the highest since the process started.
    """

    def __init__(self) -> None:
        self._phase: Phase = "load"
        self._peaks: dict[Phase, Gauges] = {}
        _reset_peaks()

    def enter(self, phase: Phase) -> None:
        """End the present phase and begin another."""
        self._end_phase()
        self._phase = phase

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Count the block as another phase, then continue the present one."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self._phase

    def peaks(self) -> dict[Phase, Gauges]:
        """The highest values of each phase until now."""
        self._end_phase()
        return {phase: dict(gauges) for phase, gauges in self._peaks.items()}

    def _end_phase(self) -> None:
        now, known = _gauges(), self._peaks.get(self._phase, {})
        self._peaks[self._phase] = {name: max(now[name], known.get(name, 0.0)) for name in now}
        _reset_peaks()


def peak_memory() -> dict[str, float]:
    """Peaks of this process since it started or since a `PhaseMemory` last reset them.

    Returns:
        The `Gauges` as metrics, such as memory/host_peak_gib.
    """
    return {f"memory/{name}": value for name, value in _gauges().items()}


def memory_metrics(ranks: Sequence[Mapping[Phase, Gauges]]) -> dict[str, float]:
    """Peaks of all ranks as metrics.

    Args:
        ranks: `PhaseMemory.peaks` of each rank.

    Returns:
        memory/<phase>/<gauge>/max and memory/<phase>/<gauge>/mean over the ranks, and
        memory/<gauge>, the highest of all ranks and phases.
    """
    metrics: dict[str, float] = {}
    for phase in ranks[0]:
        for name in ranks[0][phase]:
            values = [rank[phase][name] for rank in ranks if name in rank.get(phase, {})]
            metrics[f"memory/{phase}/{name}/max"] = max(values)
            metrics[f"memory/{phase}/{name}/mean"] = fmean(values)
            overall = f"memory/{name}"
            metrics[overall] = max(*values, metrics.get(overall, 0.0))
    return metrics


def status_kib(field: str) -> float | None:
    """A field of /proc/self/status in KiB, such as VmHWM; None where there is no such field."""
    with suppress(OSError):  # not Linux
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return float(line.split()[1])
    return None


def _gauges() -> Gauges:
    import torch

    # `ru_maxrss` is the second choice: it starts at the size of the parent that forked this
    # process. It is in KiB on Linux and in bytes on macOS.
    peak_kib = status_kib("VmHWM")
    if peak_kib is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak_kib = peak / 1024 if sys.platform == "darwin" else float(peak)
    gauges = {
        "host_peak_gib": peak_kib / KIB_PER_GIB,
        "shared_gib": (status_kib("RssShmem") or 0.0) / KIB_PER_GIB,
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        gauges["device_peak_allocated_gib"] = allocated / BYTES_PER_GIB
        gauges["device_peak_reserved_gib"] = reserved / BYTES_PER_GIB
    return gauges


def _reset_peaks() -> None:
    import torch

    with suppress(OSError):  # not Linux, or a container that forbids it
        # proc(5): "5" resets the peak of the resident memory to its present size.
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
