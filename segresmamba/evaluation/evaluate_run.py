"""Score a trained run's held-out cases."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from segresmamba.config import Config, read_config
from segresmamba.data.preprocessing import Normalisation, Preprocessing
from segresmamba.errors import DataError
from segresmamba.evaluation.score_cases import Summary, evaluate_cases, results_table, write_results
from segresmamba.inference.predict import cannot_write
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.classes import Classes
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task, build_network
from segresmamba.task.weights import load_weights, read_facts
from segresmamba.tracking import Status, open_tracker, read_journal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation leaves behind."""

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
            is training at this moment.
    """
    folder = RunFolder(run)
    config = read_config(folder.config)
    task = Task.from_config(config)
    device = Ranks.from_environment().device
    network, facts = _trained(folder, config, device)
    _require_policy(facts, task)
    status = _last_status(folder)
    tracker = open_tracker(run, config.tracking, root=config.run.root, run_name=run.name)
    try:
        results = evaluate_cases(
            network, task.dataset, task.split["val"], config, device, overlays=folder.overlays
        )
        write_results(folder.results, results, checkpoint=str(folder.best))
        metrics = Summary.from_results(results).metrics()
        tracker.metrics(
            {f"evaluation/{key}": value for key, value in metrics.items()}, step=facts["step"]
        )
        tracker.artifact(folder.results)
        for picture in sorted(folder.overlays.glob("*.png")):
            tracker.artifact(picture, "overlays")
    except OSError as error:
        raise cannot_write(run, error) from error
    finally:
        tracker.close(status)
    return Evaluation(results_table(results), folder.results, folder.overlays, tracker.ui_hint())


def _trained(
    folder: RunFolder, config: Config, device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the run's best weights, and the facts saved beside them."""
    facts = read_facts(folder.best)
    classes = Classes.from_labels(config, facts["labels"])
    network = build_network(config, len(facts["channel_names"]), classes.channels)
    load_weights(folder.best, network)
    logger.info("weights of step %d, Dice %.4f in training", facts["step"], facts["dice"])
    return network.to(device), facts


def _require_policy(facts: dict[str, Any], task: Task) -> None:
    """Refuse a store whose cases are not what the network was trained on."""
    trained = Preprocessing.model_validate(facts.get("preprocessing", {}))
    stored = task.dataset.preprocessing
    # Weights and stores of earlier versions do not list what each channel has: zscore.
    zscore = (Normalisation(),) * len(task.dataset.channel_names)
    before, now = (
        one.model_copy(update={"normalisation": one.normalisation or zscore})
        for one in (trained, stored)
    )
    if before != now:
        raise DataError(
            "the store was converted anew, under another policy than the network's",
            where=task.config.data.store,
            got=f"{now}, the network was trained on {before}",
            remedy="convert with the policy that the network was trained on, or train anew",
        )


def _last_status(folder: RunFolder) -> Status:
    """How training ended, which an evaluation does not change."""
    statuses = [
        record.body["status"]
        for record in read_journal(folder.journal)
        if record.kind == "status" and record.body["status"] != "running"
    ]
    last: Status = statuses[-1] if statuses else "failed"
    return last
