"""What a rank leaves behind when it fails, so that the error reaches the user as it was raised.

Submitit hands a traceback on as text and knows no order among ranks. A rank here writes
`<job>_<rank>_failure.json` next to its log; the earliest one is the cause, the others follow from
it: a collective whose partner is gone.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from segresmamba.errors import UserError

USER_ERROR_CODE = 2


@dataclass(frozen=True)
class Failure:
    """One rank's end."""

    rank: int
    """The global rank."""
    time_s: float
    """When, in seconds since the epoch."""
    exit_code: int
    """2 for a mistake that the user can correct, 1 for everything else."""
    text: str
    """The error's screen, or the traceback."""

    @classmethod
    def from_error(cls, error: BaseException, rank: int) -> Failure:
        """The failure of a rank that raised `error` just now."""
        if isinstance(error, UserError):
            return cls(rank, time.time(), USER_ERROR_CODE, error.screen())
        text = "".join(traceback.format_exception(error)).rstrip()
        return cls(rank, time.time(), 1, text)


def write_failure(failure: Failure, folder: Path, job_id: str) -> None:
    """Leave `failure` among the job's logs, whole or not at all."""
    path = failure_path(folder, job_id, failure.rank)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(failure)), encoding="utf-8")
    temporary.replace(path)


def first_failure(folder: Path, job_id: str) -> Failure | None:
    """The failure that came first among a job's ranks, or None if none failed."""
    records = folder.glob(f"{job_id}_*_failure.json")
    failures = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in records]
    return min(failures, key=lambda failure: failure.time_s, default=None)


def forget_failures(folder: Path, job_id: str) -> None:
    """Delete what a job's ranks wrote, before the job starts again."""
    for path in folder.glob(f"{job_id}_*_failure.json"):
        path.unlink()


def failure_path(folder: Path, job_id: str, rank: int) -> Path:
    """Where a rank's failure is written."""
    return folder / f"{job_id}_{rank}_failure.json"
