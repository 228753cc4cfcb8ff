"""Stand-ins for `segresmamba.engine` that make one thing happen; run.name says which.

They run in the ranks' own processes, started by the launcher, so nothing there is patched.
"""

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from segresmamba.config import Config, run_folder
from segresmamba.errors import DataError

_stop = False


def request_stop() -> None:
    global _stop  # noqa: PLW0603
    _stop = True


def train(config: Config) -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    folder = run_folder(config)
    found: dict[str, Any] = globals()[f"_{config.run.name}"](rank, folder)
    status = found.pop("status", "finished")
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    return {"status": status, "step": 7, "folder": str(folder), "ui_hint": "http://x"}


def _place(rank: int, folder: Path) -> dict[str, Any]:
    names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
    return {name: os.environ.get(name) for name in names}


def _shielded(rank: int, folder: Path) -> dict[str, Any]:
    """Signal every process of the rank, as Slurm does; the tracker must live on."""
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    for pid in (tracker, os.getpid()):
        os.kill(pid, signal.SIGUSR2)
    time.sleep(0.2)
    ended, _ = os.waitpid(tracker, os.WNOHANG)
    return {"asked to stop": _stop, "tracker ended": bool(ended)}


def _reduces(rank: int, folder: Path) -> dict[str, Any]:
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    total = torch.tensor([10.0 + rank])
    distributed.all_reduce(total)
    distributed.destroy_process_group()
    return {"total": total.item()}


def _raises(rank: int, folder: Path) -> dict[str, Any]:
    if rank == 1:
        _wait_for_rank_0(folder)
        raise RuntimeError("the sky is falling")
    return _hangs(rank, folder)


def _stale(rank: int, folder: Path) -> dict[str, Any]:
    if rank == 1:
        _wait_for_rank_0(folder)
        raise OSError(errno.ESTALE, "Stale file handle", str(folder))
    return _hangs(rank, folder)


def _refuses(rank: int, folder: Path) -> dict[str, Any]:
    if rank == 1:
        _wait_for_rank_0(folder)
        raise DataError("truncated file", where="case_7.nii.gz", got="12 bytes", remedy="copy anew")
    return _hangs(rank, folder)


def _killed(rank: int, folder: Path) -> dict[str, Any]:
    if rank == 1:
        _wait_for_rank_0(folder)
        os.kill(os.getpid(), signal.SIGKILL)
    return _hangs(rank, folder)


def _only_one_killed(rank: int, folder: Path) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def _only_one_raises(rank: int, folder: Path) -> dict[str, Any]:
    raise RuntimeError("the sky is falling")


def _preempted_once(rank: int, folder: Path) -> dict[str, Any]:
    """Wait for the signal and save on every rank; started again, find what was saved."""
    saved = folder / f"saved-{rank}"
    if saved.exists():
        return {"resumed": True}
    return _stopped(rank, folder)


def _started_again(rank: int, folder: Path) -> dict[str, Any]:
    """Run until something ends the rank; started again, finish."""
    if (folder / f"ready-{rank}").exists():
        return {"resumed": True}
    (folder / f"ready-{rank}").touch()
    return _hangs(rank, folder)


def _stopped(rank: int, folder: Path) -> dict[str, Any]:
    (folder / f"ready-{rank}").write_text(str(os.getpid()))
    _wait_for(lambda: _stop)
    (folder / f"saved-{rank}").touch()
    # As after a collective checkpoint: no rank leaves before all have saved.
    _wait_for(lambda: len(list(folder.glob("saved-*"))) == int(os.environ["WORLD_SIZE"]))
    return {"status": "preempted"}


def _hangs(rank: int, folder: Path) -> dict[str, Any]:
    path = folder / f"hanging-{rank}"
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    time.sleep(600)
    raise AssertionError("nobody ended this rank")


def _wait_for_rank_0(folder: Path) -> None:
    """The other rank's failure ends rank 0 at once, perhaps before it has said that it runs."""
    _wait_for((folder / "hanging-0").exists)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
