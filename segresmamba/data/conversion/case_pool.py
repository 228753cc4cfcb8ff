"""Some work on many cases, in processes; a refused case does not end the others."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from segresmamba.data.conversion.plan import ConversionPlan
from segresmamba.data.formats.source import SourceCase
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Work = Callable[[ConversionPlan, SourceCase], Result]
"""A function of a module: other processes find it by name."""


def outcomes(
    work: Work[Result], plan: ConversionPlan, cases: Sequence[SourceCase], workers: int
) -> Iterator[tuple[str, Result | DataError]]:
    """Yield the id of each case and its result or refusal, as soon as it is there.

    Raises:
        DataError: If a process was killed.
    """
    if workers == 1:
        yield from ((case.case_id, _attempt(work, plan, case)) for case in cases)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads can deadlock
    with ProcessPoolExecutor(min(workers, max(len(cases), 1)), mp_context=context) as pool:
        futures = {pool.submit(_attempt, work, plan, case): case.case_id for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a converter process was killed",
                where="workers",
                got=workers,
                remedy="most likely memory ran out: run again with fewer workers; finished cases "
                "are not redone",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


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
