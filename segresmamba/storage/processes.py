"""Many calls in several processes, with the result of each as soon as it is there."""

from __future__ import annotations

import multiprocessing
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
        UserError: `killed`.
    """
    if workers == 1:
        yield from ((name, call()) for name, call in calls.items())
        return
    # Forking a process with threads can deadlock, and a forked one cannot use CUDA.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(len(calls), 1)), mp_context=context) as pool:
        futures = {pool.submit(call): name for name, call in calls.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise killed from error
        finally:
            pool.shutdown(cancel_futures=True)
