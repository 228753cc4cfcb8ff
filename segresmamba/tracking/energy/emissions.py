"""Energy and CO2e of a run, measured by CodeCarbon.

CodeCarbon runs in its offline mode: it needs no network and writes no files of its own. It counts
the processors and the memory of the whole node, because the other ranks of the job run there too;
on a shared node this includes other jobs. Of the GPUs it counts only those of the job.

If the processor has an energy counter (RAPL) that this user may read, its energy is measured.
Otherwise it is estimated from load and nominal power. The energy of memory is always estimated
from its size. Each segment of the ledger says what was measured and what was estimated.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segresmamba.config import TrackingConfig
from segresmamba.errors import ConfigError
from segresmamba.tracking.energy.gpus import indices_of, job_gpus, machine_gpus
from segresmamba.tracking.energy.ledger import Ledger

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.emissions_data import EmissionsData

logger = logging.getLogger(__name__)

WORLD_SOURCE = (
    "the average that CodeCarbon takes from the IEA's report of 2019, as neither tracking.country "
    "nor tracking.grid_g_per_kwh is set"
)
MEASURE_S = 10.0
MEASURES_PER_WRITE = 3
"""The ledger is written every 30 s, so a killed process loses at most 30 s."""
STOP_PATIENCE_S = 5.0
"""How long to wait for a driver that does not answer: it must not keep a run from ending."""
START_PATIENCE_S = 30.0
"""The same for the first look at the hardware, which takes seconds on a busy machine."""
# CodeCarbon asks for a country even where it is given the intensity.
_ANY_COUNTRY = "USA"


@dataclass(frozen=True)
class Grid:
    """The electricity grid that a run takes its power from."""

    country: str
    """Its ISO 3166 alpha-3 code, or what else to call it."""
    intensity_g_per_kwh: float
    """Carbon intensity in g CO2e/kWh."""
    intensity_source: str
    """Where the number comes from."""

    @classmethod
    def from_config(cls, config: TrackingConfig) -> Grid:
        """The supplier's intensity if the configuration gives it, else the country's or world's.

        Raises:
            ConfigError: If no carbon intensity is known for the country.
        """
        from codecarbon.input import DataSource

        if config.grid_g_per_kwh is not None:
            place = config.country or "your grid"
            return cls(place, config.grid_g_per_kwh, "tracking.grid_g_per_kwh")
        if config.country is None:
            world = DataSource().get_carbon_intensity_per_source_data()["world_average"]
            return cls("the world", world, WORLD_SOURCE)
        countries = DataSource().get_global_energy_mix_data()
        if config.country not in countries:
            raise ConfigError(
                "no carbon intensity is known for this country",
                where="tracking.country",
                got=config.country,
                remedy="give an ISO 3166 alpha-3 code such as USA, DEU or FRA, "
                "or set tracking.emissions=false",
            )
        mix = countries[config.country]
        source = f"CodeCarbon's energy mix of {mix['year']}"
        return cls(config.country, mix["carbon_intensity"], source)


class EmissionsMeter:
    """Measures the energy of one node while the run uses it, and writes it to the run's ledger.

    There is one meter on each node, in the process of local rank 0. Once made it never raises: a
    run does not die because its energy cannot be measured. With tracking.emissions=false it
    measures nothing.

    Args:
        folder: The run folder, shared by all nodes.
        config: Whether to measure, and the country or the intensity of the grid.
        gpus: UUIDs of the job's GPUs on this node; None takes those that Slurm and
            CUDA_VISIBLE_DEVICES name.

    Raises:
        ConfigError: If no carbon intensity is known for the country.
    """

    def __init__(
        self, folder: Path, config: TrackingConfig, gpus: Sequence[str] | None = None
    ) -> None:
        self._folder = folder
        self._ledger = Ledger(folder)
        self._gpus = gpus
        self._grid: Grid | None = None
        if config.emissions:
            try:
                self._grid = Grid.from_config(config)
            except ImportError as error:
                logger.warning("energy is not measured: %s", error)
        self._start: threading.Thread | None = None
        self._start_ends_s = 0.0
        self._tracker: OfflineEmissionsTracker | None = None
        self.power: str | None = None
        """How the power of each kind of hardware is measured or estimated; None before `start`, and
        until `totals` or `stop` is called."""
        self.facts: dict[str, Any] = {}
        """What the ledger holds besides the totals, once `power` is known: the grid, and how power
        is measured."""

    def start(self) -> None:
        """Begin a segment of the ledger, in a thread.

        CodeCarbon takes more than a second to look at the hardware.
        """
        if self._grid is not None and self._start is None:
            self._start = threading.Thread(
                target=self._begin, args=[self._grid], name="energy", daemon=True
            )
            self._start.start()
            self._start_ends_s = time.monotonic() + START_PATIENCE_S

    def _begin(self, grid: Grid) -> None:
        try:
            # The main rank creates the run folder, but this node may be faster.
            self._folder.mkdir(parents=True, exist_ok=True)
            self._tracker = self._start_tracker(grid)
        except Exception as error:
            logger.warning("energy is not measured: %s", error)

    def _wait_for_start(self) -> OfflineEmissionsTracker | None:
        if self._start is not None:
            # A driver that does not answer is waited for once, not at every call.
            self._start.join(max(0.0, self._start_ends_s - time.monotonic()))
        return self._tracker

    def stop(self) -> None:
        """Write the last totals of the segment."""
        if (tracker := self._wait_for_start()) is not None:
            _end_timers(tracker)
            tracker.stop()
        self._tracker = self._start = None

    def totals(self) -> dict[str, float]:
        """What the run has used so far, on all nodes and over all restarts.

        The share of another node may be 30 s old until its meter has stopped.

        Returns:
            energy_kwh and how much of it was measured (measured_kwh), emissions_kg (CO2e),
            cpu_energy_kwh, gpu_energy_kwh, ram_energy_kwh, and duration_s, which adds the time of
            all nodes. Empty with tracking.emissions=false, or if the ledger cannot be read.
        """
        if self._grid is None:
            return {}
        if (tracker := self._wait_for_start()) is not None:
            tracker.flush()  # it measures now, and writes to the ledger
        try:
            return self._ledger.totals()
        except (OSError, ValueError) as error:
            logger.warning("the energy ledger cannot be read: %s", error)
            return {}

    def _start_tracker(self, grid: Grid) -> OfflineEmissionsTracker:
        from codecarbon import OfflineEmissionsTracker

        # CodeCarbon logs before its argument log_level takes effect.
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        output = _LedgerOutput(self._ledger)
        machine = machine_gpus()
        if self._gpus is None:
            gpu_ids = job_gpus(os.environ, visible=len(machine))
        else:
            gpu_ids = indices_of(self._gpus, machine)
        tracker = OfflineEmissionsTracker(
            country_iso_code=_ANY_COUNTRY,
            # Otherwise a region, cloud or token in the user's own configuration of CodeCarbon would
            # change the intensity, or have it looked up on the internet.
            force_carbon_intensity_g_co2e_kwh=grid.intensity_g_per_kwh,
            cloud_provider=None,
            tracking_mode="machine",
            gpu_ids=gpu_ids,
            measure_power_secs=MEASURE_S,
            api_call_interval=MEASURES_PER_WRITE,
            output_methods=[],
            output_handlers=[output],
            emissions_endpoint=None,
            output_dir=str(self._folder),
            allow_multiple_runs=True,
            log_level="error",
        )
        self.facts = {**asdict(grid), **_power_sources(gpu_ids, machine)}
        output.facts = self.facts
        tracker.start()
        if tracker.flush() is None:  # `start` does not raise: CodeCarbon logs its own errors
            raise RuntimeError("CodeCarbon did not start")
        self.power = "processors {cpu_power}, GPUs {gpu_power}, memory {ram_power}".format(
            **output.facts
        )
        logger.info(
            "energy: %s; %.0f g CO2e/kWh in %s (%s)",
            self.power,
            grid.intensity_g_per_kwh,
            grid.country,
            grid.intensity_source,
        )
        return tracker


def _end_timers(tracker: OfflineEmissionsTracker) -> None:
    """Wait for measurements that have begun, and prevent further ones.

    CodeCarbon 3.3 starts a timer again that fires while it stops; that one then fails repeatedly.
    """
    # Private attributes of CodeCarbon, so a version without them is tolerated.
    names = ("_scheduler", "_scheduler_monitor_power")
    schedulers = [scheduler for name in names if (scheduler := getattr(tracker, name, None))]

    def timers() -> list[threading.Timer]:
        found = (thread for thread in threading.enumerate() if isinstance(thread, threading.Timer))
        return [timer for timer in found if getattr(timer.function, "__self__", None) in schedulers]

    deadline = time.monotonic() + STOP_PATIENCE_S
    while (pending := timers()) and time.monotonic() < deadline:
        for timer in pending:
            timer.cancel()
            timer.join(STOP_PATIENCE_S)


class _LedgerOutput:
    """An output of CodeCarbon that writes its running totals to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.facts: dict[str, Any] = {}
        self._ledger = ledger
        self._key: str | None = None
        self._lock = threading.Lock()

    def out(self, total: EmissionsData, delta: EmissionsData) -> None:
        """Write the totals. CodeCarbon calls this on flush and stop, `live_out` in its thread."""
        totals = {
            "energy_kwh": total.energy_consumed,
            "emissions_kg": total.emissions,
            "cpu_energy_kwh": total.cpu_energy,
            "gpu_energy_kwh": total.gpu_energy,
            "ram_energy_kwh": total.ram_energy,
            "duration_s": total.duration,
        }
        try:
            with self._lock:
                if self._key is None:
                    self._key = self._ledger.claim(self.facts)
                self._ledger.update(self._key, totals)
        except (OSError, ValueError) as error:
            logger.warning("the energy ledger cannot be written: %s", error)

    live_out = out

    def exit(self) -> None:
        """Do nothing: there is nothing to close."""


def _power_sources(
    gpu_ids: Sequence[int] | None, machine: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """How each kind of power is measured or estimated.

    Args:
        gpu_ids: The driver's numbers of the GPUs that are measured; None for all.
        machine: What `machine_gpus` returned.
    """
    from codecarbon.core import cpu, gpu

    names = Counter(
        str(one["name"]) for one in machine if gpu_ids is None or int(one["gpu_index"]) in gpu_ids
    )
    measured_gpus = ", ".join(f"{count} x {name}" for name, count in names.items())
    library = "NVML" if gpu.is_nvidia_system() else "AMD SMI"
    return {
        "cpu_power": "measured (RAPL)" if cpu.is_rapl_available() else "estimated from load",
        "gpu_power": f"measured ({library}): {measured_gpus}" if measured_gpus else "none",
        "ram_power": "estimated from size",
    }
