"""Settings as runs recorded them, made comparable between versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from segresmamba.config import Config
from segresmamba.config.section import Section
from segresmamba.tracking import flatten


def completed(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of a run, with defaults for those that its version did not have yet.

    Args:
        settings: As `History.settings`. Sections in which this version no longer knows a setting
            are returned as they are.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, text in settings.items():
        section, dot, rest = key.partition(".")
        if dot and section in Config.model_fields:
            place = sections.setdefault(section, {})
            *outer, name = rest.split(".")
            for part in outer:
                place = place.setdefault(part, {})
            place[name] = _value(text)
    complete = dict(settings)
    for section, values in sections.items():
        kind: Any = Config.model_fields[section].annotation
        try:
            valid = TypeAdapter[Section](kind).validate_json(json.dumps(values), strict=True)
        except ValidationError:
            continue
        complete |= flatten(valid.model_dump(mode="json"), f"{section}.")
    return complete


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
