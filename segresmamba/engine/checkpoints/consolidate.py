"""The full weights of a checkpoint, put together from its ranks' pieces.

It needs neither a GPU nor a process group, whatever the number of ranks and the ZeRO stage were.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segresmamba.config import read_config
from segresmamba.engine.checkpoints.checkpoint import load_into
from segresmamba.errors import CheckpointError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.classes import Classes
from segresmamba.task.task import Task, build_network
from segresmamba.task.weights import WeightsFacts, read_facts, save_weights


def consolidate(run: RunFolder, weights: Path, step: int | None = None) -> None:
    """Write the weights of a checkpoint as full weights, as those of the best validation are.

    The ranks' files are mapped, so memory is taken for one copy of the weights.

    Args:
        run: The run. Without best weights, which know labels and channels, its store is opened.
        weights: The file to write.
        step: Of the checkpoint; None for the newest.

    Raises:
        UserError: If there is no such checkpoint, if it is damaged or of another network, or if
            the run's store is needed and cannot be opened.
    """
    steps = run.saved_steps()
    if not steps or step not in (None, *steps):
        raise CheckpointError(
            "the run has no such checkpoint",
            where=run.checkpoints,
            got=f"{'newest' if step is None else step}; there are {steps or 'none'}",
            remedy="name a step that is there, or leave --checkpoint out for the best weights",
        )
    config = read_config(run.config)
    if run.best.exists():
        facts = read_facts(run.best)
    else:
        dataset = Task.from_config(config).dataset
        facts = WeightsFacts(0, None, dataset.labels, dataset.channel_names, dataset.preprocessing)
    classes = Classes.from_labels(config, facts.labels)
    network = build_network(config, len(facts.channel_names), classes.channels)
    found = load_into(network, run, steps[-1] if step is None else step)
    save_weights(weights, network.state_dict(), replace(facts, step=found.step, dice=None))
