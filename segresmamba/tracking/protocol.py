"""The interface between training and tracking: a few calls that never fail and lose nothing.

None of them waits for a server, except `close`, which waits for a short time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from segresmamba.errors import UserError

Status = Literal["finished", "failed", "preempted"]


class TrackingError(UserError):
    """A journal or a tracking server that cannot be used as it is."""


class JournalHeldError(TrackingError):
    """Another process writes the journal: no failure of the run, which goes on there."""


def newer_error(what: str, where: Path, schema: int, known: int) -> TrackingError:
    """The error for a file that a newer version wrote, in a schema that this one does not know."""
    return TrackingError(
        f"{what} was written by a newer version of segresmamba",
        where=where,
        got=f"schema {schema}",
        remedy=f"upgrade segresmamba: this version reads up to schema {known}",
    )


class Tracker:
    """Records what a run is and does. A call does nothing unless a subclass overrides it."""

    def ui_hint(self) -> str:
        """The command or the URL that shows the run."""
        return ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Record the settings of the run, nested as they are in its configuration."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record facts about the run that are not settings, such as the scan backend in use."""

    def metrics(
        self, values: Mapping[str, float], *, step: int, epoch: float | None = None
    ) -> None:
        """Record measurements.

        A resumed run trains the steps after its last checkpoint again. The journal then has two
        values of a key at a step; MLflow gets the first, unless a new `attempt` has begun.
        """

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder of the run; MLflow shows it in `folder` of the artifacts."""

    def dataset(self, name: str, *, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Record what the run is trained on, with a digest of its content."""

    def model(self, folder: Path, *, step: int, loader: str) -> None:
        """Record the run's model.

        Args:
            folder: What the model consists of; it must not change any more.
            step: The step that the weights are of.
            loader: Name of the module whose `_load_pyfunc(folder)` loads the model.
        """

    def goes_back(self, step: int) -> bool:
        """Find out what the journal has about a run that goes on from the checkpoint of `step`.

        Call it when the settings and the dataset are recorded. Steps that the journal lacks are
        said, in the log and in a tag.

        Returns:
            Whether values of later steps belong to other settings, or to a run that had finished.
        """
        return False

    def attempt(self, step: int) -> None:
        """Record that earlier values of steps after this one no longer belong to the run."""

    def flush(self) -> None:
        """Write everything recorded so far to disk. Call it with each checkpoint."""

    def close(self, status: Status) -> None:
        """Record how the run ended, and wait a short time until MLflow has everything."""


class NullTracker(Tracker):
    """Records nothing: the tracker of every rank but the first."""
