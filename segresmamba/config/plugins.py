"""Networks, losses, augmentation and readers of other packages, by target or Python entry point.

    model.target=mypackage.networks:MyNet       package.module:Class, without a word more

    [project.entry-points."segresmamba.networks"]
    mynet = "mypackage.networks:MyNet"          model=mynet is the same

Composing a configuration reads only the metadata of packages and imports none, so that submitting
stays instant.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from importlib import metadata
from importlib.util import find_spec
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import yaml

from segresmamba.config.networks import PluginConfig
from segresmamba.config.own_presets import config_folder
from segresmamba.config.schema import Config
from segresmamba.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

NETWORKS, READERS = "segresmamba.networks", "segresmamba.readers"
LOSSES, AUGMENTATIONS = "segresmamba.losses", "segresmamba.augmentations"
GROUPS = {"model": NETWORKS, "loss": LOSSES, "augment": AUGMENTATIONS}
"""The entry points that are names for presets, by group of presets."""


def entry_points(group: str) -> dict[str, str]:
    """The entry points of a group: name to `package.module:object`."""
    return {point.name: point.value for point in metadata.entry_points(group=group)}


def plugin_sections(
    overrides: Iterable[Override], presets: Mapping[str, Collection[str]]
) -> dict[str, dict[str, Any]]:
    """The beginnings of the sections that come from elsewhere, by group.

    Args:
        overrides: All of them.
        presets: The presets of each group, which come before entry points.
    """
    given = {override.key_or_group: override.value() for override in overrides}
    found: dict[str, dict[str, Any]] = {}
    for group, points in GROUPS.items():
        name = str(given.get(group))
        target = None
        if group in given and name not in presets[group]:
            target = entry_points(points).get(name)
        if group == "model" and (target or ("model" not in given and "model.target" in given)):
            found[group] = {"name": "plugin"}
        elif group == "augment" and target:  # it stands for a preset, so nothing else changes
            text = (config_folder() / "augment" / "none.yaml").read_text(encoding="utf-8")
            found[group] = yaml.safe_load(text)
        if target:
            found.setdefault(group, {})["target"] = target
    return found


def check_installed(config: Config) -> None:
    """Refuse a target whose package is not there, without importing it.

    Raises:
        ConfigError: Names the package.
    """
    model = config.model.target if isinstance(config.model, PluginConfig) else None
    targets = {"model": model, "loss": config.loss.target, "augment": config.augment.target}
    for group, target in targets.items():
        if target is None:
            continue
        package = target.partition(":")[0].partition(".")[0]
        # A module that a program was started with may have no specification, and jobs could not
        # import it.
        if package == "__main__" or find_spec(package) is None:
            raise ConfigError(
                f"there is no package {package}",
                where=f"{group}.target",
                got=target,
                remedy="install it in this environment, or put the folder that holds it into "
                "PYTHONPATH, as in PYTHONPATH=$PWD",
            )


def make(target: str, keywords: Mapping[str, Any], group: str, also: str = "") -> Any:
    """Call the class or function that a target names.

    Args:
        target: As in package.module:Class.
        keywords: What it is called with.
        group: The group of settings that has `target` and `kwargs`.
        also: What it has to take besides the user's keywords, for the error.

    Raises:
        ConfigError: If it cannot be imported, or does not take these keywords.
    """
    build = load_target(target, f"{group}.target")
    if not callable(build):
        raise ConfigError(
            "the target is neither a class nor a function",
            where=f"{group}.target",
            got=f"{target} is {type(build).__name__}",
            remedy="write package.module:Class",
        )
    try:
        inspect.signature(build).bind(**keywords)
    except TypeError as error:
        raise ConfigError(
            "the target does not take these arguments",
            where=f"{group}.target, {group}.kwargs",
            got=f"{target}: {error}",
            remedy=f"{also}give what it needs in {group}.kwargs, as in "
            f"'{group}.kwargs={{name:value}}'"
            + (
                "; a function is called once, and returns what is used"
                if inspect.isfunction(build)
                else ""
            ),
        ) from error
    try:
        return build(**keywords)
    except SystemExit as error:
        raise _ends_the_program(target, f"{group}.target", error) from error


def load_target(target: str, key: str) -> Any:
    """What a target names; importing it runs its module.

    Args:
        target: As in package.module:Class.
        key: The setting or entry point that has it, for the error.

    Raises:
        ConfigError: If it cannot be imported.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except SystemExit as error:
        raise _ends_the_program(target, key, error) from error
    except Exception as error:  # the module may raise anything
        raise ConfigError(
            "the target cannot be imported",
            where=key,
            got=shorten(f"{target}: {type(error).__name__}: {error}", 300),
            remedy="write package.module:Class, and install the package where the job runs, or "
            "put the folder that holds it into PYTHONPATH",
        ) from error


def _ends_the_program(target: str, key: str, error: SystemExit) -> ConfigError:
    """For a script that is taken for a module: the command would end without a word."""
    return ConfigError(
        "the target's code ends the program",
        where=key,
        got=f"{target}: sys.exit({error.code!r})",
        remedy='put what only the script does below `if __name__ == "__main__":`',
    )
