"""Optuna's part of a search: what is tried next, and what is given up.

The trials' own records and journals are the truth, and Optuna's study follows them. What it has
missed, because a process was killed or its storage was lost, is reported to it the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from launch.sweeps.search_space import Choice, Number, SearchPoint, Space
from segresmamba.errors import LaunchError

FILE = "study.journal"
# Random draws before the sampler models what it has seen; finished trials before any is pruned.
STARTUP_TRIALS, STARTUP_PRUNING = 10, 5
# How often the sampler may propose a point that was tried before.
PATIENCE = 20
_TRIAL, _FOLDER, _SPACE = "trial", "folder", "space"


@dataclass(frozen=True)
class Standing:
    """What a trial that has begun has reached so far."""

    number: int
    values: SearchPoint
    """What was chosen for it."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """The metric of its validations, by step."""
    outcome: str = ""
    """finished, pruned, or empty while it is neither."""


class Study:
    """Optuna's view of one search.

    Args:
        name: The sweep's name.
        folder: The sweep's folder. It holds the study unless a database does.
        space: What may be tried.
        storage: URL of a database, or None for the file.

    Raises:
        LaunchError: If the storage cannot be used, or holds another search of this name.
    """

    def __init__(self, name: str, folder: Path, space: Space, storage: str | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._where = storage or str(folder / FILE)
        self._distributions = {d.key: _distribution(d) for d in space.dimensions}
        self._space = space
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_PRUNING)
        with self._reachable():
            self._study = optuna.create_study(
                study_name=name,
                storage=_open(storage, folder),
                pruner=pruner,
                direction="maximize",
                load_if_exists=True,
            )
            # The study says which search it belongs to.
            facts = {_SPACE: repr(space.dimensions)}
            if storage:
                facts[_FOLDER] = str(folder.resolve())
            for key, value in facts.items():
                found = self._study.user_attrs.get(key)
                if found is None:
                    self._study.set_user_attr(key, value)
                elif found != value:
                    raise LaunchError(
                        f"the storage has a study of this name with another {key}",
                        where=f"{self._where}, study {name}",
                        got=f"{value}, there {found}",
                        remedy="give another --name",
                    )

    def propose(self, number: int, fits: Callable[[SearchPoint], bool]) -> SearchPoint:
        """Choose a point for a trial. One process at a time may do so.

        Args:
            number: The trial's number. The same history and number give the same point.
            fits: Whether a point may be used: no other trial has it, and its settings are valid.

        Raises:
            LaunchError: If there is no such point.
        """
        with self._reachable():
            for attempt in range(PATIENCE):
                # A new seed for each attempt: a sampler of the same seed proposes the same point.
                self._study.sampler = optuna.samplers.TPESampler(
                    n_startup_trials=STARTUP_TRIALS,
                    multivariate=True,
                    # Keeps trials that run side by side from trying neighbouring points.
                    constant_liar=True,
                    seed=number * PATIENCE + attempt,
                )
                trial = self._study.ask(self._distributions)
                if fits(trial.params):
                    trial.set_user_attr(_TRIAL, number)
                    return trial.params
                self._study.tell(trial, state=TrialState.FAIL)
            # A small space is tried to its last point, however seldom the sampler meets it.
            for values in self._space.points() or []:
                if fits(values):
                    self._add(Standing(number, values))
                    return values
        raise LaunchError(
            "there is no point left that the search could try",
            where=f"trial {number}",
            got=f"{PATIENCE} that were tried before or whose settings contradict each other",
            remedy="widen the space or correct the settings, under another --name",
        )

    def catch_up(self, standings: Sequence[Standing]) -> None:
        """Report to the study what it does not know yet. One process at a time may do so.

        Args:
            standings: All trials for which a point was chosen.
        """
        with self._reachable():
            entries, known = self._entries(), {standing.number for standing in standings}
            for open_trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                # Chosen by a process that was killed before it wrote the trial's record.
                if open_trial.user_attrs.get(_TRIAL) not in known:
                    self._study.tell(open_trial.number, state=TrialState.FAIL)
            for standing in standings:
                if (entry := entries.get(standing.number)) is None:
                    self._add(standing)
                elif standing.outcome and not entry.state.is_finished():
                    self._report(entry, standing.curve)
                    if standing.outcome == "pruned":
                        self._study.tell(entry.number, state=TrialState.PRUNED)
                    else:
                        self._study.tell(entry.number, standing.curve[max(standing.curve)])

    def should_prune(self, number: int, curve: Mapping[int, float]) -> bool:
        """Whether a running trial falls behind.

        It does if its best validation is below the median of the finished trials' at its last step.
        """
        with self._reachable():
            return self._report(self._entries()[number], curve).should_prune()

    def _entries(self) -> dict[int, FrozenTrial]:
        """Optuna's trials by the numbers of this search's trials."""
        return {
            trial.user_attrs[_TRIAL]: trial
            for trial in self._study.get_trials(deepcopy=False)
            if _TRIAL in trial.user_attrs and trial.state is not TrialState.FAIL
        }

    def _report(self, entry: FrozenTrial, curve: Mapping[int, float]) -> optuna.Trial:
        trial = optuna.Trial(self._study, entry._trial_id)
        for step, value in curve.items():
            if step not in entry.intermediate_values:
                trial.report(value, step)
        return trial

    def _add(self, standing: Standing) -> None:
        states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        last = standing.curve[max(standing.curve)] if standing.curve else None
        trial = optuna.trial.create_trial(
            state=states.get(standing.outcome, TrialState.RUNNING),
            value=last if standing.outcome == "finished" else None,
            params=dict(standing.values),
            distributions=self._distributions,
            user_attrs={_TRIAL: standing.number},
            intermediate_values=dict(standing.curve),
        )
        self._study.add_trial(trial)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise LaunchError(
                "the storage of the search cannot be used",
                where=self._where,
                got=(str(error).strip() or type(error).__name__).splitlines()[0],
                remedy="see that the server is up and lets you in (PostgreSQL: a password from "
                "PGPASSWORD or ~/.pgpass, the driver from pip install 'segresmamba[postgresql]'), "
                "or leave --storage out: a file in the sweep's folder",
            ) from error


def _open(storage: str | None, folder: Path) -> BaseStorage:
    if storage is None:
        folder.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(folder / FILE)))
    # psycopg is the driver that the extra `postgresql` installs.
    scheme, _, rest = storage.partition("://")
    driver = "postgresql+psycopg" if scheme == "postgresql" else scheme
    # A trial trains for hours between two questions. It keeps no connection open meanwhile.
    return RDBStorage(f"{driver}://{rest}", engine_kwargs={"poolclass": NullPool})


def _distribution(dimension: Choice | Number) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    low, high, step = dimension.low, dimension.high, dimension.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=dimension.log, step=int(step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=step)
