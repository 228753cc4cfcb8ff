"""Where a run stands, from what its folder, its lock and Slurm say.

A trial of a sweep and a single run are judged alike. The journal comes first: a run that has
recorded its end needs no job. Only then count a job on Slurm, a process that holds the run's lock,
and what was known before.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launch.slurm import squeue
from launch.slurm.squeue import JobState
from segresmamba.errors import UserError
from segresmamba.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from segresmamba.tracking import History

METRIC = "validation/dice/mean"
FINISHED, PRUNED, FAILED, STOPPED = "finished", "pruned", "failed", "stopped"
RUNNING, QUEUED, WAITING = "running", "queued", "waiting"
# Slurm does not answer, so the run may have a job.
UNKNOWN = "unknown"
OVER = {FINISHED, PRUNED}
UNDER_WAY = {RUNNING, QUEUED, UNKNOWN}
# Enough of a log to see the end of a traceback, or Slurm's message.
LOG_LINES = 20


class Recorded(Protocol):
    """What of a run's record says where it stands: a `History` or a `RunSummary`."""

    @property
    def status(self) -> str:
        """See `History`."""

    def last(self, key: str) -> float | None:
        """The latest value of a metric."""


def read_run(folder: Path) -> History | None:
    """What a run has recorded; None if it has not begun, or cannot be read."""
    from segresmamba.tracking import is_run, read_history

    with suppress(UserError):
        return read_history(folder) if is_run(folder) else None
    return None


def find_state(
    history: Recorded | None,
    job: JobState | None,
    *,
    is_locked: bool,
    before: str = WAITING,
    is_pruned: bool = False,
    must_measure: bool = False,
) -> str:
    """Find out where a run stands.

    Args:
        history: What the run has recorded.
        job: Its job on Slurm, if it has one.
        is_locked: Whether a process of this machine runs it.
        before: The state that was known last.
        is_pruned: Whether a search gave it up.
        must_measure: Whether it fails if it finishes without `METRIC`.

    Returns:
        finished, pruned, running, queued, waiting (never started), failed, stopped or unknown.
    """
    recorded = history.status if history else ""
    if history and recorded == "finished":
        return FINISHED if is_measured(history) or not must_measure else FAILED
    if is_locked:
        return RUNNING
    if job and not job.ended:
        return {"PENDING": QUEUED, squeue.UNKNOWN: UNKNOWN}.get(job.name, RUNNING)
    if is_pruned:
        return PRUNED
    if recorded == "failed" or before == FAILED or (job and job.has_failed):
        return FAILED
    # A journal without an end, or a start without a journal: the run was killed.
    return STOPPED if recorded or before in UNDER_WAY else WAITING


def read_failure(folder: RunFolder, job_id: str | None) -> str:
    """Why a run failed: its traceback, or the end of its log if it could not leave one."""
    if folder.failure.exists():
        return folder.failure.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    log = folder.logs / f"{job_id}_0_log.out"
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])


def is_measured(history: Recorded) -> bool:
    """Whether a run has what a search compares."""
    value = history.last(METRIC)
    return value is not None and math.isfinite(value)
