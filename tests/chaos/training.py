"""A training in a process of its own, forked from the ranks' server, which a fault can meet."""

from __future__ import annotations

import os
from multiprocessing.process import BaseProcess
from pathlib import Path

from segresmamba.errors import sort_error
from tests.engine.ranks import RankContext
from tests.engine.tiny import tiny_config

STEPS = 8


def train_in_child(store: Path, root: Path, *overrides: str) -> BaseProcess:
    """Start a training, whose process ends with the exit code of a command."""
    process = RankContext().Process(target=_train, args=(store, root, overrides))
    process.start()
    return process


def _train(store: Path, root: Path, overrides: tuple[str, ...]) -> None:
    from segresmamba.engine import train

    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    every = ("train.checkpoint_every=1", f"train.max_steps={STEPS}", *overrides)
    code = 0
    try:
        train(tiny_config(store, root, *every))
    except BaseException as error:
        code = sort_error(error).exit_code
    os._exit(code)
