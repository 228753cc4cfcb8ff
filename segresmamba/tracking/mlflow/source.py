"""Reads runs back from MLflow, for reports on a machine that does not have their folders.

What `records` sent comes back as the `History` that `read_history` reads from the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.history import History, energy_of, power_of
from segresmamba.tracking.mapping import MetricPoint
from segresmamba.tracking.mlflow.client import error_name, first_line, reading_client
from segresmamba.tracking.mlflow.records import CHANGED, LONG_PARAM, RUN_STATUS
from segresmamba.tracking.mlflow.runs import JOURNAL_TAG, SUPERSEDED_TAG
from segresmamba.tracking.mlflow.state import UploadState
from segresmamba.tracking.protocol import TrackingError

PAGE = 200
# Samples of every node every 10 s: long curves that no report shows.
_SAMPLED = "system/"
# MLflow's names of a status to those of a journal.
_STATUS = {theirs: ours for ours, theirs in RUN_STATUS.items()}


class MlflowSource:
    """Reads the runs of an MLflow server or database.

    Args:
        uri: Its tracking URI.
        root: Folder of all runs, which may have the login of a server.

    Raises:
        TrackingError: If there is no such database file.
    """

    def __init__(self, uri: str, root: Path | None = None) -> None:
        self._state = UploadState(uri=uri, experiment="", artifacts="")
        file = self._state.sqlite_file
        if file is not None and not file.is_file():
            # MLflow would create the file.
            raise TrackingError(
                "there is no MLflow database",
                where=file,
                got="no such file",
                remedy="name run folders, or give the tracking URI of the experiment with --uri",
            )
        with self._answering():
            self._client: Any = reading_client(self._state, root)

    @property
    def shown_uri(self) -> str:
        """The tracking URI without a password."""
        return self._state.shown_uri

    def experiments(self) -> list[str]:
        """Names of the experiments, without deleted ones.

        Raises:
            TrackingError: If MLflow does not answer.
        """
        with self._answering():
            return [str(found.name) for found in _all(self._client.search_experiments)]

    def histories(self, experiment: str, downloads: Path) -> list[History]:
        """All runs of an experiment that this project recorded, the oldest first.

        Earlier attempts of a run are left out.

        Args:
            experiment: Its name; it exists.
            downloads: Folder to put results and pictures into, one folder for each run.

        Raises:
            TrackingError: If MLflow does not answer.
        """
        with self._answering():
            experiment_id = self._client.get_experiment_by_name(experiment).experiment_id
            runs = _all(self._client.search_runs, [experiment_id], order_by=["start_time ASC"])
            return [
                self._history(run, downloads / run.info.run_id)
                for run in runs
                if JOURNAL_TAG in run.data.tags and SUPERSEDED_TAG not in run.data.tags
            ]

    def _history(self, run: Any, folder: Path) -> History:
        """A run's history; what a report shows of its artifacts is downloaded to `folder`."""
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
        layout = RunFolder(folder)  # artifacts have the paths that they had in the run folder
        shown = {layout.results.name, layout.overlays.name}
        wanted = {*shown, layout.emissions.name, PurePosixPath(LONG_PARAM).parts[0]}
        folder.mkdir(parents=True)
        present = {item.path for item in self._client.list_artifacts(run_id)}
        for path in sorted(present & wanted):
            self._client.download_artifacts(run_id, path, str(folder))
        files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
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
            files={path.as_posix(): file for path, file in files.items() if path.parts[0] in shown},
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn whatever keeps MLflow from answering into an error of the user."""
        try:
            yield
        except TrackingError:
            raise
        except Exception as error:  # MLflow passes on what its HTTP client and database raise
            raise TrackingError(
                "MLflow does not answer",
                where=self.shown_uri,
                got=" ".join((error_name(error), first_line(error))).strip(),
                remedy="start it or correct --uri; or name run folders, which need no MLflow",
            ) from error


def _settings(params: Mapping[str, str], tags: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The settings that the run had last.

    A tag has the new value of a setting that a resume changed. A file below `folder` has a value
    that is too long for MLflow.
    """
    changed = {
        key.removeprefix(CHANGED): text for key, text in tags.items() if key.startswith(CHANGED)
    }
    settings = {**params, **changed}
    for key, text in settings.items():
        if text == LONG_PARAM.format(key):
            settings[key] = (folder / text).read_text()
    return settings


def _all(search: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """The results on all pages of a search."""
    found: list[Any] = []
    token = None
    while True:
        page = search(*arguments, max_results=PAGE, page_token=token, **options)
        found += page
        token = page.token
        if not token:
            return found
