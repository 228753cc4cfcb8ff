"""Trials of a sweep as processes of this machine, a few at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import typer

from launch.report import REPORT
from launch.slurm.squeue import INTERRUPTED_CODE
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial import FAILED, OVER, RUNNING, STOPPED, UNDER_WAY, Trial

POLL_S = 0.2
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Pool:
    """Runs what is missing of a sweep."""

    def __init__(self, sweep: Sweep, most: int) -> None:
        self.sweep = sweep
        self.most = most
        self.running: dict[int, tuple[Trial, subprocess.Popen[bytes]]] = {}
        self.stopping = False
        self.waiting = [trial for trial in sweep.trials if trial.state not in OVER | UNDER_WAY]

    def run(self) -> bool:
        """Run to the end; a first Ctrl-C or SIGTERM lets the trials save, and starts no more.

        Returns:
            Whether it was not stopped.
        """
        before = {signum: signal.signal(signum, self._stop) for signum in _STOP}
        try:
            while self.running or (self.waiting and not self.stopping):
                while self.waiting and not self.stopping and len(self.running) < self.most:
                    self._start(self.waiting.pop(0))
                self._collect()
                time.sleep(POLL_S)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        return not self.stopping

    def _start(self, trial: Trial) -> None:
        lock = self.sweep.lock(trial)
        if lock is None:
            return
        Path(trial.run, REPORT).unlink(missing_ok=True)
        command = [sys.executable, "-m", "launch", "trial", str(self.sweep.folder)]
        # The log tells one start: a trial's own logs, of all its starts, are in its run folder.
        with self._log(trial).open("wb") as log:
            process = subprocess.Popen(
                [*command, str(trial.number)],
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
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
            trial.state = STOPPED if stopped else FAILED if code else trial.state
            self.sweep.refresh(trial)
            if trial.state == FAILED and not Path(trial.run, REPORT).exists():
                Path(trial.run).mkdir(parents=True, exist_ok=True)
                text = self._log(trial).read_text(encoding="utf-8", errors="replace")
                Path(trial.run, REPORT).write_text(text, encoding="utf-8")
            self.sweep.write()
            dice = "" if trial.dice is None else f", Dice {trial.dice:.4f}"
            why = f": {trial.failure.rstrip().splitlines()[-1].strip()}" if trial.failure else ""
            typer.echo(f"trial {trial.number} {trial.state}{dice}{why}")

    def _log(self, trial: Trial) -> Path:
        return self.sweep.folder / f"trial-{trial.number:03d}.log"

    def _stop(self, signum: int, frame: object) -> None:
        if not self.stopping:
            typer.echo("saving the running trials to stop; once more ends them at once", err=True)
        self.stopping = True
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)
