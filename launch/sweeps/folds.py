"""`train.fold=all`: cross-validation as a sweep over the folds that the store has."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from launch.sweeps.grammar import trials_of
from segresmamba.config import config_digest, load_config
from segresmamba.errors import ConfigError

ALL = "train.fold=all"


def all_folds(words: Sequence[str]) -> list[str]:
    """The words with `train.fold=all` as a sweep over every fold of the store.

    Raises:
        ConfigError: If a run.name is given, which the folds would share.
        DataError: If the store cannot be read.
    """
    from segresmamba.data import open_dataset

    config = load_config(trials_of([word for word in words if word != ALL])[0])
    if config.run.name is not None:
        raise ConfigError(
            "the folds are runs of their own, which cannot share a name",
            where="run.name",
            got=config.run.name,
            remedy="leave it out, or name the whole: python -m launch sweep --name NAME "
            "train.fold=all ...",
        )
    folds = range(len(open_dataset(config.data.store).splits))
    return [f"train.fold={','.join(map(str, folds))}" if w == ALL else w for w in words]


def fold_sweep_name(words: Sequence[str]) -> str:
    """A name that follows from the settings: `folds-` and a digest."""
    first = [w for w in words if not w.startswith("train.fold=")]
    digest = config_digest(load_config(first))
    return f"folds-{hashlib.sha256(digest.encode()).hexdigest()[:8]}"
