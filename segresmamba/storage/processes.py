"""Many calls in several processes, with the result of each as soon as it is there."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from segresmamba.errors import UserError

Result = TypeVar("Result")


def outcomes(
    calls: Mapping[str, Callable[[], Result]], workers: int, killed: UserError
) -> Iterator[tuple[str, Result]]:
    """Yield the name of each call and its result, as soon as it is there.

    Args:
        calls: They are pickled, so their functions are those of a module.
        workers: The most processes; with 1, this process makes the calls itself.
        killed: What is raised if a process is killed.

    Raises:
        UserError: `killed`; or another one if no process could start.
    """
    if workers == 1:
        yield from ((name, call()) for name, call in calls.items())
        return
    # Forking a process with threads can deadlock, and a forked one cannot use CUDA.
    context = multiprocessing.get_context("spawn")
    has_started = context.Event()
    with ProcessPoolExecutor(
        min(workers, max(len(calls), 1)), mp_context=context, initializer=has_started.set
    ) as pool:
        futures = {pool.submit(call): name for name, call in calls.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            if has_started.is_set():
                raise killed from error
            raise UserError(
                "the processes that share the work cannot start",
                where=sys.argv[0] or "this program",
                got="each of them imports this file again, and ends there: see above",
                remedy='put what it does below `if __name__ == "__main__":`, or give workers=1',
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
