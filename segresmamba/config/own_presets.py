"""Presets in a folder of the user's own, which come before those of the package.

    configs/data/mine.yaml      data=mine takes it; a list `defaults:` may build on other presets

The commands put the folder into the overrides, as `run.config_dir`. So jobs, sweeps and whatever
else hands overrides on find the same presets, whatever folder they work in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from segresmamba.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

logger = logging.getLogger(__name__)

KEY = "run.config_dir"


def config_folder() -> Path:
    """The folder of the presets: in an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def with_own_presets(overrides: Sequence[str] | None, folder: Path | None) -> list[str]:
    """The overrides of a command, with the folder of the user's own presets if there is one.

    Args:
        overrides: As the user gave them.
        folder: The value of --config-dir; None takes ./configs if it exists.
    """
    words = list(overrides or ())
    here = Path("configs")
    if folder is None and here.is_dir() and not here.samefile(config_folder()):
        folder = here
    if folder is None or any(word.startswith(f"{KEY}=") for word in words):
        return words
    return [*words, f"{KEY}={json.dumps(str(folder.resolve()), ensure_ascii=False)}"]


def own_presets(folder: Path | None, groups: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The files of a folder that are presets of these groups, by group and name.

    A copy of a preset of the package, as in a checkout of this project, is not the user's own.

    Raises:
        ConfigError: If there is no such folder.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ConfigError(
            "the folder of your presets is not there",
            where=f"--config-dir ({KEY})",
            got=folder,
            remedy="give a folder with a folder for each group, as in DIR/data/mine.yaml",
        )
    found: dict[str, dict[str, Path]] = {}
    for group in groups:
        found[group] = {}
        for path in sorted((folder / group).glob("*.yaml")):
            original = config_folder() / group / path.name
            if not original.exists() or path.read_bytes() != original.read_bytes():
                found[group][path.stem] = path.resolve()
    return found


def compose_own(composed: DictConfig, files: Mapping[str, Path]) -> None:
    """Put presets of the user's own in the place of the package's, and log where they came from.

    Args:
        composed: The package's presets, which gets the others by group.
        files: The file of each preset, by group.

    Raises:
        ConfigError: For a file that is no preset.
    """
    # Slow to import, and processes that only read a run's configuration need none of it.
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    for group, path in files.items():
        search = f"hydra.searchpath=['file://{config_folder()}']"
        try:
            with initialize_config_dir(str(path.parents[1]), version_base="1.3"):
                found = compose(f"{group}/{path.stem}", overrides=[search])
            composed[group] = found.get(group, {})  # an empty file gives no group
        except (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
            raise ConfigError(
                "a preset of yours cannot be read",
                where=path,
                got=" ".join(str(error).split()),
                remedy=f"write settings of {group}, one `key: value` a line, without the group; a "
                "preset that builds on another one needs another name",
            ) from error
        say_preset(group, str(path))


@cache  # a sweep composes its presets again for each trial
def say_preset(group: str, path: str) -> None:
    """Say in the log which file a preset of the user's own came from."""
    # A warning, because the launcher shows nothing less.
    logger.warning("%s=%s is %s, not a preset of the package", group, Path(path).stem, path)
