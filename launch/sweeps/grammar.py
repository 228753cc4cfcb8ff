"""Hydra's sweep grammar: from `train.lr=1e-4,3e-4 seed=range(0,3)` to each trial's overrides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from segresmamba.config import presets
from segresmamba.config.slurm_values import quoted
from segresmamba.errors import ConfigError
from segresmamba.secrets import hide_lines, hide_urls, hide_variables


def trials_of(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every trial: the product of all choices, ranges and globs.

    The last override varies fastest.

    Raises:
        ConfigError: For an override that Hydra cannot parse, a glob that matches no preset, or an
            interval, which has endlessly many values.
    """
    axes = []
    for text in overrides:
        override = parse(text)
        if not override.is_sweep_override():
            axes.append([text])
        elif override.is_interval_sweep():
            raise ConfigError(
                "an interval is for a search: a grid would have no end",
                where=override.key_or_group,
                got=text,
                remedy="add --search optuna --trials 50, or list the values: "
                f"{override.key_or_group}=a,b,c",
            )
        else:
            axes.append([f"{override.key_or_group}={choice}" for choice in choices(override)])
    return [list(trial) for trial in product(*axes)]


def parse(text: str) -> Override:
    """An override as Hydra understands it.

    Raises:
        ConfigError: If Hydra cannot parse it.
    """
    try:
        return OverridesParser.create().parse_override(quoted(text))
    except (HydraException, ValueError, RecursionError) as error:
        raise ConfigError(
            "a setting of the sweep does not parse",
            where=text.partition("=")[0],
            got=text,
            remedy="write key=a,b or 'key=range(0,5)' or 'model=glob(seg*)', in quotes",
        ) from error


def hide_secrets(overrides: Sequence[str]) -> list[str]:
    """The overrides with markers for secrets, for a sweep's manifest; `load_config` takes them too.

    Raises:
        ConfigError: If Hydra cannot parse one.
    """
    return [_without_secrets(hide_urls(text)) for text in overrides]


def _without_secrets(text: str) -> str:
    key = text.partition("=")[0]
    if not key.startswith(("cluster.env", "cluster.setup")):
        return text
    value: Any = parse(text).value()
    _, _, name = key.partition("cluster.env.")
    if name:
        hidden: Any = hide_variables({name: value})[name]
    elif isinstance(value, dict):
        hidden = hide_variables({str(name): found for name, found in value.items()})
    elif isinstance(value, list):
        hidden = list(hide_lines(tuple(map(str, value))))
    else:
        return text  # it is refused when it is loaded
    return text if hidden == value else f"{key}={_in_hydras_grammar(hidden)}"


def _in_hydras_grammar(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{name}:{_in_hydras_grammar(found)}" for name, found in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_in_hydras_grammar, value))}]"
    return json.dumps(value, ensure_ascii=False)


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
