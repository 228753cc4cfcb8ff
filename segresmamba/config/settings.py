"""The list of all settings, made from the schema and the presets: `segresmamba settings`."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from segresmamba.config.compose import default_choices, presets
from segresmamba.config.own_presets import config_folder
from segresmamba.config.schema import Config
from segresmamba.config.section import Section
from segresmamba.config.suggest import all_keys, likely_key, sections
from segresmamba.errors import ConfigError

_WIDEST = 100  # longer lines are hard to read
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Setting:
    """One setting as a user writes it."""

    key: str
    kind: str
    """Its type and range, or its choices."""
    default: str
    """Its value if nothing is said, as an override would give it; ??? if it must be given."""
    help: str

    def text(self, width: int) -> str:
        """The setting as lines of at most `width` characters."""
        head = textwrap.fill(
            f"{self.key}={self.default}   ({self.kind})",
            width,
            initial_indent="  ",
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
        body = textwrap.fill(self.help, width - 6, break_on_hyphens=False)
        return f"{head}\n{textwrap.indent(body, ' ' * 6)}"


@dataclass(frozen=True)
class Group:
    """The settings of a section, or of one of the networks that a section chooses among."""

    title: str
    """Such as "train", or "model=unet"."""
    help: str
    presets: tuple[str, ...]
    settings: tuple[Setting, ...]

    def text(self, width: int) -> str:
        """The group as lines of at most `width` characters."""
        chosen_by = f" [presets: {', '.join(self.presets)}]" if self.presets else ""
        head = f"{self.title}{chosen_by}: {self.help}"
        lines = [textwrap.fill(head, width, break_on_hyphens=False)]
        return "\n".join([*lines, *(setting.text(width) for setting in self.settings)])


def listing(key: str | None, width: int) -> str:
    """The settings as text, in groups.

    Args:
        key: A setting, a section, the beginning of one, the last part of one, or a network as in
            model=unet; None for all.
        width: Columns of the terminal.

    Raises:
        ConfigError: If there is no such setting; names the most similar one.
    """
    found = [narrowed for group in groups() if (narrowed := _narrowed(group, key)).settings]
    if key is not None and not found:
        meant = likely_key(key, all_keys())
        raise ConfigError(
            "there is no such setting",
            where="settings",
            got=key,
            remedy=(f"did you mean {meant}? " if meant else "")
            + "`segresmamba settings` lists all of them",
        )
    return "\n\n".join(group.text(min(width, _WIDEST)) for group in found)


def groups() -> Iterator[Group]:
    """Every section in the order of the schema, and each network of the section model."""
    chosen = default_choices()
    outside = {name: field for name, field in Config.model_fields.items()
               if not sections(field.annotation)}  # fmt: skip
    yield Group("seed", "Settings outside the sections.", (), tuple(_settings(Config, "", outside)))
    for name, field in Config.model_fields.items():
        kinds, folder = sections(field.annotation), config_folder() / name
        files: dict[str, dict[str, Any]] = {
            preset: yaml.safe_load((folder / f"{preset}.yaml").read_text(encoding="utf-8")) or {}
            for preset in presets().get(name, ())
        }
        if len(kinds) == 1:
            values = files.get(chosen.get(name, ""), {})
            settings = _settings(kinds[0], name, kinds[0].model_fields, values)
            yield Group(name, _line(field.description), tuple(files), tuple(settings))
            continue
        for kind in kinds:  # none for a setting outside the sections
            tag = kind.model_fields["name"].default
            names = tuple(preset for preset, values in files.items() if values.get("name") == tag)
            # A variant of the network before it is shown by what it changes.
            variant = kind.__base__ is kinds[0].__base__ is not Section and kind is not kinds[0]
            own = kind.__annotations__ if variant else kind.model_fields
            settings = _settings(kind, name, own, files.get(tag, {}))
            about = _line(kind.__doc__).split(". ")[0].rstrip(".")
            if variant:
                about += f". Its settings are those of {kinds[0].model_fields['name'].default}, but"
            yield Group(f"{name}={tag}", about, names, tuple(settings))


def _settings(
    kind: type[BaseModel], section: str, names: Iterable[str], preset: Mapping[str, Any] = {}
) -> Iterator[Setting]:
    schema = kind.model_json_schema()["properties"]
    for name in names:
        found, field = schema[name], kind.model_fields[name]
        if "const" in found:  # the name of a network, which is its preset
            continue
        default = preset.get(name, "???" if field.is_required() else found.get("default", {}))
        helps = [one.model_fields[name].description for one in kind.__mro__
                 if issubclass(one, BaseModel) and name in one.model_fields]  # fmt: skip
        # A variant that changes a default inherits the help.
        help_ = next(filter(None, helps), "")
        yield Setting(f"{section}.{name}".strip("."), _kind(found), _value(default), _line(help_))


def _narrowed(group: Group, key: str | None) -> Group:
    if key is None or group.title == key or group.title.partition("=")[2] == key:
        return group
    exact = [one for one in group.settings if key in (one.key, one.key.rpartition(".")[2])]
    fitting = exact or [one for one in group.settings if one.key.startswith(key)]
    return Group(group.title, group.help, group.presets, tuple(fitting))


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a JSON schema in words."""
    match schema:
        case {"anyOf": members}:
            text = " or ".join(map(_kind, members))
        case {"enum": choices}:
            text = " | ".join(map(str, choices))
        case {"type": "boolean"}:
            text = "true | false"
        case {"type": "array", "prefixItems": items}:
            text = f"list of {len(items)}, each {_kind(items[0])}"
        case {"type": "array", "items": item}:
            text = f"list, each {_kind(item)}"
        case {"type": "object", "additionalProperties": dict(value)}:
            text = f"mapping, each {_kind(value)}"
        case {"type": "object"}:
            text = "mapping"
        case {"type": "string"}:
            text = "path" if schema.get("format") == "path" else "text"
        case {"minimum": low, "maximum": high}:
            text = f"{schema.get('type', 'any value')} from {low:g} to {high:g}"
        case _:  # a number, or null
            bounds = [f" {sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
            text = schema.get("type", "any value") + ",".join(bounds)
    return text


def _value(value: Any) -> str:
    """A default as an override gives it."""
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and re.fullmatch(r"\w[\w./-]*|\?\?\?", value):
        return value
    return json.dumps(value)


def _line(text: str | None) -> str:
    return " ".join((text or "").split())
