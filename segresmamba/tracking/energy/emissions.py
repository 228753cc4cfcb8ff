"""Energy and CO2e of a run. The only module that imports codecarbon.

CodeCarbon measures in its offline mode: it needs no network and writes no files of its own. It
counts the whole node's processors and memory (another rank's share is not to be lost; on a shared
node other jobs' is in it) and the job's own GPUs. Where the processor has no energy counter that
this user may read (RAPL), its power is estimated from load and nominal power, and memory's always
is from its size: each segment of the ledger says which.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segresmamba.config import TrackingConfig
from segresmamba.errors import ConfigError
from segresmamba.tracking.energy.ledger import Ledger

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.emissions_data import EmissionsData

logger = logging.getLogger(__name__)

MEASURE_S = 10.0
MEASURES_PER_WRITE = 3
"""The ledger is written every 30 s: what a killed process loses at most."""
STOP_PATIENCE_S = 5.0
"""A driver that does not answer must not keep a run from ending."""


class EmissionsMeter:
    """Measures the energy of one node while the run is on it, into the run's ledger.

    One per node (local rank 0). It never raises after it has been made: a run does not die because
    its energy cannot be measured. With tracking.emissions off it measures nothing.

    Args:
        folder: The run folder, shared by all nodes.
        config: Whether to measure, and the country or the intensity of the grid.
        gpus: NVML's identities of the job's GPUs on this node; None takes those that Slurm and
            CUDA_VISIBLE_DEVICES name.

    Raises:
        ConfigError: If no carbon intensity is known for the country.
    """

    def __init__(
        self, folder: Path, config: TrackingConfig, gpus: Sequence[str] | None = None
    ) -> None:
        self._folder = folder
        self._ledger = Ledger(folder)
        self._country = config.country
        self._gpus = gpus
        self._grid = _grid_of(config) if config.emissions else None
        self._tracker: OfflineEmissionsTracker | None = None
        self.power: str | None = None
        """How the power of each kind of hardware is known, once it is being measured."""
        self.facts: dict[str, Any] = {}
        """What the ledger keeps with each segment: the grid, and what was measured or estimated."""

    def start(self) -> None:
        """Begin a segment of the ledger."""
        if self._grid is None or self._tracker is not None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)  # rank 0 may be later than this node
            self._tracker = self._started_tracker(self._grid)
        except Exception as error:
            logger.warning("energy is not measured: %s", error)

    def stop(self) -> None:
        """Write the last totals of the segment."""
        if self._tracker is not None:
            _end_timers(self._tracker)
            self._tracker.stop()
            self._tracker = None

    def totals(self) -> dict[str, float]:
        """What the run has used so far, on all nodes and over all restarts.

        Returns:
            energy_kwh, emissions_kg (CO2e), cpu_energy_kwh, gpu_energy_kwh, ram_energy_kwh, and
            duration_s, the time of all nodes together. Other nodes' share is up to 30 s old until
            they have stopped. Empty with tracking.emissions off.
        """
        if self._grid is None:
            return {}
        if self._tracker is not None:
            self._tracker.flush()
        try:
            return self._ledger.totals()
        except (OSError, ValueError) as error:
            logger.warning("the energy ledger cannot be read: %s", error)
            return {}

    def _started_tracker(self, grid: dict[str, Any]) -> OfflineEmissionsTracker:
        from codecarbon import OfflineEmissionsTracker

        # It speaks before its log_level argument has taken effect.
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        output = _LedgerOutput(self._ledger)
        tracker = OfflineEmissionsTracker(
            country_iso_code=self._country,
            # Given, it is what is used: no region, cloud or token of a user's configuration file
            # can change it or look it up on the internet.
            force_carbon_intensity_g_co2e_kwh=grid["intensity_g_per_kwh"],
            cloud_provider=None,
            tracking_mode="machine",
            gpu_ids=self._gpu_ids(),
            measure_power_secs=MEASURE_S,
            api_call_interval=MEASURES_PER_WRITE,
            output_methods=[],
            output_handlers=[output],
            emissions_endpoint=None,
            output_dir=str(self._folder),
            allow_multiple_runs=True,
            log_level="error",
        )
        self.facts = {"country": self._country, **grid, **_power_sources(tracker)}
        output.facts = self.facts
        tracker.start()
        if tracker.flush() is None:  # it swallows its own errors
            raise RuntimeError("CodeCarbon did not start")
        self.power = "processors {cpu_power}, GPUs {gpu_power}, memory {ram_power}".format(
            **output.facts
        )
        logger.info(
            "energy: %s; %.0f g CO2e/kWh in %s",
            self.power,
            grid["intensity_g_per_kwh"],
            self._country,
        )
        return tracker

    def _gpu_ids(self) -> list[int] | None:
        if self._gpus is None:
            return _job_gpus(os.environ, _visible_gpus())
        return _indices_of(self._gpus, _gpus_of_machine())


def _end_timers(tracker: OfflineEmissionsTracker) -> None:
    """Wait for measurements under way, and let none follow.

    A timer that fires while CodeCarbon 3.3 stops is set anew, and then fails time and again.
    """
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
    """CodeCarbon's way out: it hands its running totals over to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.facts: dict[str, Any] = {}
        self._ledger = ledger
        self._key: str | None = None
        self._lock = threading.Lock()

    def out(self, total: EmissionsData, delta: EmissionsData) -> None:
        """Write the totals: on flush and stop here, and as `live_out` in CodeCarbon's thread."""
        try:
            with self._lock:
                if self._key is None:
                    self._key = self._ledger.claim(self.facts)
                self._ledger.update(self._key, _totals(total))
        except (OSError, ValueError) as error:
            logger.warning("the energy ledger cannot be written: %s", error)

    live_out = out

    def exit(self) -> None:
        """Nothing is held open."""


def _totals(data: EmissionsData) -> dict[str, float]:
    return {
        "energy_kwh": data.energy_consumed,
        "emissions_kg": data.emissions,
        "cpu_energy_kwh": data.cpu_energy,
        "gpu_energy_kwh": data.gpu_energy,
        "ram_energy_kwh": data.ram_energy,
        "duration_s": data.duration,
    }


def _grid_of(config: TrackingConfig) -> dict[str, Any] | None:
    """Carbon intensity of the grid in g CO2e/kWh and where the number comes from."""
    country = config.country
    try:
        from codecarbon.input import DataSource
    except ImportError as error:
        logger.warning("energy is not measured: %s", error)
        return None
    if config.grid_g_per_kwh is not None:
        return {
            "intensity_g_per_kwh": config.grid_g_per_kwh,
            "intensity_source": "tracking.grid_g_per_kwh",
        }
    countries = DataSource().get_global_energy_mix_data()
    if country not in countries:
        raise ConfigError(
            "no carbon intensity is known for this country",
            where="tracking.country",
            got=country,
            remedy="give an ISO 3166 alpha-3 code such as USA, DEU or FRA, "
            "or set tracking.emissions=false",
        )
    mix = countries[country]
    return {
        "intensity_g_per_kwh": mix["carbon_intensity"],
        "intensity_source": f"CodeCarbon's energy mix of {mix['year']}",
    }


def _power_sources(tracker: OfflineEmissionsTracker) -> dict[str, str]:
    """How each kind of power is known."""
    from codecarbon.core import cpu, gpu

    measured_gpus = tracker.get_detected_hardware()["gpu_model"]
    library = "NVML" if gpu.is_nvidia_system() else "AMD SMI"
    return {
        "cpu_power": "measured (RAPL)" if cpu.is_rapl_available() else "estimated from load",
        "gpu_power": f"measured ({library}): {measured_gpus}" if measured_gpus else "none",
        "ram_power": "estimated from size",
    }


def _visible_gpus() -> int:
    return len(_gpus_of_machine())


def _gpus_of_machine() -> list[dict[str, Any]]:
    """What the driver shows this process, whatever CUDA_VISIBLE_DEVICES says."""
    from codecarbon.core import gpu

    if not (gpu.is_nvidia_system() or gpu.is_rocm_system()):
        return []
    found: list[dict[str, Any]] = gpu.AllGPUDevices().get_gpu_static_info()
    return found


def _indices_of(uuids: Sequence[str], machine: Sequence[Mapping[str, Any]]) -> list[int]:
    """The driver's numbers of some GPUs.

    CodeCarbon 3.3.2 takes UUIDs too, but strips the G of "GPU-" and so finds none of them.
    """
    numbers = {str(gpu["uuid"]): int(gpu["gpu_index"]) for gpu in machine}
    missing = [uuid for uuid in uuids if uuid not in numbers]
    if missing:  # a MIG slice has no meter of its own
        logger.warning("the energy of these GPUs is not measured: %s", ", ".join(missing))
    return sorted(numbers[uuid] for uuid in uuids if uuid in numbers)


def _job_gpus(environment: Mapping[str, str], visible: int) -> list[int] | None:
    """Indices of the GPUs to measure among the visible ones.

    Returns:
        None leaves it to CodeCarbon: those in CUDA_VISIBLE_DEVICES, or all. Under Slurm that would
        be too few where each rank sees only its own GPU, so there it is the job's on this node;
        their numbers are the machine's, unless Slurm hides all others and so renumbers them.
    """
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    numbers = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS")
    if numbers is None:
        return None
    mine = [int(number) for number in numbers.split(",")]
    return mine if len(mine) < visible else list(range(visible))
