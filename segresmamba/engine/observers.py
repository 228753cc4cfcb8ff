"""What is recorded of a run besides its metrics: who runs it on what, and what it costs."""

from __future__ import annotations

import json
import logging
import shutil

from segresmamba.config import Config
from segresmamba.engine.distributed import gather, wait_for_all
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task
from segresmamba.task.weights import read_facts
from segresmamba.tracking import (
    EmissionsMeter,
    NullTracker,
    PhaseMemory,
    SystemSampler,
    Tracker,
    environment,
    gpu_uuid,
    memory_metrics,
    node_name,
    open_tracker,
    provenance,
)

logger = logging.getLogger(__name__)

WH_PER_KWH = 1000
SERVED = "segresmamba.inference.model"


class NodeObservers:
    """Energy and samples of this node, by one of its ranks; the others hold one that is idle.

    Making one is collective: the ranks of a node tell each other their GPUs, because each may see
    its own alone, and under another number.

    Args:
        config: The run's configuration.
        folder: The run's folder.
        ranks: This process.

    Raises:
        ConfigError: If no carbon intensity is known for tracking.country.
    """

    def __init__(self, config: Config, folder: RunFolder, ranks: Ranks) -> None:
        node = node_name()
        everywhere = gather((node, gpu_uuid(ranks.device)), ranks)
        gpus = sorted({uuid for where, uuid in everywhere if where == node and uuid})
        self._ranks = ranks
        self._meter = self._sampler = None
        if ranks.is_node_main:
            self._meter = EmissionsMeter(folder.path, config.tracking, gpus)
            if config.tracking.system_metrics:
                self._sampler = SystemSampler(folder.path, gpus)

    def start(self) -> None:
        """Begin to observe."""
        if self._meter:
            self._meter.start()
        if self._sampler:
            self._sampler.start()

    def stop(self) -> None:
        """Write what is left."""
        if self._meter:
            self._meter.stop()
        if self._sampler:
            self._sampler.stop()

    def log_energy(self, tracker: Tracker, *, step: int, patches: int) -> None:
        """Stop, and record the energy of all nodes and restarts (collective).

        Args:
            tracker: Where to.
            step: The step reached.
            patches: Crops that the run has trained on until then.
        """
        self.stop()
        wait_for_all()
        if not (self._meter and self._ranks.is_main):
            return
        totals = self._meter.totals()
        if totals and patches:
            totals["wh_per_1000_patches"] = totals["energy_kwh"] * WH_PER_KWH * 1000 / patches
        if self._meter.facts:
            tracker.tags({f"energy.{name}": str(fact) for name, fact in self._meter.facts.items()})
        tracker.metrics({f"energy/{key}": value for key, value in totals.items()}, step=step)


def open_run_tracker(task: Task, folder: RunFolder, ranks: Ranks) -> Tracker:
    """The tracker of a run, told what the run is; one that records nothing on the other ranks."""
    if not ranks.is_main:
        return NullTracker()
    config, dataset = task.config, task.dataset
    tracker = open_tracker(
        folder.path, config.tracking, root=config.run.root, run_name=folder.path.name
    )
    tracker.params(config.model_dump(mode="json"))
    tracker.tags(provenance())
    tracker.dataset(
        dataset.name,
        digest=dataset.digest,
        source=str(config.data.store),
        profile={"cases": len(dataset), **dataset.fingerprint},
    )
    packages = folder.path / "environment.txt"
    packages.write_text(environment())
    tracker.artifact(packages)
    tracker.artifact(folder.config)
    return tracker


def log_memory(
    memory: PhaseMemory, tracker: Tracker, folder: RunFolder, ranks: Ranks, step: int
) -> None:
    """Record the peaks of all ranks in all phases (collective); memory.json has each rank's."""
    peaks = gather(memory.peaks(), ranks)
    if not ranks.is_main:
        return
    path = folder.path / "memory.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"unit": "GiB", "ranks": peaks}, indent=1) + "\n")
    part.replace(path)
    tracker.metrics(memory_metrics(peaks), step=step)
    tracker.artifact(path)


def log_best_model(config: Config, tracker: Tracker, folder: RunFolder) -> None:
    """Record the best weights as the run's model, with what is needed to load them."""
    if config.tracking.log_model and folder.best.exists():
        shutil.copy(folder.config, folder.best.parent / folder.config.name)
        tracker.model(folder.best.parent, step=read_facts(folder.best)["step"], loader=SERVED)
