"""Faults, one kind after the other, and what became of a run, a store or a journal each time.

`make chaos` injects them all in their full number and prints a table. `test_chaos` injects a few.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from segresmamba.config import TrackingConfig, read_config
from segresmamba.data import open_dataset
from segresmamba.data.store import layout
from segresmamba.engine.checkpoints.checkpoint import _read_meta
from segresmamba.engine.checkpoints.rank_files import read_ranks
from segresmamba.errors import PASSING_CODE, USER_CODE, UserError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import Ranks
from segresmamba.task.weights import load_network
from segresmamba.tracking import open_tracker, sync
from segresmamba.tracking.energy.ledger import Ledger
from segresmamba.tracking.history import read_history
from segresmamba.tracking.journal import Journal
from segresmamba.tracking.mlflow.source import MlflowSource
from segresmamba.tracking.mlflow.state import UploadState, open_state
from tests.chaos.training import STEPS, train_in_child
from tests.damage import cuts, flips, lose
from tests.data.server import failing_server
from tests.engine.tiny import journal_losses
from tests.tracking.server import Server

_fork = multiprocessing.get_context("fork")


@dataclass
class Row:
    """A line of the table."""

    fault: str
    injected: int = 0
    noticed: int = 0
    """An error that names the file, a warning, or a start that goes on by itself."""
    harmless: int = 0
    """The result is the same."""
    unnoticed: int = 0
    """The result differs without a word, or the process ended with a traceback."""
    lost: str = "nothing"

    def __str__(self) -> str:
        numbers = (self.injected, self.noticed, self.harmless, self.unnoticed)
        return f"| {self.fault} | {' | '.join(map(str, numbers))} | {self.lost} |"


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


@contextmanager
def heard() -> Iterator[_Warnings]:
    """Counts the warnings of this project."""
    handler = _Warnings()
    logging.getLogger("segresmamba").addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger("segresmamba").removeHandler(handler)


def judge(row: Row, read: Callable[[], object], expected: object) -> None:
    """Read what was damaged, and count what comes of it."""
    row.injected += 1
    with heard() as warnings:
        try:
            found = read()
        except UserError:
            row.noticed += 1
        except Exception:
            row.unnoticed += 1
            logging.getLogger(__name__).exception("%s", row.fault)
        else:
            if warnings.count:
                row.noticed += 1
            elif found == expected:
                row.harmless += 1
            else:
                row.unnoticed += 1


def damaged_files(run: Path, store: Path, count: int) -> Iterator[Row]:
    """So many flipped bits and cuts in every kind of file of a run and of a store, and its loss."""
    folder = RunFolder(run)
    step = max(folder.saved_steps())
    checkpoint, meta = folder.checkpoint(step), _read_meta(folder.checkpoint(step), step)
    case_id = open_dataset(store).case_ids[0]
    array = store / case_id / layout.IMAGE

    def ranks() -> object:
        read_ranks(checkpoint, Ranks.from_environment(), writers=1, sizes={}, digests=meta.digests)
        return (checkpoint / "rank-00000.pt").read_bytes()

    def weights() -> object:
        trained = load_network(folder.best, read_config(folder.config))
        sums = {name: float(value.sum()) for name, value in trained.network.state_dict().items()}
        return sums, trained.facts

    def crop() -> object:
        case = open_dataset(store)[case_id]
        return [part.tobytes() for part in case.crop((0, 0, 0), case.shape_DHW)]

    def history() -> object:
        # Somewhere else each time: a warning comes once for each file.
        place = Path(tempfile.mkdtemp(dir=run.parent))
        if folder.journal.exists():
            shutil.copy(folder.journal, place)
        return replace(read_history(place), where="", files={}, energy={}, power="")

    readers: dict[Path, Callable[[], object]] = {
        checkpoint / "rank-00000.pt": ranks,
        checkpoint / "meta.json": lambda: _read_meta(checkpoint, step),
        folder.best: weights,
        folder.journal: history,
        folder.config: lambda: read_config(folder.config),
        folder.emissions: lambda: (Ledger(run).totals(), Ledger(run).power()),
        folder.mlflow: lambda: UploadState.load(run),
        layout.shard_file(array, 4): crop,
        array / "zarr.json": crop,
        store / "dataset.json": lambda: open_dataset(store).manifest,
    }
    for path, read in readers.items():
        name = "a store's shard" if path.suffix == "" else path.name
        row, good, expected = Row(f"damaged: {name}"), path.read_bytes(), read()
        for damages in (flips, cuts):
            for _ in damages(path, count):
                judge(row, read, expected)
        lose(path)
        judge(row, read, expected)
        path.write_bytes(good)
        yield row


def whole_curve(store: Path, root: Path) -> tuple[dict[int, float], float]:
    """The losses of a training that nothing disturbs, and how many seconds it takes."""
    process = train_in_child(store, root)
    start_s = time.monotonic()
    process.join()
    assert process.exitcode == 0, process.exitcode
    return journal_losses(root / "tiny"), time.monotonic() - start_s


def kills(folder: Path, store: Path, count: int, end_s: float) -> Row:
    """SIGKILL at random moments of a training, until enough kills or the time is over."""
    row, rng = Row("kill -9 of a training"), random.Random(0)
    whole, length_s = whole_curve(store, folder / "whole")
    runs = repeated = 0
    while row.injected < count and time.monotonic() < end_s:
        root = folder / f"run-{runs}"
        killed = 0
        while True:
            process = train_in_child(store, root)
            if killed < 10 and row.injected < count:
                process.join(rng.uniform(0.05, length_s))
            else:
                process.join()
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            killed += 1
            row.injected += 1
        lines = (root / "tiny" / "journal.jsonl").read_text().count('"train/loss"')
        repeated += lines - len(whole)
        same = process.exitcode == 0 and journal_losses(root / "tiny") == pytest.approx(
            whole, abs=1e-5
        )
        row.noticed += killed if same else 0
        row.unnoticed += 0 if same else killed
        shutil.rmtree(root)
        runs += 1
    row.lost = (
        f"{repeated} steps trained again, in {runs} runs of {STEPS} steps with one checkpoint each"
    )
    return row


def full_disks(folder: Path, store: Path, sizes_kib: list[int]) -> Row:
    """A training on a file system that is too small, which then gets more space. Root only."""
    row = Row("full disk under a run")
    whole, _ = whole_curve(store, folder / "whole")
    disk = folder / "disk"
    for size_kib in sizes_kib:
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(disk)]
        subprocess.run(mount, check=True)
        try:
            process = train_in_child(store, disk)
            process.join(60)
            row.injected += 1
            if process.exitcode is None:  # it waits for space
                row.noticed += 1
            elif process.exitcode == 0:
                row.harmless += 1
            else:
                row.noticed += process.exitcode in (USER_CODE, PASSING_CODE)
                row.unnoticed += process.exitcode not in (USER_CODE, PASSING_CODE)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            if process.exitcode is None:
                process.join()
            again = train_in_child(store, disk)
            again.join()
            losses = journal_losses(disk / "tiny")
            wrong = [step for step, loss in losses.items() if abs(loss - whole[step]) > 1e-5]
            if again.exitcode != 0 or wrong:
                row.lost = f"{size_kib} KiB: exit code {again.exitcode}, other losses at {wrong}"
        finally:
            subprocess.run(["umount", str(disk)], check=True)
            disk.rmdir()
    return row


def outages(store: Path, count: int) -> Iterator[Row]:
    """A server of a store that fails some requests in a row, in each way."""
    dataset = open_dataset(store)
    case = dataset[dataset.case_ids[0]]
    expected = [part.tobytes() for part in case.crop((0, 0, 0), case.shape_DHW)]
    rng = random.Random(0)
    with failing_server(store) as server:
        for fault in ("503", "500", "429", "reset", "cut"):
            row = Row(f"store server: {fault}")
            for _ in range(count):
                server.fault, server.failures = fault, rng.randint(1, 3)

                def read() -> object:
                    far = open_dataset(server.url, patience_s=60)[case.case_id]
                    return [part.tobytes() for part in far.crop((0, 0, 0), far.shape_DHW)]

                judge(row, read, expected)
            yield row


def mlflow_outages(folder: Path, count: int) -> Row:
    """A real MLflow server is killed at random moments while a run sends to it, and comes back."""
    row, rng = Row("outage of an MLflow server"), random.Random(0)
    server, run = Server(folder), folder / "run"
    run.mkdir()
    server.start()
    server.wait()
    config = TrackingConfig(uri=server.uri)
    tracker = open_tracker(run, config, root=folder, run_name="run")
    step = 0
    for _ in range(count):
        server.kill()
        row.injected += 1
        for phase in range(2):  # some while it is away, some while it starts or answers
            for _ in range(20):
                step += 1
                tracker.metrics({"train/loss": step / 7}, step=step)
            time.sleep(rng.uniform(0, 2))
            if phase == 0:
                server.start()
    tracker.close("finished")
    server.wait()
    sync(run)
    (history,) = MlflowSource(server.uri).histories(config.experiment, folder / "downloads")
    server.kill()
    found = [(point.step, point.value) for point in history.curves["train/loss"]]
    same = found == [(number, number / 7) for number in range(1, step + 1)]
    row.harmless, row.unnoticed = (count, 0) if same else (0, count)
    return row


def clock_jumps(folder: Path, count: int) -> Row:
    """The clock jumps by up to ten years, forth and back, while a journal is written."""
    row, rng = Row("clock jumps"), random.Random(0)
    folder.mkdir()
    journal = Journal(folder / "journal.jsonl", name="x")
    real = time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        for step in range(1, count + 1):
            jump = int(rng.uniform(-1, 1) * 3.15e17)
            patch.setattr(time, "time_ns", lambda jump=jump: real() + jump)
            journal.append("metrics", step=step, epoch=None, values={"train/loss": step / 7})
            row.injected += 1
    journal.close()
    found = [(point.step, point.value) for point in read_history(folder).curves["train/loss"]]
    same = found == [(step, step / 7) for step in range(1, count + 1)]
    row.harmless, row.unnoticed = (count, 0) if same else (0, count)
    return row


def no_locks(folder: Path, count: int) -> Row:
    """A file system that has no locks (ENOLCK)."""
    row = Row("no locks (ENOLCK)")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        for number in range(count):
            place = folder / f"unlocked-{number}"
            place.mkdir()

            def write(place: Path = place) -> object:
                journal = Journal(place / "journal.jsonl", name="x")
                journal.append("metrics", step=1, epoch=None, values={"a": 1})
                journal.close()
                Ledger(place).update(Ledger(place).claim({}), {"energy_kwh": 1.0})
                return len(read_history(place).curves["a"]), Ledger(place).totals()["energy_kwh"]

            judge(row, write, (1, 1.0))
    return row


def second_jobs(folder: Path, store: Path, count: int) -> Row:
    """Another training is started on a run that a job has."""
    row = Row("two jobs on one run")
    first = train_in_child(store, folder, "train.max_steps=100000", "train.checkpoint_every=1000")
    journal = folder / "tiny" / "journal.jsonl"
    while not (journal.exists() and b'"train/loss"' in journal.read_bytes()):
        assert first.is_alive()
        time.sleep(0.05)
    for _ in range(count):
        second = train_in_child(
            store, folder, "train.max_steps=100000", "train.checkpoint_every=1000"
        )
        second.join()
        row.injected += 1
        row.noticed += second.exitcode == 2
        row.unnoticed += second.exitcode != 2
    assert first.is_alive()
    first.kill()
    first.join()
    steps = list(journal_losses(folder / "tiny"))
    if steps != list(range(1, len(steps) + 1)):
        row.lost = "steps of the first job"
    return row


def trials_on_sqlite(folder: Path, count: int) -> Row:
    """Runs that send their journals to one SQLite file at once, which none has made before."""
    row = Row(f"{count} trials on one SQLite")
    points = 30
    for number in range(count):
        run = folder / f"trial-{number}"
        run.mkdir()
        journal = Journal(run / "journal.jsonl", name=run.name)
        for step in range(1, points + 1):
            journal.append("metrics", step=step, epoch=None, values={"train/loss": step + number})
        journal.append("status", status="finished", host="h", pid=1)
        journal.close()
        open_state(run, TrackingConfig(), folder).save(run)
    processes = [_fork.Process(target=sync, args=(folder / f"trial-{n}",)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    row.injected = count
    source = MlflowSource(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    histories = source.histories("segresmamba", folder / "downloads")
    complete = [one for one in histories if len(one.curves["train/loss"]) == points]
    row.harmless = len(complete)
    row.unnoticed = count - len(complete)
    return row
