"""Answers whether runs can be trained, as a process: the launcher must not import torch.

It reads a pickled list of runs from standard input, each a list of alternative configurations, and
writes None or a pair to standard output, pickled too: the number of the first run of which no
alternative can be trained, and the error of its first. Nothing is written to disk.

Somebody waits for the answer, so the process leaves out what takes time and does not change it: the
garbage collector, the random numbers of new weights, and the interpreter's way of shutting down.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segresmamba.config import Config
from segresmamba.config.networks import PluginConfig
from segresmamba.errors import ConfigError, LaunchError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.starting_weights import find_weights
from segresmamba.task.task import Task

logger = logging.getLogger(__name__)

# fp32 weights and AdamW's two moments of each; the best weights are kept besides.
_CHECKPOINT_BYTES, _WEIGHTS_BYTES = 12, 4


def check(config: Config) -> None:
    """Do what the start of a training does before its first step, but write nothing.

    Raises:
        UserError: For the first thing that would end the job: a store, fold, class, weights to
            start from, network, loss, patch or free space that does not fit.
    """
    # One attempt: whoever submits a job is not to wait minutes for a server.
    data = config.data.model_copy(update={"patience_s": 0.0})
    task = Task.from_config(config.model_copy(update={"data": data}))
    task.loss()
    folder = RunFolder.from_config(config)
    is_new = not folder.saved_steps()
    if is_new and config.train.init_from is not None:
        find_weights(config.train.init_from)
    network = task.network()
    if isinstance(config.model, PluginConfig):
        _check_logits(network, (1, len(task.dataset.channel_names), *config.data.patch))
    if not is_new:
        return
    weights = sum(weight.numel() for weight in network.parameters())
    # While a checkpoint is written, those that are kept are still there.
    copies = config.train.keep_last + 1
    needed = weights * (copies * _CHECKPOINT_BYTES + _WEIGHTS_BYTES)
    existing = next(path for path in folder.path.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise LaunchError(
            "the disk is too full for the checkpoints of this run",
            where=f"run.root={config.run.root}",
            got=f"{free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB are needed for {copies} "
            "checkpoints and the best weights",
            remedy="free space, choose another run.root=FOLDER, or keep fewer: train.keep_last=1",
        )


def _check_logits(network: nn.Module, size: Sequence[int]) -> None:
    """Let a network of another package say what is wrong with its logits, without computing them.

    Not all code runs on tensors without values. What fails for another reason is left to the job.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            network.train()(torch.empty(*size))
    except ConfigError:
        raise
    except Exception as error:
        logger.debug("the logits of the network are not known before the job: %s", error)


def first_error(runs: Sequence[Sequence[Config]]) -> tuple[int, Exception] | None:
    """The first run of which no alternative can be trained, and the error of its first one."""
    known: dict[str, Exception | None] = {}

    def error_of(config: Config) -> Exception | None:
        # Trials often differ in what matters to no part of this check, as in their names.
        train = config.train.model_copy(update={"lr": 1.0, "weight_decay": 0.0})
        is_new = not RunFolder.from_config(config).saved_steps()
        key = repr((config.data, config.model, config.loss, train, config.run.root, is_new))
        if key not in known:
            known[key] = None
            try:
                check(config)
            except Exception as error:
                known[key] = error
        return known[key]

    for number, alternatives in enumerate(runs):
        errors = [error_of(config) for config in alternatives]
        if all(errors):
            return number, next(error for error in errors if error)
    return None


def main() -> NoReturn:
    """Read configurations from standard input, check them, write the answer, and end."""
    logging.disable(logging.WARNING)
    # 0.3 s for the network of the paper.
    for draw in ("normal_", "uniform_"):
        setattr(torch.Tensor, draw, lambda weights, *_, **__: weights)
    # What libraries print must not get into the answer.
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)
        found = first_error(pickle.load(sys.stdin.buffer))
        pickle.dump(found, answer)
    sys.stderr.flush()
    os._exit(0)  # the interpreter would take 0.7 s to take torch down
