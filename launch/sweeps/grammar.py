"""Hydra's sweep grammar: from `train.lr=1e-4,3e-4 seed=range(0,3)` to the words of each trial."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from segresmamba.config import presets
from segresmamba.errors import ConfigError


def trials_of(words: Sequence[str]) -> list[list[str]]:
    """The words of every trial: the product of all choices, ranges and globs, last word fastest.

    Raises:
        ConfigError: For a word that Hydra does not parse, a glob that matches no preset, or an
            interval, which has no end of values.
    """
    return [list(trial) for trial in product(*(_words(word) for word in words))]


def parse(word: str) -> Override:
    """What Hydra understands of a word.

    Raises:
        ConfigError: If it understands nothing.
    """
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError) as error:
        raise ConfigError(
            "a word of the sweep does not parse",
            where=word.partition("=")[0],
            got=word,
            remedy="write key=a,b or 'key=range(0,5)' or 'model=glob(seg*)', in quotes",
        ) from error


def choices(override: Override) -> list[str]:
    """The values of a sweep over choices, a range or a glob, as they are written.

    Raises:
        ConfigError: If there are none.
    """
    value: Any = override.value()
    if isinstance(value, Glob):
        found = value.filter(presets().get(override.key_or_group, []))
    else:
        found = list(override.sweep_string_iterator())
    if not found:
        raise ConfigError(
            "the sweep is empty",
            where=override.key_or_group,
            got=override.input_line,
            remedy="give at least one value; glob chooses among presets, such as model and data",
        )
    return found


def _words(word: str) -> list[str]:
    override = parse(word)
    if not override.is_sweep_override():
        return [word]
    if override.is_interval_sweep():
        raise ConfigError(
            "an interval is for a search: a grid would have no end",
            where=override.key_or_group,
            got=word,
            remedy="add --search optuna --trials 50, or list the values: "
            f"{override.key_or_group}=a,b,c",
        )
    return [f"{override.key_or_group}={choice}" for choice in choices(override)]
