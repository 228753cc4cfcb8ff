"""Score a trained run's held-out cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from segresmamba.config import read_config
from segresmamba.errors import ConfigError
from segresmamba.evaluation.score_cases import Summary, evaluate_cases, results_table, write_results
from segresmamba.inference.label_map import cannot_write
from segresmamba.inference.trained import require_same_preprocessing
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task
from segresmamba.task.weights import load_network
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
    require_same_preprocessing(trained.facts, task.dataset)
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
