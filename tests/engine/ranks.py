"""Real ranks over gloo. Importing DeepSpeed takes seconds: one process does it for all of them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import forkserver, popen_forkserver, spawn
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

import pytest

from launch.ports import free_port

T = TypeVar("T")

# The last two are what DeepSpeed and torch's optimizers import when they are first used.
SLOW_IMPORTS = [
    "tests.engine.deepspeed_alone",
    "segresmamba.engine.trainer",
    "torch._dynamo",
    "torch._inductor.compile_fx",
]
# A process has one fork server of multiprocessing. The loader's readers need it with few imports,
# so ranks forked from it would each import DeepSpeed themselves: they get a server of their own.
_server = forkserver.ForkServer()
_server.set_forkserver_preload(SLOW_IMPORTS)


class _RankPopen(popen_forkserver.Popen):
    def _launch(self, process_obj: Any) -> None:
        prepare = spawn.get_preparation_data

        def without_main(name: str) -> dict[str, Any]:
            """What runs in the child is a function of a test module, never of the main one."""
            return {key: value for key, value in prepare(name).items() if key[:9] != "init_main"}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forkserver, "connect_to_new_process", _server.connect_to_new_process)
            patch.setattr(spawn, "get_preparation_data", without_main)
            super()._launch(process_obj)  # type: ignore[misc]


class _RankProcess(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _RankPopen(process_obj)


class RankContext(ForkServerContext):
    """Forks its processes from one that has imported DeepSpeed."""

    Process = _RankProcess


class RankPool:
    """Runs a function on every rank at once; the function must talk to the other ranks."""

    def __init__(self, world_size: int) -> None:
        context = RankContext()
        port = free_port(f"pool {os.getpid()} {id(self)}")
        counter = context.Value("i", 0)
        self.world_size = world_size
        self._calls: list[Future[Any]] = []
        self._pool = ProcessPoolExecutor(
            world_size, context, initializer=_become_a_rank, initargs=(counter, world_size, port)
        )

    def run(self, function: Callable[..., T], *arguments: object) -> list[T]:
        """The results of function(*arguments), one per rank."""
        calls = [self._pool.submit(function, *arguments) for _ in range(self.world_size)]
        self._calls = calls
        for call in as_completed(calls):  # a rank that failed keeps the others waiting
            call.result()
        return [call.result() for call in calls]

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *_: object) -> None:
        if any(call.running() for call in self._calls):
            for process in multiprocessing.active_children():
                process.terminate()
        # A thread of a library may keep a process from ending, when no limit of a test counts.
        end = threading.Timer(120, lambda: [p.kill() for p in multiprocessing.active_children()])
        end.start()
        self._pool.shutdown(cancel_futures=True)
        end.cancel()


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
