"""What is wrong with a configuration, in the user's words: key, value, remedy."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segresmamba.config.schema import Config
from segresmamba.errors import ConfigError


def explain(error: ValidationError, file: Path | None = None) -> ConfigError:
    """The first of pydantic's complaints as an error that names key, value and remedy.

    Args:
        error: What pydantic raised for a `Config`.
        file: The file that the values came from; None for the command line.
    """
    first = error.errors(include_url=False)[0]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, ConfigError):  # a contradiction: the schema has said it all
        problem, key, got, remedy = raised.problem, raised.where, raised.got, raised.remedy
    else:
        problem, key, got, remedy = _translate(first)
    count = error.error_count()
    return ConfigError(
        problem,
        where=f"{file}: {key}" if file else key,
        got=got,
        remedy=remedy + (f" (then {count - 1} more to correct)" if count > 1 else ""),
    )


def field_help(key: str) -> str:
    """The docstring of the field with this dotted key; empty for an unknown key."""
    kinds: list[type[BaseModel]] = [Config]
    description = ""
    for part in key.split("."):
        found = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        if not found:
            return ""
        description = " ".join((found[0].description or "").split())
        kinds = [kind for field in found for kind in _sections(field.annotation)]
    return description


def suggestion(word: str, choices: Sequence[str]) -> str:
    """A question to end a remedy with, where one of the choices looks like the word."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _translate(detail: ErrorDetails) -> tuple[str, str, str, str]:
    """Problem, key, value and remedy of one of pydantic's own complaints."""
    path, tag = _path(detail)
    key = ".".join(path) or "the configuration"
    got = _shown(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(path, tag, got)
        case "missing":
            return "a value is missing", key, "nothing", f"give {key}: {_help(path)}"
        case "union_tag_invalid" | "union_tag_not_found":
            networks = _sections(Config.model_fields["model"].annotation)
            tags = ", ".join(kind.model_fields["name"].default for kind in networks)
            name = _shown(detail["input"].get("name", "nothing"))
            return "there is no such network", f"{key}.name", name, f"choose one of {tags}"
        case "literal_error":
            choices = detail["ctx"]["expected"].replace("'", "")
            similar = suggestion(got, choices.replace(" or ", ", ").split(", "))
            return "there is no such choice", key, got, f"choose {choices}{similar}"
        case "string_type" if not isinstance(detail["input"], dict | list):
            return "the value has the wrong type", key, got, f"quote it: '{key}=\"{got}\"'"
    return f"the value does not fit: {_plain(detail['msg'])}", key, got, f"{key}: {_help(path)}"


def _shown(value: object) -> str:
    """A value on one line."""
    return textwrap.shorten(str(value), 160, placeholder=" ...") or "an empty text"


def _plain(message: str) -> str:
    """Put pydantic's sentence about JSON in the words of YAML."""
    words = message[:1].lower() + message[1:]
    return words.replace("a valid array", "a list").replace("an object", "a mapping")


def _help(path: list[str]) -> str:
    """Help of the closest documented field at or above a path, such as patch for patch.2."""
    while path:
        if text := field_help(".".join(path)):
            return text
        path = path[:-1]
    return "a mapping of sections, as in configs/config.yaml"


def _path(detail: ErrorDetails) -> tuple[list[str], str | None]:
    """The dotted path as users write it, and pydantic's tag of the union member in it."""
    loc = [str(part) for part in detail["loc"]]
    if len(loc) > 1 and loc[0] == "model":
        return [loc[0], *loc[2:]], loc[1]
    return loc, None


def _unknown_key(path: list[str], tag: str | None, got: str) -> tuple[str, str, str, str]:
    kinds: list[type[BaseModel]] = [Config]
    for part in path[:-1]:
        kinds = _sections(kinds[0].model_fields[part].annotation)
    if tag:
        kinds = [kind for kind in kinds if kind.model_fields["name"].default == tag]
    problem = f"unknown key for model.name={tag}" if tag else "unknown key"
    remedy = f"valid keys here: {', '.join(kinds[0].model_fields)}"
    if tag:
        remedy += "; choose another network by its preset, as in model=NAME"
    return problem, ".".join(path), got, remedy + _similar_key(path)


def _similar_key(path: list[str]) -> str:
    """Ask for the same name in another section first, then for a similar spelling."""
    key, fields = ".".join(path), list(_fields(Config))
    if key in fields:  # of another network
        return ""
    same_name = [field for field in fields if field.rpartition(".")[2] == path[-1]]
    return f"; did you mean {same_name[0]}?" if same_name else suggestion(key, fields)


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, those of every network under model."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in _sections(field.annotation):
            yield from _fields(kind, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation names: none, one, or the members of a union."""
    candidates = get_args(annotation) or (annotation,)
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
