"""A job's failure in the run's folder and on its MLflow run."""

from __future__ import annotations

import logging

from launch.failure import Failure
from segresmamba.config import Config, run_folder
from segresmamba.errors import UserError

REPORT = "failure.txt"
TAG = "failure"
logger = logging.getLogger(__name__)


def report_failure(config: Config, failure: Failure) -> None:
    """Write the first failing rank's traceback to failure.txt and put it on the MLflow run.

    A run that never began has no journal, and nothing in MLflow. A tracker's trouble is logged: the
    failure itself must still be shown.
    """
    from segresmamba.tracking import JOURNAL_NAME, open_tracker

    folder = run_folder(config)
    try:
        (folder / REPORT).write_text(f"rank {failure.rank}\n{failure.text}\n", encoding="utf-8")
        if not (folder / JOURNAL_NAME).exists():
            return
        tracker = open_tracker(folder, config.tracking, root=config.run.root, run_name=folder.name)
    except (OSError, UserError) as error:
        logger.warning("the failure is not on the MLflow run: %s", error)
        return
    tracker.tags({TAG: f"rank {failure.rank}: {failure.text.splitlines()[-1]}"})
    tracker.artifact(folder / REPORT)
    tracker.close("failed")
