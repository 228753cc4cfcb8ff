"""Records of a run besides its metrics: code, machine and dataset, energy, memory, the model."""

from __future__ import annotations

import json
import shutil

from segresmamba.config import Config
from segresmamba.engine.distributed import gather, wait_for_all
from segresmamba.storage.atomic import write_text
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

WH_PER_KWH = 1000
# MLflow stores this name with a saved model, and imports it to load the model.
SERVED = "segresmamba.inference.model"


class NodeObservers:
    """Measures the energy and the load of this node, on its first rank; idle on the others.

    The constructor is collective: the ranks of a node exchange the ids of their GPUs, because a
    rank may see only its own GPU, under a number that means another one elsewhere.

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
        self._meter: EmissionsMeter | None = None
        self._observers: list[EmissionsMeter | SystemSampler] = []
        if ranks.is_node_main:
            self._meter = EmissionsMeter(folder.path, config.tracking, gpus)
            self._observers.append(self._meter)
            if config.tracking.system_metrics:
                self._observers.append(SystemSampler(folder.path, gpus))

    def start(self) -> None:
        """Begin to measure."""
        for observer in self._observers:
            observer.start()

    def stop(self) -> None:
        """End, and write what was measured last."""
        for observer in self._observers:
            observer.stop()

    def log_energy(self, tracker: Tracker, *, step: int, patches: int) -> None:
        """Stop, and record the energy of all nodes and restarts (collective).

        Args:
            tracker: Where the metrics go.
            step: The step reached.
            patches: Crops that the run has trained on up to this step.
        """
        self.stop()
        wait_for_all()  # until every node has written its part
        if not (self._meter and self._ranks.is_main):
            return
        totals = self._meter.totals()
        if totals and patches:
            totals["wh_per_1000_patches"] = totals["energy_kwh"] * WH_PER_KWH * 1000 / patches
        if self._meter.facts:
            tracker.tags({f"energy.{name}": str(fact) for name, fact in self._meter.facts.items()})
        tracker.metrics({f"energy/{key}": value for key, value in totals.items()}, step=step)


def open_run_tracker(task: Task, folder: RunFolder, ranks: Ranks) -> Tracker:
    """The run's tracker with settings and origin recorded; on other ranks one that does nothing."""
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
    write_text(folder.environment, environment())
    tracker.artifact(folder.environment)
    tracker.artifact(folder.config)
    return tracker


def log_memory(
    memory: PhaseMemory, tracker: Tracker, folder: RunFolder, ranks: Ranks, step: int
) -> None:
    """Record the peak memory of all ranks in all phases (collective)."""
    peaks = gather(memory.peaks(), ranks)
    if not ranks.is_main:
        return
    content = {"unit": "GiB", "ranks": peaks}
    write_text(folder.memory, json.dumps(content, indent=1) + "\n")
    tracker.metrics(memory_metrics(peaks), step=step)
    tracker.artifact(folder.memory)


def log_best_model(config: Config, tracker: Tracker, folder: RunFolder) -> None:
    """Record the best weights as the run's model, together with its configuration."""
    if config.tracking.log_model and folder.best.exists():
        shutil.copy(folder.config, folder.best.parent / folder.config.name)
        tracker.model(folder.best.parent, step=read_facts(folder.best).step, loader=SERVED)
