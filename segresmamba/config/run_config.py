"""A run's config.yaml: the resolved configuration, written, read back and validated.

Hydra is not imported here: it would take a tenth of the start of each process of a training.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from segresmamba.config.explain import explain
from segresmamba.config.schema import Config
from segresmamba.errors import ConfigError
from segresmamba.secrets import recall

logger = logging.getLogger(__name__)

_CHECKSUM = "# checksum: "


def to_yaml(config: Config) -> str:
    """A resolved configuration as YAML, after a line with its checksum."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return f"{_CHECKSUM}{_checksum(text)}\n{text}"


def read_config(path: Path) -> Config:
    """Read a run's resolved config.yaml back, and the secrets that lie beside it.

    Raises:
        ConfigError: If the file is missing or does not fit this version's schema. If it does not
            fit its checksum, which earlier versions did not write, a warning says so.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)  # not the C loader: deep nesting ends the process there
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            "the run's configuration cannot be read",
            where=path,
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="name a run folder that `segresmamba train` or `python -m launch` wrote",
        ) from error
    first, _, rest = text.partition("\n")
    if first.startswith(_CHECKSUM) and first != _CHECKSUM + _checksum(rest):
        # Not an error: people edit this file, for instance when they have moved the dataset.
        logger.warning(
            "%s is not what the run wrote (checksum %s, written with %s): somebody has edited it, "
            "or it is damaged; MLflow has the original among the artifacts of the run",
            *(path, _checksum(rest), first.removeprefix(_CHECKSUM)[:20]),
        )
    recall(path.parent)
    return validated(values, file=path)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def validated(values: Any, file: Path | None = None) -> Config:
    """Validate values from overrides, or from `file`."""
    try:
        # pydantic's strict mode for JSON accepts a list for a tuple and a string for a path, but
        # neither true nor "3" for a number. YAML also has dates, which JSON lacks: hence `str`.
        return Config.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, file) from error
