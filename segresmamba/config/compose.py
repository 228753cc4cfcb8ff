"""From `key=value` words to a validated `Config`, and a run's config.yaml out and in again.

Hydra parses the words and composes the presets under configs/; pydantic validates the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from segresmamba.config.explain import explain, field_help, suggestion
from segresmamba.config.schema import Config
from segresmamba.errors import ConfigError

# Where a run lives, is tracked and computed.
_ELSEWHERE = ("run.", "tracking.", "cluster.", "validation.", "plan.")
_FREE = {
    "data.stage",
    "data.workers",
    "data.prefetch",
    "train.log_every",
    "train.validate_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.threads",
    # The same sums in another order: a run may go on with them on other machines.
    "train.accumulation",
    "train.compile",
    "train.zero_stage",
}


def config_folder() -> Path:
    """The folder of the presets: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def presets() -> dict[str, list[str]]:
    """The groups under configs/ and the choices in each, such as {"data": ["brats", "sample"]}."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(config_folder().iterdir())
        if folder.is_dir()
    }


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose configs/config.yaml with `overrides` and validate it.

    Args:
        overrides: Hydra's grammar without sweeps, additions and deletions: presets are chosen as in
            `model=segresnet`, fields are set as in `train.lr=3e-4`. A mapping replaces the
            preset's, it is not merged into it.

    Raises:
        ConfigError: For an unknown key or preset, an ill-typed or missing value, a contradiction.
    """
    parsed = [_parse(word) for word in overrides]
    chosen = [override for override in parsed if override.key_or_group in presets()]
    composed = _compose(chosen)
    try:
        for override in parsed:
            if override not in chosen:
                key, value = override.key_or_group, override.value()
                OmegaConf.update(composed, key, value, merge=False, force_add=True)
        _refuse_missing(composed)
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            "the configuration could not be composed",
            where="overrides",
            got=" ".join(overrides),
            remedy=str(error).splitlines()[0],
        ) from error
    return _validated(values)


def read_config(path: Path) -> Config:
    """Read a run's resolved config.yaml back.

    Raises:
        ConfigError: If the file is missing or does not fit this version's schema.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            "the run's configuration cannot be read",
            where=path,
            got=str(error).splitlines()[0],
            remedy="name a run folder that `segresmamba train` or `python -m launch` wrote",
        ) from error
    return _validated(values, file=path)


def experiment(config: Config) -> dict[str, Any]:
    """The settings that change a result, by dotted key.

    Left out are where the run lives, is tracked and computed, how ranks share the work, and how
    often it reports and saves: those may differ between the parts of one run.
    """
    values = config.model_dump(mode="json")
    return {key: value for key, value in _flat(values) if changes_result(key)}


def changes_result(key: str) -> bool:
    """Whether the setting of this dotted key changes a result; see `experiment`."""
    return key not in _FREE and not key.startswith(_ELSEWHERE)


def config_digest(config: Config) -> str:
    """Eight hex digits that name an experiment."""
    return hashlib.sha256(json.dumps(experiment(config), sort_keys=True).encode()).hexdigest()[:8]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def run_folder(config: Config) -> Path:
    """The folder of this configuration's run."""
    return config.run.root / (config.run.name or f"{config.model.name}-{config_digest(config)}")


def _parse(word: str) -> Override:
    key, _, value = word.partition("=")
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConfigError(
            "an override does not parse",
            where=key.strip() or word,
            got=word,
            remedy=f"write key=value; other than plain characters in quotes: '{key}=\"{value}\"'",
        ) from error
    if override.type is not OverrideType.CHANGE or override.package:
        raise ConfigError(
            "an override can only set a value: nothing is added, deleted or moved",
            where=override.key_or_group,
            got=word,
            remedy=f"write {override.key_or_group}={value or 'VALUE'}",
        )
    if override.is_sweep_override():
        raise ConfigError(
            "a sweep was given where one run is expected",
            where=key,
            got=value,
            remedy=f"give one value, or for a list: '{key}=[{value}]'",
        )
    if key in presets():
        _check_preset(key, str(override.value()))
    return override


def _check_preset(group: str, choice: str) -> None:
    choices = presets()[group]
    if choice not in choices:
        raise ConfigError(
            f"there is no {group} preset of that name",
            where=group,
            got=choice,
            remedy=f"choose one of {', '.join(choices)}{suggestion(choice, choices)}",
        )


def _compose(chosen: Iterable[Override]) -> DictConfig:
    words = [f"{override.key_or_group}={override.value()}" for override in chosen]
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(
            "the presets could not be composed",
            where=config_folder(),
            got=" ".join(words),
            remedy=" ".join(str(error).split()),
        ) from error
    # Hydra closes the mapping; here pydantic refuses unknown keys, and says more about them.
    OmegaConf.set_struct(composed, False)
    return composed


def _refuse_missing(composed: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(
            "a value has to be given",
            where=", ".join(missing),
            got="nothing",
            remedy=f"add {missing[0]}=VALUE: {field_help(missing[0])}",
        )


def _validated(values: Any, file: Path | None = None) -> Config:
    """Validate what came from words, or from `file`."""
    try:
        # By way of JSON: its strict mode takes lists for tuples and strings for paths, but neither
        # true nor "3" for a number.
        return Config.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, file) from error
