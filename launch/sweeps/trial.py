"""One trial of a sweep: what it is, and where it stands."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launch.report import REPORT
from launch.slurm.squeue import JobState
from launch.sweeps.search_space import SearchPoint
from segresmamba.errors import UserError

if TYPE_CHECKING:
    from segresmamba.tracking import History

METRIC = "validation/dice/mean"
FINISHED, PRUNED, FAILED, STOPPED = "finished", "pruned", "failed", "stopped"
RUNNING, QUEUED, WAITING = "running", "queued", "waiting"
OVER = {FINISHED, PRUNED}
UNDER_WAY = {RUNNING, QUEUED}
# Lines of a log that stand in for a traceback.
LOG_LINES = 20


@dataclass
class Trial:
    """One run of a sweep."""

    number: int
    words: list[str]
    """What `python -m launch train` is given; empty in a search until the trial starts."""
    digest: str
    """Of the settings that change the result, see `config_digest`."""
    run: str
    """Its run folder."""
    state: str = WAITING
    """finished, pruned, running, queued, waiting (never started), failed or stopped."""
    job: str | None = None
    """Its last job on Slurm."""
    values: SearchPoint = field(default_factory=dict)
    """What a search chose for it."""
    pruned_at: int | None = None
    """The step at which a search gave it up."""
    dice: float | None = None
    """Its last validation."""

    def history(self) -> History | None:
        """What its run has recorded; None if it has not begun, or cannot be read."""
        from segresmamba.tracking import is_run, read_history

        with suppress(UserError):
            return read_history(Path(self.run)) if is_run(Path(self.run)) else None
        return None

    @property
    def failure(self) -> str:
        """Why a trial failed: the traceback, or the end of its log if it could not leave one."""
        log = Path(self.run, "logs", f"{self.job}_0_log.out")
        for path in (Path(self.run, REPORT), log) if self.state == FAILED else ():
            if path.exists():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                return "\n".join(lines if path.name == REPORT else lines[-LOG_LINES:])
        return ""

    def refresh(
        self, job: JobState | None, *, is_locked: bool, must_measure: bool
    ) -> History | None:
        """Find out where it stands.

        Args:
            job: Its job on Slurm, if it has one.
            is_locked: Whether a process of this machine runs it.
            must_measure: Whether it fails if it finishes without `METRIC`.

        Returns:
            As `history`, from which it was found out.
        """
        history = self.history()
        recorded = history.status if history else ""
        self.dice = history.last(METRIC) if history else None
        if history and recorded == "finished":
            self.state = FINISHED if is_measured(history) or not must_measure else FAILED
        elif job and not job.ended:
            self.state = QUEUED if job.name == "PENDING" else RUNNING
        elif is_locked:
            self.state = RUNNING
        elif self.pruned_at is not None:
            self.state = PRUNED
        elif recorded == "failed" or self.state == FAILED or (job and job.has_failed):
            self.state = FAILED
        else:
            self.state = STOPPED if recorded or self.state in UNDER_WAY else WAITING
        return history


def is_measured(history: History) -> bool:
    """Whether a run has what a search compares."""
    value = history.last(METRIC)
    return value is not None and math.isfinite(value)
