"""A sweep: its trials, what became of each, and their manifest.

    <root>/sweeps/<name>/
        manifest.json     words and settings' digest of every trial, its run, job and last state
        trial-003.json    of a search: what was chosen for trial 3, and where it was pruned
        trial-003.lock    held by the process that runs trial 3 on this machine
        trial-003.log     what that process printed
        study.journal     Optuna's, of a search
        jobs/             logs and pickles of the jobs on Slurm; each run's logs/ links to its own
        summary.json, summary.csv

What a trial has reached is read from its run folder, so neither a controller that was killed nor a
manifest that is late makes anything run twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.slurm import squeue
from launch.sweeps.grammar import trials_of
from launch.sweeps.search_space import SearchPoint, Space
from launch.sweeps.trial import Trial
from segresmamba.config import Config, config_digest, load_config, run_folder
from segresmamba.errors import LaunchError
from segresmamba.storage.locks import is_locked, try_lock

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Search:
    """What makes a sweep a search: its trials' settings are chosen one by one, by Optuna."""

    words: list[str]
    """The space, in Hydra's sweep grammar."""
    storage: str | None
    """URL of a database; None for a file in the sweep's folder."""
    digest: str
    """Of the space and of all settings that change a result."""
    sample: SearchPoint
    """A point of the space, for what is the same in all trials."""

    @property
    def space(self) -> Space:
        """What may be tried."""
        return Space.from_overrides(self.words)


@dataclass
class Sweep:
    """Trials, and the folder that remembers them."""

    folder: Path
    trials: list[Trial]
    search: Search | None = None

    @property
    def name(self) -> str:
        """Its folder's name, which is also the name of the parent run in MLflow."""
        return self.folder.name

    @property
    def identity(self) -> list[str]:
        """What makes it this sweep and no other; a search may grow, and move its study."""
        if self.search:
            return [self.search.digest]
        return [trial.digest for trial in self.trials]

    @classmethod
    def from_overrides(cls, words: Sequence[str], name: str | None = None) -> Sweep:
        """The grid that these words describe, as far as it has come; nothing is written.

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
        title = title_of(name, "sweep", digests)
        trials = [
            Trial(number, [*trial, f"tracking.group={title}"], digest, str(run_folder(config)))
            for number, (trial, digest, config) in enumerate(
                zip(expanded, digests, configs, strict=True)
            )
        ]
        _refuse_shared_folders(trials)
        sweep = cls(configs[0].run.root / "sweeps" / title, trials)
        sweep.remember()
        return sweep

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """A sweep from its folder.

        Raises:
            LaunchError: If there is none.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            search = values.get("search")
            trials = [Trial(**trial) for trial in values["trials"]]
            sweep = cls(folder, trials, Search(**search) if search else None)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LaunchError(
                "this is no sweep, or its manifest is damaged",
                where=folder / MANIFEST,
                got=str(error).splitlines()[0],
                remedy="name a folder below <run.root>/sweeps; the command that began the sweep "
                "writes a damaged manifest anew once it is deleted",
            ) from error
        sweep.recall()
        return sweep

    def config(self, trial: Trial) -> Config:
        """The settings of a trial; while nothing was chosen for it, those of the sample."""
        return load_config(trial.words or self.words(trial, self._search.sample))

    def words(self, trial: Trial, values: SearchPoint) -> list[str]:
        """The words of a search's trial for which `values` were chosen."""
        place = [f"run.name={Path(trial.run).name}", f"tracking.group={self.name}"]
        return [*self._search.space.words(values), *place]

    def settings(self, trial: Trial) -> str:
        """The words in which a trial differs from the others."""
        if self.search is not None:
            return " ".join(f"{key}={value}" for key, value in trial.values.items())
        common = set.intersection(*(set(other.words) for other in self.trials))
        return " ".join(word for word in trial.words if word not in common)

    def write(self) -> None:
        """Write the manifest, whole or not at all."""
        search = asdict(self.search) if self.search else None
        trials = [asdict(trial) for trial in self.trials]
        self._put(MANIFEST, {"name": self.name, "search": search, "trials": trials})

    def record(self, trial: Trial) -> None:
        """Write down what was chosen for a trial, and where it was pruned."""
        kept = {key: value for key, value in asdict(trial).items() if key in _RECORDED}
        self._put(_record_name(trial), kept)

    def recall(self) -> None:
        """Read what the trials of a search have written down; see `record`."""
        for trial in self.trials if self.search else ():
            path = self.folder / _record_name(trial)
            if path.exists():
                for key, value in json.loads(path.read_text(encoding="utf-8")).items():
                    setattr(trial, key, value)
                # Not recorded: the words of the latest command hold, such as its cluster.*.
                trial.words = self.words(trial, trial.values)

    def refresh(self, *trials: Trial) -> None:
        """Find out where these trials stand, or all."""
        self.recall()
        asked = trials or self.trials
        jobs = squeue.job_states([trial.job for trial in asked if trial.job])
        for trial in asked:
            trial.refresh(
                jobs.get(trial.job or ""),
                is_locked=self._is_locked(trial),
                must_measure=self.search is not None,
            )

    def lock(self, trial: Trial) -> int | None:
        """Take a trial for a process of this machine: a descriptor to hand on, None if taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._lock_file(trial)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if try_lock(descriptor, path):
            return descriptor
        os.close(descriptor)
        return None

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """Be the only controller of this sweep.

        Raises:
            LaunchError: If another one is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ".controller.lock"
        with path.open("w") as file:
            if not try_lock(file.fileno(), path):
                raise LaunchError(
                    "another process controls this sweep",
                    where=self.folder,
                    got="a lock that is held",
                    remedy=f"python -m launch status {self.folder} shows how far it is",
                )
            yield

    @property
    def _search(self) -> Search:
        assert self.search is not None  # a grid's trials have their words from the beginning
        return self.search

    def _lock_file(self, trial: Trial) -> Path:
        return self.folder / f"trial-{trial.number:03d}.lock"

    def _is_locked(self, trial: Trial) -> bool:
        return is_locked(self._lock_file(trial))

    def remember(self) -> None:
        """Take over states from the manifest of the same trials."""
        if not (self.folder / MANIFEST).exists():
            return
        before = Sweep.read(self.folder)
        if before.identity != self.identity or len(before.trials) > len(self.trials):
            raise LaunchError(
                "the folder holds another sweep",
                where=self.folder,
                got=f"{_summary(self)}; the folder has {_summary(before)}",
                remedy="give another --name, or the same words to go on (a search may grow: "
                "--trials is how many there are in all)",
            )
        for trial, old in zip(self.trials, before.trials, strict=False):
            trial.state, trial.job = old.state, old.job
        self.recall()

    def _put(self, name: str, content: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.{os.getpid()}"
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.folder / name)


_RECORDED = ("digest", "values", "pruned_at")


def _record_name(trial: Trial) -> str:
    return f"trial-{trial.number:03d}.json"


def _summary(sweep: Sweep) -> str:
    if sweep.search is None:
        return f"{len(sweep.trials)} trials of a grid"
    return f"a search of {len(sweep.trials)} trials: {' '.join(sweep.search.words)}"


def title_of(name: str | None, kind: str, content: Sequence[str]) -> str:
    """The name of a sweep, by default a digest of its content.

    Raises:
        LaunchError: If it cannot be a folder's name.
    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise LaunchError(
            "this cannot be a folder's name",
            where="--name",
            got=name,
            remedy="begin with a letter or digit, then also . _ and -",
        )
    return name or f"{kind}-{hashlib.sha256(' '.join(content).encode()).hexdigest()[:8]}"


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
