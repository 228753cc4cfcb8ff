"""Cases of the store that turn out to be damaged while a run reads them.

Training replaces their crops (`data.stream.loader`), and validation leaves them out. Here the ranks
tell each other which cases these are, and end the run together if they become too many. A restart
counts anew, since the store may have been repaired.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from segresmamba.data.stream.loader import too_many_damaged
from segresmamba.engine.distributed import gather
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task
from segresmamba.tracking import Tracker

logger = logging.getLogger(__name__)

TAG = "bad_cases"


class BadCases:
    """The damaged cases that the ranks have met since the job started.

    Args:
        task: What is trained.
        ranks: This process.
        tracker: Gets the tag `bad_cases` with the number of cases and their names.
    """

    def __init__(self, task: Task, ranks: Ranks, tracker: Tracker) -> None:
        self._where = task.dataset.where
        self._allowed = task.config.data.bad_cases_allowed(len(task.dataset))
        self._ranks, self._tracker = ranks, tracker
        self._found: dict[str, str] = {}
        self._announced: set[str] = set()

    def add(self, found: Mapping[str, str]) -> None:
        """Note damaged cases that this rank has met, each with its fault."""
        self._found |= found

    def agree(self) -> None:
        """Tell all ranks, the log and the tracker about new ones (collective).

        Raises:
            DataError: On every rank, if there are more than `data.max_bad_cases` allows.
        """
        for other in gather(self._found, self._ranks):
            self._found |= other
        new = sorted(self._found.keys() - self._announced)
        if not new:
            return
        self._announced |= set(new)
        if self._ranks.is_main:
            for case_id in new:
                logger.warning(
                    "case %s is damaged and set aside, %d of at most %d: %s",
                    case_id,
                    len(self._found),
                    self._allowed,
                    self._found[case_id],
                )
            self._tracker.tags({TAG: f"{len(self._found)}: {', '.join(sorted(self._found))}"})
        if len(self._found) > self._allowed:
            raise too_many_damaged(self._where, self._found, self._allowed)
