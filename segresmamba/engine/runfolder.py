"""A run is a folder; everything about it can be rebuilt from what lies there.

<root>/<name>/
    config.yaml        the resolved configuration
    journal.jsonl      every metric
    checkpoints/       see engine.checkpoint
    best/weights.pt    full weights of the best validation
    overlays/          pictures of the last evaluation
    results.json       metrics of the last evaluation
    emissions.json     energy ledger
    logs/              output of the processes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segresmamba.config import Config, read_config, run_folder, write_config
from segresmamba.errors import ConfigError, UserError

# What may differ between the parts of one run without making it another experiment.
_FREE = ("run.", "tracking.", "cluster.", "validation.", "data.workers", "data.prefetch")
_FREE_TRAIN = ("log_every", "validate_every", "checkpoint_every", "keep_last", "threads")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Full weights of the best validation."""
        return self.path / "best" / "weights.pt"

    @property
    def overlays(self) -> Path:
        """Folder of the pictures."""
        return self.path / "overlays"

    @property
    def results(self) -> Path:
        """Metrics of the last evaluation."""
        return self.path / "results.json"

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """The run's folder, which `prepare` on the main rank creates."""
        return cls(run_folder(config))

    @classmethod
    def prepare(cls, config: Config) -> RunFolder:
        """Create the run's folder, or enter it again with the same experiment.

        Raises:
            ConfigError: If the folder belongs to another experiment.
            UserError: If the folder cannot be written.
        """
        folder = cls.of(config)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if folder.config.exists():
                folder._refuse_changes(config)
            write_config(config, folder.config)
        except OSError as error:
            raise UserError(
                "the run folder cannot be written",
                where=folder.path,
                got=error.strerror,
                remedy="choose a writable run.root=FOLDER, or free space",
            ) from error
        return folder

    def _refuse_changes(self, config: Config) -> None:
        before = dict(_flat(read_config(self.config).model_dump(mode="json")))
        after = dict(_flat(config.model_dump(mode="json")))
        changes = [
            f"{key}: {before.get(key)} -> {after.get(key)}"
            for key in sorted(before | after)
            if before.get(key) != after.get(key) and not _is_free(key)
        ]
        if changes:
            raise ConfigError(
                "the run folder holds another experiment",
                where=self.path,
                got="; ".join(changes),
                remedy="give another run.name, or the same values to go on with this run",
            )


def _is_free(key: str) -> bool:
    section, _, name = key.partition(".")
    return key.startswith(_FREE) or (section == "train" and name in _FREE_TRAIN)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
