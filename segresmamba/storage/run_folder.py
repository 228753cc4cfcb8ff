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

from dataclasses import dataclass
from pathlib import Path

from segresmamba.config import Config, refuse_changes, run_folder, write_config
from segresmamba.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def journal(self) -> Path:
        """Every metric."""
        return self.path / "journal.jsonl"

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
        """The run's folder, which `enter` on the main rank creates."""
        return cls(run_folder(config))

    def enter(self, config: Config) -> None:
        """Create the folder, or enter it again with the same experiment.

        Raises:
            ConfigError: If the folder holds another experiment.
            UserError: If the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_changes(config)
            write_config(config, self.config)
        except OSError as error:
            raise UserError(
                "the run folder cannot be written",
                where=self.path,
                got=error.strerror,
                remedy="choose a writable run.root=FOLDER, or free space",
            ) from error
