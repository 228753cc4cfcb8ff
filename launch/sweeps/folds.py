"""`train.fold=all`: cross-validation as a sweep over the folds that the store has."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from launch.sweeps.grammar import trials_of
from segresmamba.config import config_digest, load_config
from segresmamba.errors import ConfigError

ALL = "train.fold=all"


def all_folds(overrides: Sequence[str]) -> list[str]:
    """These overrides with `train.fold=all` as a sweep over every fold of the store.

    Raises:
        ConfigError: If a run.name is given, because the folds would share it.
        DataError: If the store cannot be read.
    """
    from segresmamba.data import open_dataset

    # Other settings may be swept over too. The first combination names the store.
    config = load_config(trials_of([one for one in overrides if one != ALL])[0])
    if config.run.name is not None:
        raise ConfigError(
            "the folds are runs of their own, which cannot share a name",
            where="run.name",
            got=config.run.name,
            remedy="leave it out, or name the sweep: python -m launch sweep --name NAME "
            "train.fold=all ...",
        )
    dataset = open_dataset(config.data.store, patience_s=config.data.patience_s)
    folds = range(len(dataset.splits))
    swept = f"train.fold={','.join(map(str, folds))}"
    return [swept if one == ALL else one for one in overrides]


def fold_sweep_name(overrides: Sequence[str]) -> str:
    """A name that follows from the settings without the folds: `folds-` and a digest."""
    digest = config_digest(load_config([o for o in overrides if not o.startswith("train.fold=")]))
    return f"folds-{hashlib.sha256(digest.encode()).hexdigest()[:8]}"
