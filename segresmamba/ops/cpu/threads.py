"""Plain threads for kernels that release the GIL.

Each of numba's own threading layers breaks something that a trainer does: workqueue aborts when two
Python threads call it, GNU OpenMP aborts in a forked child of a process that used it. Python
threads do neither. Every call asks torch how many threads to use, so a rank or a DataLoader worker
that is limited to one thread runs its kernels in the calling thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="segresmamba-ops")


# A forked child has none of its parent's threads, so it must start its own pool.
os.register_at_fork(after_in_child=_pool.cache_clear)


def shares(items: int) -> list[tuple[int, int]]:
    """Cut range(items) into contiguous parts (start, stop), one for each thread that has work."""
    threads = max(1, min(torch.get_num_threads(), items))
    return [(items * i // threads, items * (i + 1) // threads) for i in range(threads)]


def run(work: Callable[[int, int, int], None], parts: list[tuple[int, int]]) -> None:
    """Call work(number, start, stop) for all parts at once, the last one in this thread."""
    *others, last = list(enumerate(parts))
    futures = [_pool(len(others)).submit(work, number, *part) for number, part in others]
    work(last[0], *last[1])
    for future in futures:
        future.result()
