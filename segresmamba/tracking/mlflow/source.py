"""Runs read back from MLflow, where their folders are out of reach.

What was sent by `mlflow_records` comes back as `history` reads it from the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from segresmamba.tracking.energy.ledger import LEDGER_NAME
from segresmamba.tracking.history import History, energy_of, power_of
from segresmamba.tracking.mapping import MetricPoint
from segresmamba.tracking.mlflow.client import reading_client
from segresmamba.tracking.mlflow.errors import error_name, first_line
from segresmamba.tracking.mlflow.records import CHANGED, LONG_PARAM, RUN_STATUS
from segresmamba.tracking.mlflow.runs import JOURNAL_TAG
from segresmamba.tracking.mlflow.state import UploadState
from segresmamba.tracking.protocol import TrackingError

T = TypeVar("T")

PAGE = 200
# Sampled every few seconds on every node; long curves that no report shows.
_SAMPLED = "system/"
_SHOWN = {"results.json", "overlays"}
_FETCHED = {*_SHOWN, LEDGER_NAME, "params"}
_STATUS = {theirs: ours for ours, theirs in RUN_STATUS.items()}


class MlflowSource:
    """The runs of an MLflow.

    Args:
        uri: Its tracking URI.

    Raises:
        TrackingError: If there is no such database file.
    """

    def __init__(self, uri: str) -> None:
        self._state = UploadState(uri=uri, experiment="", artifacts="")
        file = self._state.sqlite_file
        if file is not None and not file.is_file():
            # Opened, it would be made.
            raise TrackingError(
                "there is no MLflow database",
                where=file,
                got="no such file",
                remedy="name run folders, or give the tracking URI of the experiment with --uri",
            )
        self._client: Any = self._ask(lambda: reading_client(self._state))

    @property
    def shown_uri(self) -> str:
        """The tracking URI without a password."""
        return self._state.shown_uri

    def experiments(self) -> list[str]:
        """Names of the experiments that are not deleted.

        Raises:
            TrackingError: If MLflow does not answer.
        """
        return [
            str(found.name) for found in self._ask(lambda: _all(self._client.search_experiments))
        ]

    def histories(self, experiment: str, downloads: Path) -> list[History]:
        """All runs of an experiment that this project recorded, the oldest first.

        Args:
            experiment: Its name; it exists.
            downloads: Folder to put results and pictures into, one folder for each run.

        Raises:
            TrackingError: If MLflow does not answer.
        """
        return self._ask(lambda: self._histories(experiment, downloads))

    def _histories(self, experiment: str, downloads: Path) -> list[History]:
        experiment_id = self._client.get_experiment_by_name(experiment).experiment_id
        runs = _all(self._client.search_runs, [experiment_id], order_by=["start_time ASC"])
        return [self._history(run, downloads) for run in runs if JOURNAL_TAG in run.data.tags]

    def _history(self, run: Any, downloads: Path) -> History:
        run_id = run.info.run_id
        curves = {
            key: [
                MetricPoint(key, point.value, point.timestamp, point.step)
                for point in self._client.get_metric_history(run_id, key)
            ]
            for key in run.data.metrics
            if not key.startswith(_SAMPLED)
        }
        for curve in curves.values():
            curve.sort(key=lambda point: (point.step, point.timestamp))
        tags = {key: text for key, text in run.data.tags.items() if not key.startswith("mlflow")}
        folder = self._download(run_id, downloads / run_id)
        return History(
            id=run.data.tags[JOURNAL_TAG],
            name=run.info.run_name,
            where=f"{self.shown_uri}, run {run_id}",
            status=_STATUS.get(run.info.status, run.info.status.lower()),
            settings=_settings(run.data.params, tags, folder),
            tags=tags,
            curves=curves,
            energy=energy_of(folder, curves),
            power=power_of(folder, tags),
            files=_files(folder),
        )

    def _download(self, run_id: str, folder: Path) -> Path:
        """Fetch what a report looks at; not a model or the list of packages."""
        folder.mkdir(parents=True)
        present = {item.path for item in self._client.list_artifacts(run_id)}
        for path in sorted(present & _FETCHED):
            self._client.download_artifacts(run_id, path, str(folder))
        return folder

    def _ask(self, question: Callable[[], T]) -> T:
        """An answer of MLflow, or what keeps it from answering as an error of the user."""
        try:
            return question()
        except TrackingError:
            raise
        except Exception as error:  # it passes on what its HTTP client and database raise
            raise TrackingError(
                "MLflow does not answer",
                where=self.shown_uri,
                got=" ".join((error_name(error), first_line(error))).strip(),
                remedy="start it or correct --uri; or name run folders, which need no MLflow",
            ) from error


def _settings(params: Mapping[str, str], tags: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The settings that the run last had: a resume may have changed some, some are files."""
    changed = {
        key.removeprefix(CHANGED): text for key, text in tags.items() if key.startswith(CHANGED)
    }
    settings = {**params, **changed}
    for key, text in settings.items():
        if text == LONG_PARAM.format(key):
            settings[key] = (folder / text).read_text()
    return settings


def _files(folder: Path) -> dict[str, Path]:
    """Results and pictures by their path among the artifacts."""
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    return {path.as_posix(): file for path, file in files.items() if path.parts[0] in _SHOWN}


def _all(search: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """Every page of a search."""
    found: list[Any] = []
    token = None
    while True:
        page = search(*arguments, max_results=PAGE, page_token=token, **options)
        found += page
        token = page.token
        if not token:
            return found
