"""Networks and readers of other packages, by their target or by a Python entry point.

    model.target=mypackage.networks:MyNet       package.module:Class, without a word more

    [project.entry-points."segresmamba.networks"]
    mynet = "mypackage.networks:MyNet"          model=mynet is the same

Composing a configuration reads only the metadata of packages and imports none, so that submitting
stays instant.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable
from importlib import metadata
from importlib.util import find_spec
from textwrap import shorten
from typing import Any

from hydra.core.override_parser.types import Override

from segresmamba.config.networks import ModelConfig, PluginConfig
from segresmamba.errors import ConfigError

NETWORKS, READERS = "segresmamba.networks", "segresmamba.readers"


def entry_points(group: str) -> dict[str, str]:
    """The entry points of a group: name to `package.module:object`."""
    return {point.name: point.value for point in metadata.entry_points(group=group)}


def plugin_section(overrides: Iterable[Override], presets: Collection[str]) -> dict[str, str]:
    """The beginning of the section model, if the overrides mean a network from elsewhere.

    Args:
        overrides: All of them.
        presets: The presets of networks, which come before entry points.

    Returns:
        An empty dictionary if they mean a network of this project.
    """
    given = {override.key_or_group: override.value() for override in overrides}
    if "model" not in given:
        return {"name": "plugin"} if "model.target" in given else {}
    name = str(given["model"])
    target = None if name in presets else entry_points(NETWORKS).get(name)
    return {"name": "plugin", "target": target} if target else {}


def check_installed(model: ModelConfig) -> None:
    """Refuse a target whose package is not there, without importing it.

    Raises:
        ConfigError: Names the package.
    """
    if not isinstance(model, PluginConfig):
        return
    package = model.target.partition(":")[0].partition(".")[0]
    # A module that a program was started with may have no specification; jobs could not import it.
    if package == "__main__" or find_spec(package) is None:
        raise ConfigError(
            f"there is no package {package}",
            where="model.target",
            got=model.target,
            remedy="install it in this environment, or put the folder that holds it into "
            "PYTHONPATH, as in PYTHONPATH=$PWD",
        )


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
    except Exception as error:  # the module may raise anything
        raise ConfigError(
            "the target cannot be imported",
            where=key,
            got=shorten(f"{target}: {type(error).__name__}: {error}", 300),
            remedy="write package.module:Class, and install the package where the job runs, or "
            "put the folder that holds it into PYTHONPATH",
        ) from error
