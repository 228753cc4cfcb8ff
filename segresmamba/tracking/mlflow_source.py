"""Runs read back from MLflow, where their folders are out of reach.

It takes the client that `mlflow_sink` makes, which alone imports the library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from segresmamba.tracking.history import History, energy_of
from segresmamba.tracking.ledger import power_line
from segresmamba.tracking.mapping import Point
from segresmamba.tracking.mlflow_sink import JOURNAL_TAG, RUN_STATUS, reading_client
from segresmamba.tracking.protocol import TrackingError
from segresmamba.tracking.refusals import error_name, first_line
from segresmamba.tracking.upload_state import UploadState

T = TypeVar("T")

PAGE = 200
# Sampled every few seconds on every node; long curves that no report shows.
_SAMPLED = "system/"
_FACTS = "energy."
_LOOKED_AT = {"results.json", "overlays"}
_STATUS = {theirs: ours for ours, theirs in RUN_STATUS.items()}
# MLflow's own retries would keep the user waiting for minutes before the error.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


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
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
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
                Point(key, point.value, point.timestamp, point.step)
                for point in self._client.get_metric_history(run_id, key)
            ]
            for key in run.data.metrics
            if not key.startswith(_SAMPLED)
        }
        for curve in curves.values():
            curve.sort(key=lambda point: (point.step, point.timestamp))
        return History(
            id=run.data.tags[JOURNAL_TAG],
            name=run.info.run_name,
            where=f"{self.shown_uri}, run {run_id}",
            status=_STATUS.get(run.info.status, run.info.status.lower()),
            settings=run.data.params,
            tags={key: text for key, text in run.data.tags.items() if not key.startswith("mlflow")},
            curves=curves,
            energy=energy_of(curves),
            power=power_line(
                {
                    key.removeprefix(_FACTS): text
                    for key, text in run.data.tags.items()
                    if key.startswith(_FACTS)
                }
            ),
            files=self._download(run_id, downloads / run_id),
        )

    def _download(self, run_id: str, folder: Path) -> Mapping[str, Path]:
        """Results and pictures; a model or a configuration is not looked at."""
        folder.mkdir(parents=True)
        present = {item.path for item in self._client.list_artifacts(run_id)}
        for path in sorted(present & _LOOKED_AT):
            self._client.download_artifacts(run_id, path, str(folder))
        return {
            file.relative_to(folder).as_posix(): file
            for file in folder.rglob("*")
            if file.is_file()
        }

    def _ask(self, question: Callable[[], T]) -> T:
        """An answer of MLflow, or what keeps it from answering as an error of the user."""
        try:
            return question()
        except Exception as error:  # it passes on what its HTTP client and database raise
            raise TrackingError(
                "MLflow does not answer",
                where=self.shown_uri,
                got=" ".join((error_name(error), first_line(error))).strip(),
                remedy="start it or correct --uri; or name run folders, which need no MLflow",
            ) from error


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
