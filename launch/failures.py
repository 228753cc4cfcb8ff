"""What a rank leaves behind when it fails, and how the run's folder and MLflow get to know it.

Submitit hands a traceback on as text and knows no order among ranks. A rank here writes
`<job>_<rank>_failure.json` next to its log. The earliest one is the cause. The others follow from
it, as in a collective whose partner is gone.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segresmamba.errors import OUR_CODE, PASSING_CODE, UserError, sort_error
from segresmamba.storage.atomic import write_text

# Imported where it is used: the local controller reads this module and has to start fast.
if TYPE_CHECKING:
    from segresmamba.config import Config
    from segresmamba.tracking import Status

# What a shell returns for a command that Ctrl-C has ended.
INTERRUPTED_CODE = 130
TAG = "failure"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """How one rank has failed."""

    rank: int
    """The global rank."""
    time_s: float
    """When, in seconds since the epoch."""
    exit_code: int
    """2 for a mistake that the user can correct, 75 for a passing fault, 1 for everything else."""
    text: str
    """The error's screen, or the traceback."""
    is_of_run: bool = True
    """False if the run goes on in another process, which has kept or put this one out."""

    @classmethod
    def from_error(cls, error: BaseException, rank: int) -> Failure:
        """The failure of a rank that raised `error` just now."""
        from segresmamba.tracking import JournalHeldError

        is_of_run = not isinstance(error, JournalHeldError)
        return cls(rank, time.time(), *sort_error(error), is_of_run)

    @classmethod
    def without_words(cls, rank: int, where: str, how: str) -> Failure:
        """The failure of a rank that ended just now and has written none.

        Args:
            rank: The rank.
            where: What to add to it in the text, such as " on gpu07".
            how: The end, in the words of whoever saw it: ", by signal SIGKILL", ": Killed".
        """
        code, hint = OUR_CODE, ""
        if "KILL" in how.upper():
            # The kernel ends a process so when memory runs out, and so does an administrator.
            hint = "; the kernel does so when memory runs out"
        elif how.endswith(f"exit code {PASSING_CODE}"):
            code, hint = PASSING_CODE, ", a passing fault; the end of its log says which"
        text = f"rank {rank}{where} ended without an error message{how}{hint}"
        return cls(rank, time.time(), code, text)


def in_one_line(text: str) -> str:
    """What went wrong, of the text of a failure.

    A traceback says it in its last line. The last line of an error's screen is the remedy.
    """
    *before, last = text.splitlines()
    if last.startswith("  remedy: "):
        last = next((line for line in reversed(before) if line.startswith("error: ")), last)
    return last.strip()


def failure_path(logs: Path, job_id: str, rank: int) -> Path:
    """Where a rank's failure is written."""
    return logs / f"{job_id}_{rank}_failure.json"


def write_failure(failure: Failure, logs: Path, job_id: str) -> None:
    """Write a failure to the job's logs, whole or not at all."""
    write_text(failure_path(logs, job_id, failure.rank), json.dumps(asdict(failure)))


def first_failure(logs: Path, job_id: str) -> Failure | None:
    """The failure that came first among a job's ranks, or None if none failed."""
    records = logs.glob(f"{job_id}_*_failure.json")
    failures = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in records]
    return min(failures, key=lambda failure: failure.time_s, default=None)


def forget_failures(logs: Path, job_id: str) -> None:
    """Delete what a job's ranks wrote, before the job starts again."""
    for path in logs.glob(f"{job_id}_*_failure.json"):
        path.unlink()


def report_failure(config: Config, failure: Failure) -> None:
    """Write the first failing rank's traceback to failure.txt and put it on the MLflow run.

    A start that was refused because another process trains the run is no failure of the run.
    """
    from segresmamba.storage.locks import is_locked
    from segresmamba.storage.run_folder import RunFolder

    if is_locked(RunFolder.from_config(config).journal) or not failure.is_of_run:
        return
    path = write_report(config, failure)
    if path is None:
        return
    last_line = f"rank {failure.rank}: {in_one_line(failure.text)}"
    tell_mlflow(config, {TAG: last_line}, "failed", path)


def write_report(config: Config, failure: Failure) -> Path | None:
    """Write a failure to failure.txt in the folder of its run; None if that cannot be done."""
    from segresmamba.storage.run_folder import RunFolder

    path = RunFolder.from_config(config).failure
    try:
        path.write_text(f"rank {failure.rank}\n{failure.text}\n", encoding="utf-8")
    except OSError as error:
        logger.warning("the failure is not on the MLflow run, nor in its folder: %s", error)
        return None
    return path


def tell_mlflow(
    config: Config, tags: dict[str, str], status: Status, artifact: Path | None = None
) -> None:
    """Put tags, and perhaps a file, on the MLflow run of a job whose ranks have ended.

    A run that never began has no journal, and nothing in MLflow. An error of the tracker is only
    logged, so that it does not hide what the caller has to show.
    """
    from segresmamba.storage.run_folder import RunFolder
    from segresmamba.tracking import open_tracker

    folder = RunFolder.from_config(config)
    if not folder.journal.exists():
        return
    try:
        tracker = open_tracker(
            folder.path,
            config.tracking,
            root=config.run.root,
            run_name=folder.path.name,
            begins=False,
        )
    except (OSError, UserError) as error:
        logger.warning("MLflow does not learn how the run ended: %s", error)
        return
    tracker.tags(tags)
    if artifact is not None:
        tracker.artifact(artifact)
    tracker.close(status)
