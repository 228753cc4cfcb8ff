"""How a job ended, where the run itself could not say so: in its folder and on its MLflow run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from launch.failures import Failure
from segresmamba.config import Config, run_folder
from segresmamba.errors import UserError

if TYPE_CHECKING:
    from segresmamba.tracking import Status

REPORT = "failure.txt"
TAG = "failure"
logger = logging.getLogger(__name__)


def report_failure(config: Config, failure: Failure) -> None:
    """Write the first failing rank's traceback to failure.txt and put it on the MLflow run."""
    folder = run_folder(config)
    try:
        (folder / REPORT).write_text(f"rank {failure.rank}\n{failure.text}\n", encoding="utf-8")
    except OSError as error:
        logger.warning("the failure is not on the MLflow run, nor in its folder: %s", error)
        return
    last = f"rank {failure.rank}: {failure.text.splitlines()[-1]}"
    tell_mlflow(config, {TAG: last}, "failed", folder / REPORT)


def tell_mlflow(
    config: Config, tags: dict[str, str], status: Status, artifact: Path | None = None
) -> None:
    """Put tags, and perhaps a file, on the MLflow run of a job whose ranks have ended.

    A run that never began has no journal, and nothing in MLflow. A tracker's trouble is logged:
    what is to be told must still be shown.
    """
    from segresmamba.storage.run_folder import RunFolder
    from segresmamba.tracking import open_tracker

    folder = run_folder(config)
    if not RunFolder(folder).journal.exists():
        return
    try:
        tracker = open_tracker(folder, config.tracking, root=config.run.root, run_name=folder.name)
    except (OSError, UserError) as error:
        logger.warning("MLflow does not hear how the run ended: %s", error)
        return
    tracker.tags(tags)
    if artifact is not None:
        tracker.artifact(artifact)
    tracker.close(status)
