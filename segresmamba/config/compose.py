"""From `key=value` words to a validated `Config`.

Hydra composes the presets under configs/ and applies the overrides; pydantic validates the result.
Both kinds of mistake come back as one `ConfigError` that names the key, the value and the choices.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from segresmamba.config.schema import Config, ModelConfig
from segresmamba.errors import ConfigError


def config_folder() -> Path:
    """The folder of the presets: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def presets() -> dict[str, list[str]]:
    """The groups under configs/ and the choices in each, such as {"model": ["segresmamba"]}."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(config_folder().iterdir())
        if folder.is_dir()
    }


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose configs/config.yaml with `overrides` and validate it.

    Args:
        overrides: Hydra's grammar without a sweep: `model=segresnet train.lr=3e-4`.

    Raises:
        ConfigError: For an unknown key or preset, an ill-typed value, or a contradiction.
    """
    words = [_checked_override(word) for word in overrides]
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose("config", overrides=words)
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(
            "the configuration could not be composed",
            where="overrides",
            got=" ".join(overrides) or "(none)",
            remedy=str(error).splitlines()[0],
        ) from error
    return _validated(values, where="")


def read_config(path: Path) -> Config:
    """Read a run's resolved config.yaml back.

    Raises:
        ConfigError: If the file is missing or does not fit this version's schema.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            "the run's configuration cannot be read",
            where=path,
            got=str(error).splitlines()[0],
            remedy="name a run folder that `segresmamba train` wrote",
        ) from error
    return _validated(values, where=f"{path}: ")


def write_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML; `read_config` gives it back."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def config_digest(config: Config) -> str:
    """Eight hex digits that name an experiment: all that changes the result, nothing else."""
    values = config.model_dump(mode="json", exclude={"run", "tracking", "cluster"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def run_folder(config: Config) -> Path:
    """The folder of this configuration's run."""
    return config.run.root / (config.run.name or f"{config.model.name}-{config_digest(config)}")


def _checked_override(word: str) -> str:
    """Refuse an override that names no field or preset; let any documented field be set."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConfigError(
            "an override does not parse",
            where=word,
            got=str(error).splitlines()[0],
            remedy="write key=value; quote values with spaces or brackets for the shell",
        ) from error
    key = override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(
            "a sweep was given where one run is expected",
            where=key,
            got=override.get_value_element_as_str(),
            remedy=f"give one value, as in {key}={override.get_value_element_as_str().split(',')[0]}",
        )
    if override.is_delete() or override.is_add():
        raise ConfigError(
            "keys cannot be added or deleted",
            where=word,
            got=word[0],
            remedy=f"write {word.lstrip('+~')}",
        )
    if key in presets():
        return _checked_preset(key, str(override.value()), word)
    if key not in set(_fields(Config)):
        raise _unknown_key(key, override.get_value_element_as_str())
    return f"++{word}"


def _checked_preset(group: str, choice: str, word: str) -> str:
    choices = presets()[group]
    if choice not in choices:
        raise ConfigError(
            f"there is no {group} preset of that name",
            where=group,
            got=choice,
            remedy=f"choose one of {', '.join(choices)}{_suggestion(choice, choices)}",
        )
    return word


def _unknown_key(key: str, value: str) -> ConfigError:
    fields = list(_fields(Config))
    siblings = [field for field in fields if field.rpartition(".")[0] == key.rpartition(".")[0]]
    choices = siblings or sorted(Config.model_fields)
    return ConfigError(
        "unknown key",
        where=key,
        got=value,
        remedy=f"valid keys here: {', '.join(choices)}{_suggestion(key, fields)}",
    )


def _suggestion(word: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields; those of every model for `model.*`."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if name == "regions":
            continue
        for kind in _sections(field.annotation):
            yield from _fields(kind, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type[BaseModel]]:
    candidates = get_args(annotation) or (annotation,)
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _validated(values: Any, where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # The discriminated union puts the model's name into the path; users know model.<field>.
        names = {kind.model_fields["name"].default for kind in _sections(ModelConfig)}
        path = [
            str(part)
            for index, part in enumerate(first["loc"])
            if not (index == 1 and first["loc"][0] == "model" and part in names)
        ]
        key = ".".join(path) or "config"
        if first["type"] == "extra_forbidden":
            raise _unknown_model_key(key, first["input"], values, where) from error
        raise ConfigError(
            first["msg"].removeprefix("Value error, "),
            where=where + key,
            got=first["input"] if not isinstance(first["input"], dict) else path[-1:] or "config",
            remedy=_remedy(key, error.error_count()),
        ) from error


def _unknown_model_key(key: str, value: object, values: Any, where: str) -> ConfigError:
    section: Any = Config
    for part in key.split(".")[:-1]:
        kinds = _sections(section.model_fields[part].annotation)
        chosen = [
            kind for kind in kinds
            if part == "model" and kind.model_fields["name"].default == values["model"]["name"]
        ]
        section = (chosen or kinds)[0]
    choices = sorted(section.model_fields)
    return ConfigError(
        "unknown key",
        where=where + key,
        got=value,
        remedy=f"valid keys here: {', '.join(choices)}"
        f"{_suggestion(key.rpartition('.')[2], choices)}",
    )


def _remedy(key: str, count: int) -> str:
    more = f" ({count - 1} more after this one)" if count > 1 else ""
    help_text = _field_help(key)
    return (f"{key}: {help_text}" if help_text else f"correct {key}") + more


def _field_help(key: str) -> str:
    kinds: list[type[BaseModel]] = [Config]
    description = ""
    for part in key.split("."):
        found = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        if not found:
            break
        description = " ".join((found[0].description or "").split())
        kinds = [kind for field in found for kind in _sections(field.annotation)]
    return description
