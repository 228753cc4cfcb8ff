"""What is wrong with a configuration, in the user's terms: the key, the value, the remedy.

Pydantic's own messages name Python types and the members of unions; users know keys and YAML.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from segresmamba.config.schema import Config
from segresmamba.config.suggest import all_keys, likely_key, sections
from segresmamba.errors import ConfigError


def explain(error: ValidationError, file: Path | None = None) -> ConfigError:
    """Pydantic's first complaint as an error that names key, value and remedy.

    Args:
        error: What pydantic raised for a `Config`.
        file: The file that the values came from; None for the command line.
    """
    first = error.errors(include_url=False)[0]
    raised = first.get("ctx", {}).get("error")
    # A validator of the schema has raised a ConfigError itself, which says everything already.
    found = raised if isinstance(raised, ConfigError) else _translate(first)
    count = error.error_count()
    return ConfigError(
        found.problem,
        where=f"{file}: {found.where}" if file else found.where,
        got=found.got,
        remedy=found.remedy + (f" (then {count - 1} more to correct)" if count > 1 else ""),
    )


def field_help(key: str) -> str:
    """The docstring of the field with this dotted key; empty for an unknown key."""
    found = _fields(key)
    return " ".join((found[0].description or "").split()) if found else ""


def _fields(key: str) -> list[FieldInfo]:
    """The fields with this dotted key: of each network that has it; empty for an unknown key."""
    kinds: list[type[BaseModel]] = [Config]
    found: list[FieldInfo] = []
    for part in key.split("."):
        found = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        kinds = [kind for field in found for kind in sections(field.annotation)]
    return found


def suggestion(word: str, choices: Sequence[str]) -> str:
    """The beginning of a remedy that asks for the choice most similar to `word`, if one is."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]}? " if close else ""


def _translate(detail: ErrorDetails) -> ConfigError:
    """One of pydantic's own complaints in the user's terms."""
    path, network = [str(part) for part in detail["loc"]], None
    if len(path) > 1 and path[0] == "model":
        network = path.pop(1)  # pydantic's tag of the union's member, which users do not write
    key = ".".join(path) or "the configuration"
    got = _shown(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(path, network, detail["input"])
        case "missing":
            problem, got, remedy = "a value is missing", "nothing", f"give {key}: {_help(path)}"
        case "union_tag_invalid" | "union_tag_not_found":
            networks = sections(Config.model_fields["model"].annotation)
            names = ", ".join(kind.model_fields["name"].default for kind in networks)
            problem, remedy = "there is no such network", f"choose one of {names}"
            key, got = f"{key}.name", _shown(detail["input"].get("name", "nothing"))
        case "literal_error":
            choices = detail["ctx"]["expected"].replace("'", "")
            similar = suggestion(got, choices.replace(" or ", ", ").split(", "))
            problem, remedy = "there is no such choice", f"{similar}choose {choices}"
        case "string_type" if isinstance(detail["input"], bool | int | float):
            # How a number such as 1e5 was written is lost.
            text = "..." if isinstance(detail["input"], float) else json.dumps(detail["input"])
            problem, remedy = "the value has the wrong type", f"quote it: '{key}=\"{text}\"'"
        case "tuple_type" | "list_type" if _fields(key) and not isinstance(detail["input"], dict):
            kind: Any = _fields(key)[0].annotation
            schema = TypeAdapter(kind).json_schema()
            value = "VALUE" if detail["input"] in (None, "") else got
            example = f"'{key}=[{','.join([value] * schema.get('minItems', 1))}]'"
            problem, remedy = "the value has to be a list", f"write {example}: {_help(path)}"
        case "string_pattern_mismatch":
            # The help says what the form is; the pattern says it to programmers only.
            problem, remedy = "the value does not have the form it needs", f"{key}: {_help(path)}"
        case _:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            for theirs, yaml in (("a valid array", "a list"), ("an object", "a mapping")):
                message = message.replace(theirs, yaml)
            problem, remedy = f"the value does not fit: {message}", f"{key}: {_help(path)}"
    return ConfigError(problem, where=key, got=got, remedy=remedy)


def _shown(value: object) -> str:
    """A value on one line."""
    return textwrap.shorten(str(value), 160, placeholder=" ...") or "an empty text"


def _help(path: list[str]) -> str:
    """Help of the field with this path, or of the closest one above it: of patch for patch.2."""
    while path:
        if text := field_help(".".join(path)):
            return text
        path = path[:-1]
    return "a mapping of sections, as in configs/config.yaml"


def _unknown_key(path: list[str], network: str | None, value: object) -> ConfigError:
    kinds: list[type[BaseModel]] = [Config]
    for part in path[:-1]:
        kinds = sections(kinds[0].model_fields[part].annotation)
    problem, first, last = "unknown key", "", ""
    if network:
        kinds = [kind for kind in kinds if kind.model_fields["name"].default == network]
        problem = f"unknown key for model.name={network}"
        last = "; choose another network by its preset, as in model=NAME"
    # Where the section is unknown too, what was written in it tells what was meant.
    while isinstance(value, dict) and len(value) == 1:
        ((name, value),) = value.items()
        path = [*path, name]
    key, got, keys = ".".join(path), _shown(value), all_keys()
    if network == "plugin":
        keyword = ".".join(path[1:])
        first, last = f"a keyword of the class is given as model.kwargs.{keyword}={got}; ", ""
    # A known key belongs to another network.
    elif key not in keys and (meant := likely_key(key, keys)):
        first = f"did you mean {meant}? "
    remedy = f"{first}valid keys here: {', '.join(kinds[0].model_fields)}{last}"
    return ConfigError(problem, where=key, got=got, remedy=remedy)
