"""Settings as runs recorded them, made comparable between versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from segresmamba.config import Config
from segresmamba.tracking import flatten


def completed(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of a run, with defaults for those that its version did not have yet.

    Args:
        settings: As `History.settings`. Where this version no longer knows one of them, they are
            returned as they are.
    """
    nested: dict[str, Any] = {}
    for key, text in settings.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = _value(text)
    try:
        config = Config.model_validate_json(json.dumps(nested), strict=True)
    except ValidationError:
        return dict(settings)
    return flatten(config.model_dump(mode="json"))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
