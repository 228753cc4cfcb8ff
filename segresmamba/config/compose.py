"""From `key=value` overrides to a validated `Config`.

Hydra parses the overrides and composes the presets under configs/; pydantic validates the result.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segresmamba.config.experiment import flat
from segresmamba.config.explain import field_help, suggestion
from segresmamba.config.own_presets import KEY, compose_own, config_folder, own_presets
from segresmamba.config.plugins import GROUPS, check_installed, entry_points, plugin_sections
from segresmamba.config.run_config import validated
from segresmamba.config.schema import Config
from segresmamba.config.slurm_values import quoted
from segresmamba.errors import ConfigError, warn_once

logger = logging.getLogger(__name__)

_CONFIG = "config"
"""The key that names a file of settings."""
_BESIDE = {"data", "augment", "model", "train", "plan", "cluster.tasks_per_node"}
"""Sections and keys of a file that is read because it lies beside a store."""


def presets() -> dict[str, list[str]]:
    """The package's groups and the presets in each, such as {"data": ["brats", "sample"]}."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(config_folder().iterdir())
        if folder.is_dir()
    }


def default_choices() -> dict[str, str]:
    """The preset of each group that a run without a word takes, such as {"data": "sample"}."""
    root = yaml.safe_load((config_folder() / "config.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in root["defaults"] if isinstance(entry, dict)]
    return {group: name for entry in entries for group, name in entry.items()}


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose configs/config.yaml with `overrides` and validate it.

    Args:
        overrides: In Hydra's grammar, without sweeps, additions and deletions. A preset is chosen
            as in `model=segresnet`, a field is set as in `train.lr=3e-4`. A mapping replaces that
            of the preset; the two are not merged. `config=FILE` names a file of settings, see
            `_file_settings`.

    Raises:
        ConfigError: For an unknown key or preset, a missing value or one of the wrong type, and for
            settings that contradict each other.
    """
    parsed, groups = [_parse(text) for text in overrides], presets()
    # Values are set after all presets are composed, so they win whatever their order is.
    composed = _choose(parsed, groups)
    settings = _file_settings(parsed)
    try:
        # A preset that the command line names replaces that section of the file.
        keys = {override.key_or_group for override in parsed}
        named = keys & groups.keys() | ({"model"} if "model.target" in keys else set())
        for section in settings.keys() - named:
            _merge_section(composed, section, settings[section])
        for override in parsed:
            if override.key_or_group not in groups and override.key_or_group != _CONFIG:
                _set(composed, override.key_or_group, override.value())
        if missing := sorted(OmegaConf.missing_keys(composed)):
            raise ConfigError(
                "a value has to be given",
                where=", ".join(missing),
                got="nothing",
                remedy=f"add {missing[0]}=VALUE: {field_help(missing[0])}",
            )
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            "the configuration could not be composed",
            where="overrides",
            got=" ".join(overrides),
            remedy=str(error).splitlines()[0],
        ) from error
    config = validated(values)
    check_installed(config)
    return config


def _set(composed: DictConfig, key: str, value: Any) -> None:
    """Set a value. An unknown key is added, and pydantic refuses it with the valid keys."""
    try:
        OmegaConf.update(composed, key, value, merge=False, force_add=True)
    except OmegaConfBaseException:
        raise
    except ValueError as error:  # below a list only a number can follow
        above = key.rpartition(".")[0]
        raise ConfigError(
            "there is no such part of a value",
            where=key,
            got=value,
            remedy=f"give the whole of {above}: {field_help(above)}",
        ) from error


def _merge_section(composed: DictConfig, section: str, values: Any) -> None:
    """Lay a section of a file over the presets; another network's settings go with the network."""
    name = values.get("name") if isinstance(values, dict) else None
    if section == "model" and name not in (None, composed.model.get("name")):
        composed.model = values
    else:
        composed.merge_with({section: values})


def _file_settings(parsed: Iterable[Override]) -> dict[str, Any]:
    """Sections of the file of settings, which lie between the presets and the command line.

    `config=FILE` names it. Otherwise it is STORE.yaml beside the store that `data.store=STORE`
    names, if there is one, as `segresmamba configure` writes it. `config=null` leaves that out.

    Raises:
        ConfigError: If it cannot be read, or if one that was not named says how jobs run.
    """
    given = {override.key_or_group: override.value() for override in parsed}
    if _CONFIG in given:
        return _read_settings(Path(str(given[_CONFIG]))) if given[_CONFIG] is not None else {}
    beside = Path(f"{Path(str(given.get('data.store', '')))}.yaml")
    if "data.store" not in given or not os.path.isfile(beside):
        return {}
    # A warning, because the launcher shows nothing less; once, as a sweep composes all its trials.
    warn_once(
        logger,
        "settings that the command does not give are those of %s; config=null leaves it out",
        beside,
    )
    settings = _read_settings(beside)
    # Whoever made the store may have made this file too. It must not start a program or import one,
    # nor hide such a key in an interpolation or a list.
    for key, value in flat(settings):
        section, _, name = key.rpartition(".")
        allowed = key in _BESIDE or section.split(".")[0] in _BESIDE
        if not allowed or name == "target" or "${" in str(value) or "'target'" in str(value):
            raise ConfigError(
                "a file beside a store is not trusted with what code runs, and where",
                where=f"{beside}: {key}",
                got=value,
                remedy=f"read the file; if you trust it, give config={beside}, else config=null",
            )
    return settings


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(settings, dict):
            raise ValueError("not a mapping of sections")
        return {str(section): values for section, values in settings.items()}
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            "the file of settings cannot be read",
            where=f"config={path}",
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="name a YAML file with sections, as `segresmamba configure STORE` writes it",
        ) from error


def _parse(text: str) -> Override:
    key, _, value = text.partition("=")
    try:
        override = OverridesParser.create().parse_override(quoted(text))
    except (HydraException, ValueError, RecursionError) as error:
        raise ConfigError(
            "an override does not parse",
            where=key.strip() or text,
            got=text,
            remedy=f"write key=value, with quotes around special characters: '{key}=\"{value}\"'",
        ) from error
    if override.type is not OverrideType.CHANGE or override.package:
        raise ConfigError(
            "an override can only set a value: it cannot add, delete or move anything",
            where=override.key_or_group,
            got=text,
            remedy=f"write {override.key_or_group}={value or 'VALUE'}",
        )
    if override.is_sweep_override():  # a list without brackets, or a range
        raise ConfigError(
            "a sweep was given where one run is expected",
            where=key,
            got=value,
            remedy=f"give one value, or for a list: '{key}=[{value}]'",
        )
    return override


def _choose(parsed: Sequence[Override], groups: Mapping[str, Sequence[str]]) -> DictConfig:
    """Compose the presets that overrides choose: the user's, the package's, or another package.

    Args:
        parsed: All overrides.
        groups: See `presets`.
    """
    config_dir = next((str(one.value() or "") for one in parsed if one.key_or_group == KEY), "")
    own = own_presets(Path(config_dir) if config_dir else None, list(groups))
    known = {group: sorted({*names, *own.get(group, ())}) for group, names in groups.items()}
    plugins = plugin_sections(parsed, known)
    chosen = [
        override
        for override in parsed
        if override.key_or_group in groups and override.key_or_group not in plugins
    ]
    for override in chosen:
        key, name = override.key_or_group, str(override.value())
        if name not in known[key]:
            choices = [*known[key], *(entry_points(GROUPS[key]) if key in GROUPS else ())]
            raise ConfigError(
                f"there is no {key} preset of that name",
                where=key,
                got=name,
                remedy=f"{suggestion(name, choices)}choose one of {', '.join(choices)}",
            )
    composed = _compose(chosen, own)
    for group, section in plugins.items():
        composed[group] = section
    return composed


def _compose(chosen: Iterable[Override], own: Mapping[str, Mapping[str, Path]]) -> DictConfig:
    """Let Hydra compose the presets; only overrides that choose one may be given."""
    names = [(override.key_or_group, str(override.value())) for override in chosen]
    choices = [f"{group}={name}" for group, name in names if name not in own.get(group, ())]
    try:
        composed = copy.deepcopy(_compose_shipped(config_folder(), tuple(choices)))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(
            "the presets could not be composed",
            where=config_folder(),
            got=" ".join(choices),
            remedy=" ".join(str(error).split()),
        ) from error
    names_by_group = default_choices() | dict(names)
    files = {g: own[g][name] for g, name in names_by_group.items() if name in own.get(g, ())}
    compose_own(composed, files)
    composed.run.own_presets = {group: str(path) for group, path in files.items()}
    return composed


@cache  # Hydra takes 0.1 s, and a sweep composes each of its trials
def _compose_shipped(folder: Path, choices: tuple[str, ...]) -> DictConfig:
    """Let Hydra compose the presets of the package; the result is not to be changed."""
    with initialize_config_dir(str(folder), version_base="1.3"):
        composed = compose("config", overrides=list(choices))
    # Hydra makes it refuse unknown keys. Here pydantic does that, because its error says more.
    OmegaConf.set_struct(composed, False)
    return composed
