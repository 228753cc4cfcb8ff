"""Finds the runs that the user named: run folders, folders of runs, or experiments in MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from segresmamba.errors import UserError
from segresmamba.report.measures import MeasuredRun
from segresmamba.storage.json_text import parse_json
from segresmamba.tracking import (
    SUMMARY,
    History,
    MlflowSource,
    TrackingError,
    is_run,
    read_history,
    run_folders,
)

logger = logging.getLogger(__name__)

_SWEEP_FILE = "manifest.json"


class ReportError(UserError):
    """A run or experiment that cannot be reported on, or a place that cannot be written to."""


def find_runs(
    targets: Sequence[str], uri: Callable[[], str], downloads: Path, root: Path | None = None
) -> list[MeasuredRun]:
    """Read everything that is named, each run once.

    Args:
        targets: Run folders, folders that hold run folders, or names of MLflow experiments. A name
            that exists as a path is never an experiment.
        uri: Returns the tracking URI of MLflow; called only if it is needed.
        downloads: Folder for what has to be fetched from MLflow.
        root: Folder of all runs, which may have the login of MLflow's server.

    Raises:
        UserError: For a folder without runs, an unknown experiment, records that cannot be read.
    """
    histories: dict[str, History] = {}
    mlflow: MlflowSource | None = None
    for target in targets:
        folder = Path(target)
        if folder.exists():
            found = _runs_of_folder(folder)
        else:
            try:
                mlflow = mlflow or MlflowSource(uri(), root)
            except TrackingError as error:
                raise ReportError(
                    f"there is no folder {target}, and no MLflow to look for such an experiment",
                    where=error.where,
                    got=error.got,
                    remedy=error.remedy,
                ) from error
            found = _runs_of_experiment(mlflow, target, downloads)
        for history in found:
            histories.setdefault(history.id, history)
    return [MeasuredRun.from_history(history) for history in histories.values()]


def find_baseline(name: str, runs: Sequence[MeasuredRun]) -> MeasuredRun:
    """The run that the others are compared with.

    Args:
        name: Name of one of the runs, or a run folder, which does not have to be among them.
        runs: The runs of the report.

    Raises:
        UserError: If there is no such run or more than one, or if its records cannot be read.
    """
    if is_run(Path(name)):
        return MeasuredRun.from_history(read_history(Path(name)))
    named = [run for run in runs if run.history.name == name]
    if len(named) == 1:
        return named[0]
    raise ReportError(
        "no run is named like the baseline" if not named else "the baseline is more than one run",
        where="--baseline",
        got=name if not named else ", ".join(run.history.where for run in named),
        remedy=f"give a run folder, or one of {_listed([run.history.name for run in runs])}",
    )


def _runs_of_folder(folder: Path) -> list[History]:
    """The run, those in the folder, or those of a sweep or several.

    Of several, one that cannot be read is named and left out.
    """
    if is_run(folder) and not _is_sweep(folder):
        return [read_history(folder)]
    histories, errors = list[History](), list[TrackingError]()
    found = [folder] if _is_sweep(folder) else run_folders(folder)
    for path in [run for one in found for run in (_trials(one) if _is_sweep(one) else [one])]:
        try:
            histories.append(read_history(path))
        except TrackingError as error:
            errors.append(error)
    if not histories:
        raise errors[0]
    for unreadable in errors:
        logger.warning("this run is left out\n%s", unreadable.screen())
    return histories


def _is_sweep(folder: Path) -> bool:
    return (folder / _SWEEP_FILE).exists()


def _trials(sweep: Path) -> list[Path]:
    """The runs of a sweep, as far as they have begun. Its own journal has only their means."""
    try:
        trials = parse_json((sweep / _SWEEP_FILE).read_text(encoding="utf-8"))["trials"]
        named = [Path(trial["run"]).name for trial in trials]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ReportError(
            "the list of a sweep's runs cannot be read",
            where=sweep / _SWEEP_FILE,
            got=repr(error),
            remedy="bring the file back from a copy, or name the run folders",
        ) from error
    root = sweep.resolve().parent.parent  # a sweep of the runs in <root> lies in <root>/sweeps
    runs = [root / name for name in named if is_run(root / name)]
    if not runs:
        raise ReportError(
            "no run of the sweep has begun",
            where=sweep,
            got=f"{len(named)} trials",
            remedy="wait for the first, or look with `python -m launch status`",
        )
    return runs


def _runs_of_experiment(mlflow: MlflowSource, name: str, downloads: Path) -> list[History]:
    experiments = mlflow.experiments()
    if name not in experiments:
        raise ReportError(
            "there is neither a folder nor an MLflow experiment of that name",
            where=mlflow.shown_uri,
            got=name,
            remedy=f"name a run folder, or one of the experiments {_listed(experiments)}",
        )
    histories = [one for one in mlflow.histories(name, downloads) if SUMMARY not in one.tags]
    if not histories:
        raise ReportError(
            "the experiment holds no runs of segresmamba",
            where=mlflow.shown_uri,
            got=name,
            remedy=f"name another experiment: {_listed(experiments)}",
        )
    return histories


def _listed(names: Sequence[str]) -> str:
    """The names in one line, at most twenty of them."""
    unique = list(dict.fromkeys(names))
    shown = ", ".join(unique[:20])
    return (
        f"{shown} and {len(unique) - 20} more" if len(unique) > 20 else shown or "(there is none)"
    )
