"""Score a trained run's held-out cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from segresmamba.config import read_config
from segresmamba.data.preprocessing import Normalisation
from segresmamba.errors import ConfigError, DataError
from segresmamba.evaluation.score_cases import Summary, evaluate_cases, results_table, write_results
from segresmamba.inference.label_map import cannot_write
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task
from segresmamba.task.weights import WeightsFacts, load_network
from segresmamba.tracking import Status, open_tracker, read_journal


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation."""

    table: Table
    results: Path
    overlays: Path
    ui_hint: str


def evaluate_run(run: Path) -> Evaluation:
    """Score a run's best weights on its held-out fold and put the results into the run.

    Args:
        run: The run's folder.

    Raises:
        UserError: If the folder holds no finished validation, the store is not there, or the run
            is training at this moment, or all cases have trained it.
    """
    folder = RunFolder(run)
    config = read_config(folder.config)
    if config.train.fold is None:
        raise ConfigError(
            "nothing was held out: all cases have trained the network",
            where=f"{folder.config}: train.fold",
            got="none",
            remedy="segment other cases with `segresmamba predict`, or train with train.fold=0",
        )
    task = Task.from_config(config)
    device = Ranks.from_environment().device
    trained = load_network(folder.best, config)
    _require_same_preprocessing(trained.facts, task)
    network = trained.network.to(device)
    # How training ended, which an evaluation does not change.
    statuses: list[Status] = [
        record.body["status"]
        for record in read_journal(folder.journal)
        if record.kind == "status" and record.body["status"] != "running"
    ]
    tracker = open_tracker(run, config.tracking, root=config.run.root, run_name=run.name)
    try:
        results = evaluate_cases(
            network, task.dataset, task.split["val"], config, device, overlays=folder.overlays
        )
        write_results(folder.results, results, checkpoint=str(folder.best))
        metrics = Summary.from_results(results).metrics()
        tracker.metrics(
            {f"evaluation/{key}": value for key, value in metrics.items()}, step=trained.facts.step
        )
        tracker.artifact(folder.results)
        for picture in sorted(folder.overlays.glob("*.png")):
            tracker.artifact(picture, "overlays")
    except OSError as error:
        raise cannot_write(run, error) from error
    finally:
        tracker.close(statuses[-1] if statuses else "failed")
    return Evaluation(results_table(results), folder.results, folder.overlays, tracker.ui_hint())


def _require_same_preprocessing(facts: WeightsFacts, task: Task) -> None:
    """Refuse a store whose cases were converted otherwise than those that the network saw."""
    # Weights and stores of earlier versions do not list how each channel is normalised: by zscore.
    zscore = (Normalisation(),) * len(task.dataset.channel_names)
    before, now = (
        # The voxel sizes are those of the cases at hand, not a part of the policy.
        one.model_copy(update={"normalisation": one.normalisation or zscore, "trained_mm": None})
        for one in (facts.preprocessing, task.dataset.preprocessing)
    )
    if before != now:
        raise DataError(
            "the store was converted again, under another policy than the network's",
            where=task.config.data.store,
            got=f"{now}, the network was trained on {before}",
            remedy="convert with the policy that the network was trained on, or train again",
        )
