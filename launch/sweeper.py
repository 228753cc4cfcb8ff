"""Running what is missing of a sweep, on this machine or on Slurm, and telling how it stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import typer

from launch import executor
from launch.job import TrainJob
from launch.squeue import INTERRUPTED_CODE
from launch.summary import write_summary
from launch.sweep import FAILED, FINISHED, RUNNING, STOPPED, Sweep, Trial
from segresmamba.config import refuse_changes, run_folder

POLL_S = 0.2


def run_sweep(sweep: Sweep, max_parallel: int) -> int:
    """Run every trial that is neither finished nor under way.

    Args:
        sweep: The sweep; every trial has the cluster of the first.
        max_parallel: Trials at once.

    Returns:
        0 if all have finished or wait in Slurm's queue, 1 if one failed, 130 if it was stopped.

    Raises:
        UserError: If another controller is at work, or Slurm refuses a trial.
    """
    for trial in sweep.trials:
        refuse_changes(sweep.config(trial))
    with sweep.controlled():
        sweep.refresh()
        sweep.write()
        typer.echo(f"{sweep.folder}: {_counts(sweep)}")
        if sweep.config(sweep.trials[0]).cluster.name == "slurm":
            if _missing(sweep):
                return _queue(sweep, max_parallel)
            code = 0
        else:
            code = _Pool(sweep, max_parallel).run()
    write_summary(sweep)
    show(sweep)
    return code


def show(sweep: Sweep) -> None:
    """One line a trial, then the traceback of each that failed, then what to type."""
    sweep.refresh()
    for trial in sweep.trials:
        job = f"  job {trial.job}" if trial.job else ""
        words = " ".join(word for word in trial.words if not word.startswith("tracking.group="))
        typer.echo(f"{trial.number:4d}  {trial.state:9s} {trial.digest}  {trial.run}{job}  {words}")
    for trial in sweep.trials:
        if trial.failure:
            typer.echo(f"\ntrial {trial.number} failed: {trial.failure}")
    typer.echo(_counts(sweep))
    if any(trial.state in {FAILED, STOPPED} for trial in sweep.trials):
        typer.echo(f"python -m launch resume {sweep.folder}  runs what is missing", err=True)


def _queue(sweep: Sweep, max_parallel: int) -> int:
    """Queue one job per trial in `max_parallel` lanes, in each of which Slurm runs one at a time.

    The manifest is written after every submission, so a controller that is killed in between leaves
    nothing that would be queued twice, but for the trial it was about to note.
    """
    missing = _missing(sweep)
    for place, trial in enumerate(missing):
        job = TrainJob(sweep.config(trial))
        folder = run_folder(job.config)
        lane = f"{sweep.name}-lane{place % max_parallel}"
        slurm = executor.slurm_executor(job.config.cluster, lane, folder / "logs", one_by_one=True)
        trial.job, trial.state = executor.submit(slurm, job).job_id, RUNNING
        sweep.write()
        typer.echo(f"trial {trial.number}: job {trial.job}, {folder}")
    typer.echo(f"python -m launch status {sweep.folder}")
    return 0


class _Pool:
    """Trials as processes of this machine, a few at a time."""

    def __init__(self, sweep: Sweep, most: int) -> None:
        self.sweep = sweep
        self.most = most
        self.running: dict[int, tuple[Trial, subprocess.Popen[bytes]]] = {}
        self.stopping = False
        self.waiting = _missing(sweep)

    def run(self) -> int:
        """Run to the end; a first Ctrl-C or SIGTERM lets the trials save, and starts no more."""
        signums = (signal.SIGINT, signal.SIGTERM)
        before = {signum: signal.signal(signum, self._stop) for signum in signums}
        try:
            while self.running or (self.waiting and not self.stopping):
                while self.waiting and not self.stopping and len(self.running) < self.most:
                    self._start(self.waiting.pop(0))
                self._collect()
                time.sleep(POLL_S)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        if self.stopping:
            return INTERRUPTED_CODE
        return int(any(trial.state == FAILED for trial in self.sweep.trials))

    def _start(self, trial: Trial) -> None:
        lock = self.sweep.lock(trial)
        if lock is None:
            return
        command = [sys.executable, "-m", "launch", "train", *trial.words]
        # The log tells one start: a trial's own logs, of all its starts, are in its run folder.
        with _log(self.sweep, trial).open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, pass_fds=(lock,), start_new_session=True
            )
        os.close(lock)  # the trial's process holds it now, even when this one is killed
        trial.state = RUNNING
        self.running[process.pid] = (trial, process)
        self.sweep.write()
        typer.echo(f"trial {trial.number} started: {trial.run}")

    def _collect(self) -> None:
        for pid, (trial, process) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[pid]
            stopped = code < 0 or code == INTERRUPTED_CODE
            trial.state = FINISHED if code == 0 else STOPPED if stopped else FAILED
            if trial.state == FAILED and not Path(trial.run, "failure.txt").exists():
                Path(trial.run).mkdir(parents=True, exist_ok=True)
                text = _log(self.sweep, trial).read_text(encoding="utf-8", errors="replace")
                Path(trial.run, "failure.txt").write_text(text, encoding="utf-8")
            self.sweep.write()
            typer.echo(f"trial {trial.number} {trial.state}")

    def _stop(self, signum: int, frame: object) -> None:
        self.stopping = True
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)


def _missing(sweep: Sweep) -> list[Trial]:
    return [trial for trial in sweep.trials if trial.state not in {FINISHED, RUNNING}]


def _log(sweep: Sweep, trial: Trial) -> Path:
    return sweep.folder / f"trial-{trial.number:03d}.log"


def _counts(sweep: Sweep) -> str:
    counts = Counter(trial.state for trial in sweep.trials)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
