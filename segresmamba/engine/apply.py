"""Use a trained run: score its held-out cases, or segment new images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from segresmamba import data
from segresmamba.config import read_config
from segresmamba.engine.checkpoint import load_weights
from segresmamba.engine.distributed import Ranks
from segresmamba.engine.evaluation import Summary, evaluate_cases, results_table, write_results
from segresmamba.engine.inference import predict_volume
from segresmamba.engine.runfolder import RunFolder
from segresmamba.engine.setup import Task
from segresmamba.errors import DataError
from segresmamba.tracking import open_tracker

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
        UserError: If the folder holds no finished validation, or the store is not there.
    """
    folder = RunFolder(run)
    task = Task.of(read_config(folder.config))
    device = Ranks.from_environment().device
    network, step = _trained(folder, task, device)
    results = evaluate_cases(
        network, task.dataset, task.split["val"], task.config, device, overlays=folder.overlays
    )
    write_results(folder.results, results, checkpoint=str(folder.best))
    metrics = Summary.of(results).metrics()
    config = task.config
    tracker = open_tracker(run, config.tracking, root=config.run.root, run_name=run.name)
    try:
        tracker.metrics({f"evaluation/{key}": value for key, value in metrics.items()}, step=step)
        tracker.artifact(folder.results)
        for picture in sorted(folder.overlays.glob("*.png")):
            tracker.artifact(picture, "overlays")
    finally:
        tracker.close("finished")
    return Evaluation(results_table(results), folder.results, folder.overlays, tracker.ui_hint)


def predict(run: Path, images: Sequence[Path], out: Path) -> None:
    """Segment one case with a run's best weights.

    Args:
        run: The run's folder.
        images: A NIfTI file for each channel, in the dataset's order.
        out: Label file to write, in the geometry of the first image.

    Raises:
        UserError: If the run is not trained, or an image cannot be used.
    """
    folder = RunFolder(run)
    task = Task.of(read_config(folder.config))
    channels = task.dataset.channel_names
    if len(images) != len(channels):
        raise DataError(
            f"the network was trained on {len(channels)} channels",
            where="images",
            got=f"{len(images)} files",
            remedy=f"give one file for each of {', '.join(channels)}, in this order",
        )
    device = Ranks.from_environment().device
    network, _ = _trained(folder, task, device)
    volume = data.read_volume(images)
    logits_KDHW = predict_volume(
        network,
        volume.image_CDHW,
        volume.mean_C,
        volume.std_C,
        patch=task.config.data.patch,
        validation=task.config.validation,
        device=device,
        precision=task.config.train.precision,
    )
    label_DHW = task.classes.decode(logits_KDHW).cpu().numpy()
    part = out.with_name(f".part-{out.name}")
    volume.original.restore(label_DHW).to_filename(part)
    part.replace(out)


def _trained(folder: RunFolder, task: Task, device: torch.device) -> tuple[nn.Module, int]:
    network = task.network()
    facts = load_weights(folder.best, network)
    logger.info("weights of step %d, Dice %.4f in training", facts["step"], facts["dice"])
    return network.to(device), int(facts["step"])
