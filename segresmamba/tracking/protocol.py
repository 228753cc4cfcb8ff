"""What training sees of tracking: a few calls that never fail, never wait and lose nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from segresmamba.errors import UserError

Status = Literal["finished", "failed", "preempted"]


class TrackingError(UserError):
    """A journal or a tracking server that cannot be used as it is."""


class Tracker(Protocol):
    """Records what a run is and does. Only rank 0 holds a real one."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while there is none."""

    @property
    def ui_hint(self) -> str:
        """The command or the URL that shows the run."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Record the settings of the run, nested as they are in its configuration."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record facts about the run that are not settings, such as the scan backend in use."""

    def metrics(
        self, values: Mapping[str, float], *, step: int, epoch: float | None = None
    ) -> None:
        """Record measurements.

        After a resume the steps since the last checkpoint are trained again: the journal then has
        two values of a key at a step, MLflow keeps the first.
        """

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder of the run, to be shown below `folder` among its artifacts."""

    def dataset(self, name: str, *, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Record what the run is trained on, and the digest of its content."""

    def model(self, folder: Path, *, step: int, loader: str) -> None:
        """Record the run's model: a folder, and the module whose `_load_pyfunc(folder)` loads it.

        The folder must not change any more.
        """

    def flush(self) -> None:
        """Make everything recorded so far survive a power loss. Call it with each checkpoint."""

    def close(self, status: Status) -> None:
        """Record how the run ended and bring MLflow up to date, as far as a short wait allows."""


class NullTracker:
    """Records nothing: the tracker of every rank but the first."""

    run_id: str | None = None
    ui_hint: str = ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Do nothing."""

    def metrics(
        self, values: Mapping[str, float], *, step: int, epoch: float | None = None
    ) -> None:
        """Do nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def dataset(self, name: str, *, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Do nothing."""

    def model(self, folder: Path, *, step: int, loader: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self, status: Status) -> None:
        """Do nothing."""
