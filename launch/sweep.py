"""A sweep: its trials, what became of each, and their manifest.

    <root>/sweeps/<name>/
        manifest.json     words and settings' digest of every trial, its run, and its last state
        trial-003.lock    held by the process that runs trial 3 on this machine
        trial-003.log     what that process printed
        summary.json, summary.csv

What a trial has reached is read from its run folder, so neither a controller that was killed nor a
manifest that is late makes anything run twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launch import squeue
from launch.grid import trials_of
from launch.report import REPORT
from segresmamba.config import Config, config_digest, load_config, run_folder
from segresmamba.errors import LaunchError, UserError

MANIFEST = "manifest.json"
FINISHED, RUNNING, WAITING, FAILED, STOPPED = "finished", "running", "waiting", "failed", "stopped"


@dataclass
class Trial:
    """One run of a sweep."""

    number: int
    words: list[str]
    """What `python -m launch train` is given."""
    digest: str
    """Of the settings that change the result, see `config_digest`."""
    run: str
    """Its run folder."""
    state: str = WAITING
    """finished, running, waiting (never started), failed or stopped."""
    job: str | None = None
    """Its last job on Slurm."""

    @property
    def failure(self) -> str:
        """The traceback of a trial that failed."""
        path = Path(self.run, REPORT)
        return path.read_text(encoding="utf-8") if self.state == FAILED and path.exists() else ""


@dataclass
class Sweep:
    """Trials, and the folder that remembers them."""

    folder: Path
    trials: list[Trial]

    @property
    def name(self) -> str:
        """Its folder's name, which is also the name of the parent run in MLflow."""
        return self.folder.name

    @classmethod
    def of(cls, words: Sequence[str], name: str | None = None) -> Sweep:
        """The sweep that these words describe, as far as it has come; nothing is written.

        Args:
            words: Overrides in Hydra's sweep grammar.
            name: Of the sweep. Default: a digest of its trials.

        Raises:
            ConfigError: For the first trial whose settings are none.
            LaunchError: If the words name one run folder for several trials, or the folder of the
                sweep holds another one.
        """
        expanded = trials_of(words)
        configs = [load_config(trial) for trial in expanded]
        digests = [config_digest(config) for config in configs]
        title = name or f"sweep-{hashlib.sha256(' '.join(digests).encode()).hexdigest()[:8]}"
        group = [f"tracking.group={title}"]
        trials = [
            Trial(number, trial + group, digest, str(run_folder(config)))
            for number, (trial, digest, config) in enumerate(
                zip(expanded, digests, configs, strict=True)
            )
        ]
        _refuse_shared_folders(trials)
        sweep = cls(configs[0].run.root / "sweeps" / title, trials)
        sweep._remember()
        return sweep

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """A sweep from its folder.

        Raises:
            LaunchError: If there is none.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return cls(folder, [Trial(**trial) for trial in values["trials"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LaunchError(
                "this is no sweep, or its manifest is damaged",
                where=folder / MANIFEST,
                got=str(error).splitlines()[0],
                remedy="name a folder below <run.root>/sweeps; the command that began the sweep "
                "writes a damaged manifest anew once it is deleted",
            ) from error

    def config(self, trial: Trial) -> Config:
        """The settings of a trial."""
        return load_config(trial.words)

    def write(self) -> None:
        """Write the manifest, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = {"name": self.name, "trials": [asdict(trial) for trial in self.trials]}
        temporary = self.folder / f".{MANIFEST}.{os.getpid()}"
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.folder / MANIFEST)

    def refresh(self) -> None:
        """Find out where every trial stands."""
        for trial in self.trials:
            trial.state = self._state(trial)

    def lock(self, trial: Trial) -> int | None:
        """Take a trial for a process of this machine: a descriptor to hand on, None if taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"trial-{trial.number:03d}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """Be the only controller of this sweep.

        Raises:
            LaunchError: If another one is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".controller.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LaunchError(
                    "another process controls this sweep",
                    where=self.folder,
                    got="a lock that is held",
                    remedy=f"python -m launch status {self.folder} shows how far it is",
                ) from error
            yield

    def _state(self, trial: Trial) -> str:
        from segresmamba.tracking import is_run, read_history

        run, recorded = Path(trial.run), ""
        with suppress(UserError):
            recorded = read_history(run).status if is_run(run) else ""
        if recorded == "finished":
            return FINISHED
        if self._is_alive(trial):
            return RUNNING
        if recorded == "failed" or trial.state == FAILED:
            return FAILED
        return STOPPED if recorded or trial.state == RUNNING else WAITING

    def _is_alive(self, trial: Trial) -> bool:
        if trial.job is not None:
            state = squeue.job_state(trial.job)
            return state is not None and not state.ended
        if not (self.folder / f"trial-{trial.number:03d}.lock").exists():
            return False
        descriptor = self.lock(trial)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None

    def _remember(self) -> None:
        """Take over states from the manifest of the same trials."""
        if not (self.folder / MANIFEST).exists():
            return
        before = Sweep.read(self.folder).trials
        if [trial.digest for trial in before] != [trial.digest for trial in self.trials]:
            raise LaunchError(
                "the folder holds another sweep",
                where=self.folder,
                got=f"{len(self.trials)} trials, the folder has {len(before)} with other settings",
                remedy="give another --name, or the same words to go on",
            )
        for trial, old in zip(self.trials, before, strict=True):
            trial.state, trial.job = old.state, old.job


def _refuse_shared_folders(trials: Sequence[Trial]) -> None:
    owners: dict[str, int] = {}
    for trial in trials:
        if trial.run in owners:
            raise LaunchError(
                "two trials would share one run folder",
                where=trial.run,
                got=f"trials {owners[trial.run]} and {trial.number}",
                remedy="give no run.name in a sweep (--name names the sweep), and no value twice",
            )
        owners[trial.run] = trial.number
