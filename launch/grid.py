"""Hydra's sweep grammar: from `train.lr=1e-4,3e-4 seed=range(0,3)` to the words of each trial."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException

from segresmamba.config import presets
from segresmamba.errors import ConfigError


def trials_of(words: Sequence[str]) -> list[list[str]]:
    """The words of every trial: the product of all choices, ranges and globs, last word fastest.

    Raises:
        ConfigError: For a word that Hydra does not parse, or a glob that matches no preset.
    """
    return [list(trial) for trial in product(*(_choices(word) for word in words))]


def _choices(word: str) -> list[str]:
    try:
        override = OverridesParser.create().parse_override(word)
        key = override.key_or_group
        if not override.is_sweep_override():
            return [word]
        value = override.value()
        names = value.filter(presets().get(key, [])) if isinstance(value, Glob) else None
        found = override.sweep_string_iterator() if names is None else names
        choices = [f"{key}={choice}" for choice in found]
    except (HydraException, ValueError) as error:
        raise ConfigError(
            "a word of the sweep does not parse",
            where=word.partition("=")[0],
            got=word,
            remedy="write key=a,b or 'key=range(0,5)' or 'model=glob(seg*)', in quotes",
        ) from error
    if not choices:
        raise ConfigError(
            "the sweep is empty",
            where=key,
            got=word,
            remedy="give at least one value; glob chooses among presets, such as model and data",
        )
    return choices
