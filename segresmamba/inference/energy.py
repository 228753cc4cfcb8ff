"""The energy of each case of a prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from segresmamba.config import TrackingConfig
from segresmamba.tracking.energy.emissions import EmissionsMeter
from segresmamba.tracking.energy.gpus import gpu_uuid


class CaseMeter:
    """Says what a case has used: processors and memory of the whole machine, and its own GPU."""

    def __init__(self, meter: EmissionsMeter | None = None) -> None:
        self._meter, self._before = meter, dict[str, float]()

    def begin(self) -> None:
        """A case begins."""
        self._before = self._meter.totals() if self._meter else {}

    def used(self) -> dict[str, Any]:
        """What was used since `begin`, in kWh, and how it was measured; empty without a meter."""
        if self._meter is None or self._meter.power is None:
            return {}
        now = self._meter.totals()
        used = {
            name: round(value - self._before.get(name, 0.0), 9)
            for name, value in now.items()
            if name.endswith("energy_kwh")
        }
        return used | {"power": self._meter.power}


@contextmanager
def measuring_energy(device: torch.device, *, asked: bool) -> Iterator[CaseMeter]:
    """Give a block a meter; if energy is not asked for, one that measures nothing."""
    if not asked:
        yield CaseMeter()
        return
    uuid = gpu_uuid(device)
    with TemporaryDirectory() as name:  # for the meter's own record, which ends with it
        meter = EmissionsMeter(Path(name), TrackingConfig(), gpus=[uuid] if uuid else [])
        meter.start()
        try:
            yield CaseMeter(meter)
        finally:
            meter.stop()
