"""Folds for cross-validation. All cases of one patient are on one side of a fold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from segresmamba.errors import DataError
from segresmamba.storage.json_text import json_bytes

_FOLDS = 5
_FOLD_SEED = 12345  # the seed of nnU-Net's folds


class Split(BaseModel):
    """Case ids of one fold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: tuple[str, ...]
    val: tuple[str, ...]


def make_splits(
    case_ids: Iterable[str], patients: Mapping[str, str] | None = None
) -> tuple[Split, ...]:
    """Make five folds, or fewer if there are fewer patients.

    The order of the ids does not matter. One patient alone cannot be split and gives no folds.

    Args:
        case_ids: All cases.
        patients: Case id to patient. A case that is not in it is a patient of its own.
    """
    ordered = sorted(case_ids)
    groups: dict[str, list[str]] = {}
    for case_id in ordered:
        groups.setdefault((patients or {}).get(case_id) or case_id, []).append(case_id)
    # Folds are drawn over patients, not over cases.
    names = sorted(groups)
    if len(names) < 2:
        return ()
    shuffled = np.random.default_rng(_FOLD_SEED).permutation(len(names))
    folds = np.array_split(shuffled, min(_FOLDS, len(names)))
    return splits_from_held_out(
        [[id_ for i in fold for id_ in groups[names[i]]] for fold in folds], ordered
    )


def splits_from_held_out(
    held_out: Sequence[Iterable[str]], case_ids: Iterable[str]
) -> tuple[Split, ...]:
    """Make folds from the cases that each holds out. Each trains on all other cases."""
    ordered = sorted(case_ids)
    return tuple(
        Split(
            train=tuple(case_id for case_id in ordered if case_id not in val),
            val=tuple(case_id for case_id in ordered if case_id in val),
        )
        for val in map(set, held_out)
    )


def read_splits(path: Path, case_ids: Sequence[str]) -> tuple[Split, ...]:
    """Read the user's own folds: nnU-Net's splits_final.json, `[{"train": [...], "val": [...]}]`.

    Raises:
        DataError: If the file cannot be read, or a fold names an unknown case, trains on a case
            that it holds out, or has an empty side.
    """
    remedy = 'write [{"train": [case ids], "val": [case ids]}, ...]'
    try:
        splits = TypeAdapter(tuple[Split, ...]).validate_json(json_bytes(path))
    except (OSError, ValidationError) as error:
        got = " ".join(str(error).split())[:200]
        raise DataError(
            "the file of splits cannot be read", where=path, got=got, remedy=remedy
        ) from error
    for number, split in enumerate(splits):
        unknown = {*split.train, *split.val} - set(case_ids)
        both = {*split.train} & {*split.val}
        if unknown or both or not (split.train and split.val):
            raise DataError(
                "a fold has unknown cases"
                if unknown
                else "a fold trains on cases that it holds out"
                if both
                else "a fold has no cases on one side",
                where=f"{path}: {number}",
                got=", ".join(sorted(unknown or both)[:10])
                or f"{len(split.train)} train, {len(split.val)} val",
                remedy=remedy,
            )
    return splits
