"""A sweep: its trials, what became of each, and their manifest.

    <root>/sweeps/<name>/
        manifest.json     every trial: overrides, digest of its settings, run, job, last state;
                          and the composed settings of the first
        secrets.json      the secrets of the overrides if they have any, for their owner alone
        trial-003.json    in a search: what was chosen for trial 3, and where it was pruned
        trial-003.lock    held by the process that runs trial 3 on this machine
        trial-003.log     what that process printed
        controller.txt    the process that controls the sweep, or did so last
        study.journal     in a search: Optuna's study
        jobs/             logs and pickles of the jobs on Slurm; each run's logs/ links to its own
        summary.json, summary.csv

What a trial has reached is read from its run folder, not from the manifest. So nothing runs twice
after a controller was killed before it wrote the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from pydantic import TypeAdapter

from launch.jobs import succession
from launch.run_index import summaries
from launch.slurm import squeue
from launch.slurm.squeue import JobState
from launch.sweeps.grammar import hide_secrets, trials_of
from launch.sweeps.search_space import SearchPoint, Space
from launch.sweeps.trial import Trial
from segresmamba.config import (
    Config,
    config_digest,
    experiment,
    former_digest,
    load_config,
    run_folder,
)
from segresmamba.errors import ConfigError, LaunchError
from segresmamba.secrets import recall
from segresmamba.storage.atomic import write_text
from segresmamba.storage.locks import is_locked, try_lock
from segresmamba.storage.run_folder import keep_secrets

MANIFEST = "manifest.json"
_CONTROLLER = "controller.txt"
# Containers may share the name of their host, and each begins to number its processes at 1.
_THIS_PROCESS = f"process {os.getpid()} on {socket.gethostname()} ({token_hex(4)})"
# What a trial of a search writes down itself. The rest follows from the latest command.
_RECORDED = ("digest", "values", "pruned_at")


@dataclass(frozen=True)
class Search:
    """What makes a sweep a search: its trials' settings are chosen one by one, by Optuna."""

    overrides: list[str]
    """The space, in Hydra's sweep grammar."""
    storage: str | None
    """URL of a database; None for a file in the sweep's folder."""
    digest: str
    """Digest of the space and of all settings that change a result."""
    sample: SearchPoint
    """A point of the space, for settings that are the same in all trials."""

    @property
    def space(self) -> Space:
        """What may be tried."""
        return Space.from_overrides(self.overrides)


@dataclass
class Sweep:
    """Trials, and the folder that remembers them."""

    folder: Path
    trials: list[Trial]
    search: Search | None = None
    composed: dict[str, Any] = field(default_factory=dict)
    """Settings of the first trial, or of a search's sample, as the sweep began; see `experiment`.
    Empty in a sweep of an earlier version."""

    @property
    def name(self) -> str:
        """Its folder's name, which is also the name of the parent run in MLflow."""
        return self.folder.name

    @property
    def identity(self) -> list[str]:
        """What makes it this sweep and no other. A search may grow, and move its study."""
        if self.search:
            return [self.search.digest]
        return [trial.digest for trial in self.trials]

    @classmethod
    def from_overrides(cls, overrides: Sequence[str], name: str | None = None) -> Sweep:
        """The grid that these overrides describe, with the states of an earlier start.

        Nothing is written.

        Args:
            overrides: In Hydra's sweep grammar.
            name: The sweep's name. Default: a digest of its trials.

        Raises:
            ConfigError: For the first trial whose settings are wrong.
            LaunchError: If several trials would share one run folder, or the sweep's folder holds
                another sweep.
        """
        expanded = trials_of(hide_secrets(overrides))
        configs = [load_config(trial) for trial in expanded]
        digests = [config_digest(config) for config in configs]
        title = title_of(name, "sweep", digests)
        trials = [
            Trial(number, [*trial, f"tracking.group={title}"], digest, str(run_folder(config)))
            for number, (trial, digest, config) in enumerate(
                zip(expanded, digests, configs, strict=True)
            )
        ]
        owners: dict[str, int] = {}
        for trial in trials:
            if (owner := owners.setdefault(trial.run, trial.number)) != trial.number:
                raise LaunchError(
                    "two trials would share one run folder",
                    where=trial.run,
                    got=f"trials {owner} and {trial.number}",
                    remedy="give no run.name in a sweep (--name names the sweep), and no value "
                    "twice",
                )
        sweep = cls(configs[0].run.root / "sweeps" / title, trials, None, experiment(configs[0]))
        sweep.remember()
        return sweep

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Read a sweep from its folder.

        Raises:
            LaunchError: If there is no sweep, or its manifest is damaged.
        """
        recall(folder)
        try:
            values = json.loads((folder / MANIFEST).read_bytes())
            search = values.get("search")
            trials = [_TRIAL.validate_python(_from_manifest(trial)) for trial in values["trials"]]
            found = _SEARCH.validate_python(_from_manifest(search)) if search else None
            sweep = cls(folder, trials, found, dict(values.get("composed", {})))
        except _DAMAGE as error:
            raise LaunchError(
                "this is not a sweep, or its manifest is damaged",
                where=folder / MANIFEST,
                got=" ".join(str(error).split())[:200],
                remedy="name a folder below <run.root>/sweeps, or that of a run that has begun; if "
                "the manifest is damaged, delete it and repeat the command that began the sweep",
            ) from error
        sweep.recall()
        return sweep

    def config(self, trial: Trial) -> Config:
        """The settings of a trial; while nothing was chosen for it, those of the sample."""
        if trial.overrides:
            return load_config(trial.overrides)
        assert self.search is not None  # a grid's trials have their overrides from the beginning
        return load_config(self.overrides(trial, self.search.sample))

    def configs(self) -> dict[str, list[Config]]:
        """The settings of each trial, by a name for error messages.

        The trials of a search have none yet: these are the corners of its space, each with two
        points of which one has to be valid, see `Space.corners`.
        """
        if self.search is None:
            return {f"trial {trial.number}": [self.config(trial)] for trial in self.trials}
        corners: dict[str, list[Config]] = {}
        for number, points in enumerate(self.search.space.corners()):
            found = corners.setdefault(f"corner {number} of the space", [])
            for point in points:
                with suppress(ConfigError):  # `plan_search` has refused a corner without any
                    found.append(load_config(self.overrides(self.trials[0], point)))
        return corners

    def refuse_changed_presets(self, trial: Trial, config: Config) -> None:
        """Refuse a trial that starts with other presets than the sweep began with.

        Args:
            trial: The trial.
            config: What its overrides make with the presets of now.

        Raises:
            LaunchError: Names the settings. The trial would not be comparable with those before.
        """
        is_known = trial.digest in (config_digest(config), former_digest(config))
        if self.search is None and is_known:
            return
        first = self.trials[0]
        words = self.overrides(first, self.search.sample) if self.search else first.overrides
        now = experiment(load_config(words))
        changes = [
            f"{key}: {value} -> {now.get(key)}"
            for key, value in self.composed.items()
            if now.get(key) != value
        ]
        if changes or not is_known:
            raise LaunchError(
                "a preset has changed since the sweep began",
                where=f"trial {trial.number} of {self.folder}",
                got="; ".join(changes) or f"settings of another digest than {trial.digest}",
                remedy="bring the preset back, or begin another sweep with --name; the runs of "
                "trials that have the same settings are found again",
            )

    def overrides(self, trial: Trial, values: SearchPoint) -> list[str]:
        """The overrides of a search's trial for which `values` were chosen."""
        assert self.search is not None
        place = [f"run.name={Path(trial.run).name}", f"tracking.group={self.name}"]
        return [*self.search.space.overrides(values), *place]

    def settings(self, trial: Trial) -> str:
        """The overrides in which a trial differs from the others, as one line."""
        if self.search is not None:
            return " ".join(f"{key}={value}" for key, value in trial.values.items())
        common = set.intersection(*(set(other.overrides) for other in self.trials))
        return " ".join(override for override in trial.overrides if override not in common)

    def write(self) -> None:
        """Write the manifest, whole or not at all."""
        search = _to_manifest(self.search) if self.search else None
        trials = [_to_manifest(trial) for trial in self.trials]
        content = {"name": self.name, "search": search, "composed": self.composed}
        self._put(MANIFEST, content | {"trials": trials})

    def record(self, trial: Trial) -> None:
        """Write down what was chosen for a trial, and where it was pruned."""
        kept = {key: value for key, value in asdict(trial).items() if key in _RECORDED}
        self._put(self._record(trial).name, kept)

    def recall(self) -> None:
        """Read what the trials of a search have written down; see `record`."""
        for trial in self.trials if self.search else ():
            path = self._record(trial)
            if path.exists():
                try:
                    kept = json.loads(path.read_bytes())
                    found = _TRIAL.validate_python(asdict(trial) | kept)
                except _DAMAGE as error:
                    raise LaunchError(
                        "the record of a trial is damaged",
                        where=path,
                        got=" ".join(str(error).split())[:200],
                        remedy="bring it back from a copy; or delete it: the trial chooses anew",
                    ) from error
                for key in _RECORDED:
                    setattr(trial, key, getattr(found, key))
                # Not recorded, so that those of the latest command hold, such as its cluster.*.
                trial.overrides = self.overrides(trial, trial.values)

    def jobs(self, *trials: Trial) -> list[str]:
        """The jobs of these trials, or of all; those that went on after others are noted."""
        asked, logs = trials or self.trials, self.folder / "jobs"
        for trial in asked:
            if trial.job and trial.job != (newest := succession.newest(logs, trial.job)):
                trial.job = newest
                trial.link_log(succession.log_of(logs, newest))
        return [trial.job for trial in asked if trial.job]

    def refresh(self, *trials: Trial, states: Mapping[str, JobState] | None = None) -> None:
        """Find out where trials stand.

        Args:
            trials: These; without any, all.
            states: What Slurm says of `jobs`, if it has been asked.
        """
        self.recall()
        asked = trials or self.trials
        if states is None:
            states = squeue.job_states(self.jobs(*asked))
        recorded = summaries(trial.folder.path for trial in asked)
        for trial in asked:
            trial.refresh(
                recorded.get(trial.folder.path),
                states.get(trial.job or ""),
                is_locked=is_locked(self._lock_file(trial)),
                must_measure=self.search is not None,
            )

    def lock(self, trial: Trial) -> int | None:
        """Lock a trial for a process of this machine.

        Returns:
            The descriptor to hand to that process; None if another process runs the trial.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._lock_file(trial)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
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
            write_text(self.folder / _CONTROLLER, _THIS_PROCESS)
            yield

    def other_controller(self) -> str | None:
        """The process that controls the sweep since this one began to, where locks let it."""
        try:
            name = (self.folder / _CONTROLLER).read_text(encoding="utf-8")
        except OSError:  # it is just being replaced, or the file system is away for a moment
            return None
        return None if name == _THIS_PROCESS else name

    def _lock_file(self, trial: Trial) -> Path:
        return self.folder / f"trial-{trial.number:03d}.lock"

    def _record(self, trial: Trial) -> Path:
        return self.folder / f"trial-{trial.number:03d}.json"

    def remember(self) -> None:
        """Take over the states in the manifest, if there is one.

        Raises:
            LaunchError: If it is the manifest of another sweep.
        """
        if not (self.folder / MANIFEST).exists():
            return
        before = Sweep.read(self.folder)
        goes_on = before.identity == self.identity
        if not goes_on and not self.search and not before.search:  # a former version wrote it
            former = [former_digest(self.config(trial)) for trial in self.trials]
            goes_on = before.identity == former
        if not goes_on or len(before.trials) > len(self.trials):
            raise LaunchError(
                "the folder holds another sweep",
                where=self.folder,
                got=f"{_summary(self)}; the folder has {_summary(before)}",
                remedy="give another --name, or the same settings to go on (a search may get "
                "more trials: --trials is how many there are in all)",
            )
        self.composed = before.composed or self.composed
        # Not strict, because a search may have more trials now.
        for trial, old in zip(self.trials, before.trials, strict=False):
            trial.state, trial.job = old.state, old.job
        self.recall()

    def _put(self, name: str, content: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1) + "\n"
        if name == MANIFEST:
            keep_secrets(self.folder, text)
        write_text(self.folder / name, text)


_SEARCH, _TRIAL = TypeAdapter(Search), TypeAdapter(Trial)
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _to_manifest(part: Search | Trial) -> dict[str, Any]:
    """A part of the manifest. Overrides were called words when its keys were chosen."""
    return {"words" if key == "overrides" else key: value for key, value in asdict(part).items()}


def _from_manifest(values: dict[str, Any]) -> dict[str, Any]:
    return {"overrides" if key == "words" else key: value for key, value in values.items()}


def _summary(sweep: Sweep) -> str:
    if sweep.search is None:
        return f"{len(sweep.trials)} trials of a grid"
    return f"a search of {len(sweep.trials)} trials: {' '.join(sweep.search.overrides)}"


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
