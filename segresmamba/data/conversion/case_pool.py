"""Some work on many cases, in processes; a refused case does not end the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from segresmamba.data.conversion.plan import ConversionPlan
from segresmamba.data.formats.source import SourceCase
from segresmamba.errors import DataError
from segresmamba.storage import processes

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[ConversionPlan, SourceCase], Result]
"""A function of a module: other processes find it by name."""


def outcomes(
    work: Work[Result], plan: ConversionPlan, cases: Sequence[SourceCase], workers: int
) -> Iterator[tuple[str, Result | DataError]]:
    """The id of each case and its result or refusal, as soon as it is there.

    Raises:
        DataError: If a process was killed.
    """
    killed = DataError(
        "a converter process was killed",
        where="workers",
        got=workers,
        remedy="most likely memory ran out: run again with fewer workers; finished cases are not "
        "redone",
    )
    calls = {case.case_id: partial(_attempt, work, plan, case) for case in cases}
    return processes.outcomes(calls, workers, killed)


def _attempt(work: Work[Result], plan: ConversionPlan, case: SourceCase) -> Result | DataError:
    """Work on a case. A refusal is returned, so that it does not end the other cases."""
    where = f"case {case.case_id}: {case.images[0]}"
    try:
        return work(plan, case)
    except DataError as error:
        return error
    except MemoryError as error:
        return DataError(
            "a case does not fit into memory",
            where=where,
            got=str(error) or "no memory left",
            remedy="run again with fewer workers or on a machine with more memory, or remove the "
            "case",
        )
    except Exception as error:  # libraries raise errors of any type for damaged files
        logger.exception("case %s cannot be converted", case.case_id)
        return DataError(
            "a case cannot be converted",
            where=where,
            got=f"{type(error).__name__}: {error}".splitlines()[0][:200],
            remedy="export its files again, or remove the case; if the files are sound, report "
            "the traceback in the log",
        )
