"""A run is a folder; everything about it can be rebuilt from what lies there.

<root>/<name>/
    config.yaml               the resolved configuration
    journal.jsonl             every metric: the truth
    checkpoints/
        step-00000100/        see engine.checkpoints
    best/weights.pt           full weights of the best validation
    overlays/                 pictures of the last evaluation
    results.json              metrics of the last evaluation
    emissions.json            energy ledger
    mlflow.json               how far MLflow has got
    failure.txt               traceback of the last failure
    failures.jsonl            every failure of a job
    logs/                     output of the processes
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from segresmamba.config import Config, experiment, read_config, run_folder
from segresmamba.errors import ConfigError, UserError
from segresmamba.storage.atomic import remove_leftovers, write_text

_STEP_FOLDER = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class RunFolder:
    """The layout of a run's folder. Nothing else spells these paths."""

    path: Path

    @classmethod
    def from_config(cls, config: Config) -> RunFolder:
        """The run's folder, which `enter` creates."""
        return cls(run_folder(config))

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

    @property
    def emissions(self) -> Path:
        """The energy ledger."""
        return self.path / "emissions.json"

    @property
    def mlflow(self) -> Path:
        """Where the run is in MLflow, and how far its journal has been sent."""
        return self.path / "mlflow.json"

    @property
    def failure(self) -> Path:
        """Traceback of the last failure."""
        return self.path / "failure.txt"

    @property
    def failures(self) -> Path:
        """Every failure of a job of this run, one JSON object a line."""
        return self.path / "failures.jsonl"

    @property
    def logs(self) -> Path:
        """Output of the processes."""
        return self.path / "logs"

    def checkpoint(self, step: int) -> Path:
        """Folder of the complete checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}"

    def validation(self, step: int) -> Path:
        """Where the validation of a checkpoint's step is recorded."""
        return self.checkpoint(step) / "validation.json"

    def saved_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending.

        Other names, such as a user's copy `step-00000100.bak`, are not checkpoints.
        """
        names = (_STEP_FOLDER.fullmatch(path.name) for path in self.checkpoints.glob("step-*"))
        return sorted(int(name[1]) for name in names if name)

    def enter(self, config: Config) -> None:
        """Create the folder, or enter it again with the same experiment.

        Raises:
            ConfigError: If the folder holds another experiment.
            UserError: If the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_changes(config)
            for folder in (self.path, self.best.parent):
                remove_leftovers(folder)
            write_config(config, self.config)
        except OSError as error:
            raise UserError(
                "the run folder cannot be written",
                where=self.path,
                got=error.strerror,
                remedy="choose a writable run.root=FOLDER, or free space",
            ) from error


def write_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML, whole or not at all; `read_config` undoes it."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def refuse_changes(config: Config) -> None:
    """See that a run with a checkpoint goes on with the settings that it was trained with.

    A folder without a checkpoint holds nothing worth keeping, so its settings may change.

    Raises:
        ConfigError: Names every setting that changes the result and differs, with both values,
            unless run.allow_config_change is set.
    """
    folder = RunFolder.from_config(config)
    if config.run.allow_config_change or not folder.config.exists() or not folder.saved_steps():
        return
    changes = _changes(read_config(folder.config), config)
    if changes:
        raise ConfigError(
            "the run folder holds another experiment",
            where=folder.path,
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
