"""Peak memory of this process, on the host and on its device, in each phase of a run."""

from __future__ import annotations

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
"""host_peak_gib: resident memory of this process, without reader processes. shared_gib: the part of
it that is shared with them, when the phase ended. On a CUDA device also device_peak_allocated_gib,
what tensors took, and device_peak_reserved_gib, what the allocator held for them."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"  # proc(5): reset the peak resident set size to the present one


class PhaseMemory:
    """Peaks of this process by phase; it begins in "load".

    A phase that comes again keeps its highest peak. Where the kernel lets nobody reset the host's
    peak, a phase has the highest so far.
    """

    def __init__(self) -> None:
        self._phase: Phase = "load"
        self._peaks: dict[Phase, Gauges] = {}
        _reset_peaks()

    def enter(self, phase: Phase) -> None:
        """End the present phase, begin another."""
        self._settle()
        self._phase = phase

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Count the enclosed part as another phase, then go back to the present one."""
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
        """The highest so far of each phase that has been."""
        self._settle()
        return {phase: dict(gauges) for phase, gauges in self._peaks.items()}

    def _settle(self) -> None:
        now, known = _gauges(), self._peaks.get(self._phase, {})
        self._peaks[self._phase] = {name: max(now[name], known.get(name, 0.0)) for name in now}
        _reset_peaks()


def peak_memory() -> dict[str, float]:
    """The most memory this process has held since it started, or since a `PhaseMemory` looked.

    Returns:
        The gauges under names such as memory/host_peak_gib.
    """
    return {f"memory/{name}": value for name, value in _gauges().items()}


def memory_metrics(ranks: Sequence[Mapping[Phase, Gauges]]) -> dict[str, float]:
    """Peaks of all ranks as metrics.

    Args:
        ranks: For each rank its `PhaseMemory.peaks`.

    Returns:
        memory/<phase>/<gauge>/max and /mean over the ranks, and memory/<gauge>, the most that any
        rank took in any phase.
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


def _gauges() -> Gauges:
    import torch

    gauges = {
        "host_peak_gib": _host_peak_kib() / KIB_PER_GIB,
        "shared_gib": _status_kib("RssShmem") / KIB_PER_GIB,
    }
    if torch.cuda.is_available():
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        gauges["device_peak_allocated_gib"] = allocated / BYTES_PER_GIB
        gauges["device_peak_reserved_gib"] = reserved / BYTES_PER_GIB
    return gauges


def _reset_peaks() -> None:
    import torch

    with suppress(OSError):  # not Linux, or a container that forbids it
        _CLEAR.write_text(_CLEAR_PEAK)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def _host_peak_kib() -> float:
    """Peak resident memory.

    Linux: VmHWM. `ru_maxrss` would start at the size of the parent that forked this process.
    """
    if _STATUS.exists():
        return _status_kib("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else float(peak)


def _status_kib(field: str) -> float:
    """A field of /proc/self/status; 0 where there is none."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return float(line.split()[1])
    return 0.0
