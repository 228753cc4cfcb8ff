"""Whether a run that is started again is still the run that it was."""

from __future__ import annotations

from segresmamba.config.compose import experiment, read_config, run_folder
from segresmamba.config.schema import Config
from segresmamba.errors import ConfigError


def refuse_changes(config: Config) -> None:
    """See that a run with a checkpoint goes on with the settings that it was trained with.

    A folder without a checkpoint holds nothing worth keeping, so its settings may change.

    Raises:
        ConfigError: Names every setting that changes the result and differs, with both values,
            unless run.allow_config_change is set.
    """
    folder = run_folder(config)
    written = folder / "config.yaml"
    if config.run.allow_config_change or not written.exists():
        return
    if not any((folder / "checkpoints").glob("step-*")):
        return
    changes = _changes(read_config(written), config)
    if changes:
        raise ConfigError(
            "the run folder holds another experiment",
            where=folder,
            got="; ".join(changes),
            remedy="give another run.name, or the same values to go on with this run; to go on "
            "with the new ones after all: --allow-config-change",
        )


def _changes(before: Config, after: Config) -> list[str]:
    old, new = experiment(before), experiment(after)
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old | new)
        # The checkpoint knows its dataset by content; the store may have moved.
        if old.get(key) != new.get(key) and key != "data.store"
    ]
