"""The layout of a run's folder, from which everything about the run can be rebuilt.

Submitting a job and checking a queue read these paths too, so this module does not import torch.

<root>/<name>/
    config.yaml               the resolved configuration, without secrets
    secrets.json              its secrets if it has any, for their owner alone; also in logs/
    journal.jsonl             every metric and tag, one JSON object a line: the truth
    checkpoints/
        step-00000100/        a complete checkpoint, see engine.checkpoints
        step-00000200.damaged/   was found damaged and is kept aside; never read or deleted
    init_from.json            which weights it started from, see task.starting_weights
    best/weights.safetensors  full weights of the best validation, see task.weights. Earlier
                              versions wrote weights.pt; it is read until a better one replaces it
    best/postprocessing.json  which components their labels keep, see inference
    overlays/                 pictures of the last evaluation
    results.json              metrics of the last evaluation; results.csv and results.md for readers
    earlier-1/                best/, overlays/ and results.* of an attempt before the current one
    emissions.json            energy ledger
    mlflow.json               the run in MLflow, and how much of the journal it has
    failure.txt               traceback of the last failure
    failures.jsonl            every failure of a job, one JSON object a line
    skipped.jsonl             batches of the steps that were skipped, one JSON object a line
    skipped-weights.pt        full weights at the last of them, for `segresmamba debug-batch`
    memory.json               peak memory of each rank in each phase
    environment.txt           packages that were installed when the run started
    logs/                     output of the processes
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

from segresmamba.config import Config, experiment, read_config, run_folder, to_yaml
from segresmamba.errors import ConfigError, UserError
from segresmamba.secrets import FILE, secrets_in
from segresmamba.storage.atomic import atomic_path, remove_leftovers, sync, write_text

_STEP_FOLDER = re.compile(r"step-(\d{8})")
_BEST, _FORMER_BEST = "weights.safetensors", "weights.pt"


class RunFolder:
    """The layout of a run's folder. Other modules take these paths from here.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.journal = path / "journal.jsonl"
        self.checkpoints = path / "checkpoints"
        self.init_from = path / "init_from.json"
        self.new_best = path / "best" / _BEST
        self.overlays = path / "overlays"
        self.results = path / "results.json"
        self.emissions = path / "emissions.json"
        self.mlflow = path / "mlflow.json"
        self.failure = path / "failure.txt"
        self.failures = path / "failures.jsonl"
        self.skipped = path / "skipped.jsonl"
        self.skipped_weights = path / "skipped-weights.pt"
        self.memory = path / "memory.json"
        self.environment = path / "environment.txt"
        self.logs = path / "logs"

    @property
    def best(self) -> Path:
        """The best weights where they are; where they will be, if there are none yet."""
        return best_weights(self.new_best.parent)

    @classmethod
    def from_config(cls, config: Config) -> RunFolder:
        """The folder of a configuration's run, which `enter` creates."""
        return cls(run_folder(config))

    def checkpoint(self, step: int) -> Path:
        """Folder of the complete checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}"

    def set_aside(self, step: int) -> Path:
        """Rename the checkpoint of a step to `step-00000100.damaged`: it no longer counts as one.

        Nothing deletes it. Where an earlier one has the name, it becomes `.damaged-2` and so on.

        Returns:
            Its new path.

        Raises:
            OSError: If it cannot be renamed.
        """
        path = self.checkpoint(step)
        names = itertools.chain(["damaged"], (f"damaged-{n}" for n in itertools.count(2)))
        aside = (path.with_name(f"{path.name}.{name}") for name in names)
        free = next(candidate for candidate in aside if not candidate.exists())
        path.rename(free)
        sync(self.checkpoints)
        return free

    def set_results_aside(self) -> Path:
        """Move the best weights, and what was measured with them, to a folder `earlier-1` or so.

        Returns:
            The folder.

        Raises:
            OSError: If they cannot be moved.
        """
        aside = (self.path / f"earlier-{number}" for number in itertools.count(1))
        free = next(candidate for candidate in aside if not candidate.exists())
        free.mkdir()
        # The weights last: while they are in place, the next start does this again.
        for path in (*self.path.glob("results.*"), self.overlays, self.best.parent):
            if path.exists():
                path.rename(free / path.name)
        return free

    def validation(self, step: int) -> Path:
        """File of the metrics of the validation at a checkpoint's step."""
        return self.checkpoint(step) / "validation.json"

    def scored(self, step: int) -> Path:
        """File of what that validation had scored when it was stopped."""
        return self.checkpoint(step) / "scored.json"

    def saved_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending.

        Other names, such as a user's copy `step-00000100.bak`, are not checkpoints.
        """
        names = (_STEP_FOLDER.fullmatch(path.name) for path in self.checkpoints.glob("step-*"))
        return sorted(int(name[1]) for name in names if name)

    def remove_leftovers(self) -> None:
        """Delete what killed jobs left of the files that one process of a run writes.

        The caller holds the run's lock. mlflow.json and emissions.json have writers of their own.
        """
        remove_leftovers(self.best.parent)
        self.remove_former_best()
        for path in (self.config, self.environment, self.memory, self.skipped_weights):
            remove_leftovers(self.path, path.name)

    def remove_former_best(self) -> None:
        """Delete best weights in the form of earlier versions if there are newer ones."""
        if self.new_best.exists():
            self.new_best.with_name(_FORMER_BEST).unlink(missing_ok=True)

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


def best_weights(folder: Path) -> Path:
    """The file of the weights in the `best` folder of a run, or in a copy of that."""
    former = folder / _FORMER_BEST
    return former if former.exists() and not (folder / _BEST).exists() else folder / _BEST


def write_config(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML, whole or not at all; `read_config` undoes it."""
    text = to_yaml(config)
    keep_secrets(path.parent, text)
    write_text(path, text)


def keep_secrets(folder: Path, text: str) -> None:
    """Write the secrets of all markers in a text into the folder, for its owner alone.

    Raises:
        OSError: If they cannot be written.
    """
    secrets = secrets_in(text)
    if secrets:
        with atomic_path(folder / FILE) as temporary:
            temporary.touch(0o600)  # before it holds anything
            temporary.write_text(json.dumps(secrets), encoding="utf-8")


def refuse_changes(config: Config) -> None:
    """Refuse to continue a run that has a checkpoint with settings that change its result.

    Without a checkpoint nothing depends on the old settings, so they may change.

    Raises:
        ConfigError: Names every setting that changes the result and differs, with both values,
            unless run.allow_config_change is set.
    """
    folder = RunFolder.from_config(config)
    if config.run.allow_config_change or not folder.config.exists() or not folder.saved_steps():
        return
    before, after = experiment(read_config(folder.config)), experiment(config)
    changes = [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before | after)
        # A checkpoint knows its dataset by a digest of the content, so the store may have moved.
        if before.get(key) != after.get(key) and key != "data.store"
    ]
    if changes:
        raise ConfigError(
            "the run folder holds another experiment",
            where=folder.path,
            got="; ".join(changes),
            remedy="give another run.name, or the same values to go on with this run; to go on "
            "with the new values: --allow-config-change",
        )
