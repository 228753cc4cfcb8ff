"""One trial of a sweep: what it is, and where it stands."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from launch.run_index import RunSummary
from launch.run_state import FAILED, METRIC, WAITING, find_state, read_failure
from launch.slurm.squeue import JobState
from launch.sweeps.search_space import SearchPoint
from segresmamba.storage.run_folder import RunFolder


@dataclass
class Trial:
    """One run of a sweep."""

    number: int
    overrides: list[str]
    """What `python -m launch train` is given; empty in a search until the trial starts."""
    digest: str
    """Digest of the settings that change the result, see `config_digest`."""
    run: str
    """Its run folder."""
    state: str = WAITING
    """See `find_state`."""
    job: str | None = None
    """The id of its last job on Slurm."""
    values: SearchPoint = field(default_factory=dict)
    """What a search chose for it."""
    pruned_at: int | None = None
    """The step at which a search gave it up."""
    dice: float | None = None
    """Its last validation."""
    energy_wh: float | None = None
    """Energy of all its starts."""
    recorded_s: float | None = None
    """When it last recorded something, in seconds since the epoch."""
    reason: str = ""
    """Why its job waits, in Slurm's words."""

    @property
    def folder(self) -> RunFolder:
        """The layout of its run folder."""
        return RunFolder(Path(self.run))

    def link_log(self, log: Path) -> None:
        """Let the run's logs lead to the log of its job, which may be about to be written."""
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        link = self.folder.logs / log.name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(log.resolve(), self.folder.logs.resolve()))

    def read_failure(self) -> str:
        """Why it failed; empty if it did not."""
        return read_failure(self.folder, self.job) if self.state == FAILED else ""

    def refresh(
        self,
        recorded: RunSummary | None,
        job: JobState | None,
        *,
        is_locked: bool,
        must_measure: bool,
    ) -> None:
        """Find out its state and what it has reached; for the arguments see `find_state`."""
        self.dice = recorded.last(METRIC) if recorded else None
        self.energy_wh = recorded.energy_wh if recorded else None
        self.recorded_s = recorded.recorded_s if recorded else None
        self.reason = job.reason if job and not job.ended else ""
        self.state = find_state(
            recorded,
            job,
            is_locked=is_locked,
            before=self.state,
            is_pruned=self.pruned_at is not None,
            must_measure=must_measure,
        )
