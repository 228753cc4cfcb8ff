"""Two real ranks over gloo, kept for the whole test session: importing DeepSpeed takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

T = TypeVar("T")


class RankPool:
    """Runs a function on every rank at once; the function must talk to the other ranks."""

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        counter = context.Value("i", 0)
        self.world_size = world_size
        self._pool = ProcessPoolExecutor(
            world_size, context, initializer=_become_a_rank, initargs=(counter, world_size, port)
        )

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """The results of function(*arguments), one per rank."""
        futures = [self._pool.submit(function, *arguments) for _ in range(self.world_size)]
        return [future.result() for future in futures]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _become_a_rank(counter: Synchronized[int], world_size: int, port: int) -> None:
    with counter.get_lock():
        rank = counter.value
        counter.value += 1
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
