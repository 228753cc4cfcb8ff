"""Trials of a sweep as processes of this machine, a few at a time.

A trial's process holds the trial's lock, so that it is known to run even if this process is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import typer

from launch.failures import INTERRUPTED_CODE, in_one_line
from launch.run_state import FAILED, OVER, RUNNING, STOPPED, UNDER_WAY
from launch.sweeps.sweep import Sweep
from launch.sweeps.trial import Trial
from segresmamba.storage.atomic import write_text
from segresmamba.storage.terminal import on_stop_signals

POLL_S = 0.2


class Pool:
    """Runs what is missing of a sweep."""

    def __init__(self, sweep: Sweep, most: int) -> None:
        self.sweep = sweep
        self.most = most
        self.running: dict[int, tuple[Trial, subprocess.Popen[bytes]]] = {}
        self.stopping = False
        self.waiting = [trial for trial in sweep.trials if trial.state not in OVER | UNDER_WAY]
        # Those of a controller that was killed. They take memory and cores as ours do.
        self.others = [trial for trial in sweep.trials if trial.state == RUNNING]

    def run(self) -> bool:
        """Run to the end. Ctrl-C or SIGTERM lets the running trials save, and no more are started.

        Returns:
            Whether it ran to the end. It did not if another process took the sweep over.
        """
        taken_over = False

        def stop(signum: int, frame: object) -> None:
            if not self.stopping:
                text = "saving the running trials to stop; once more ends them at once"
                typer.echo(text, err=True)
            self.stopping = True
            for _, process in self.running.values():
                # A trial's own launcher counts: its second signal ends the ranks.
                process.send_signal(signal.SIGTERM)

        with on_stop_signals(stop):
            while self.running or ((self.waiting or self.others) and not self.stopping):
                while (
                    self.waiting
                    and not self.stopping
                    and len(self.running) + len(self.others) < self.most
                ):
                    if other := self.sweep.other_controller():
                        # Locks do not reach it. As with runs, whoever began last goes on.
                        text = f"{other} controls this sweep now: no more trials are started here"
                        typer.echo(text, err=True)
                        self.waiting.clear()
                        taken_over = True
                        break
                    self._start(self.waiting.pop(0))
                self._collect()
                self._collect_others()
                time.sleep(POLL_S)
        return not (self.stopping or taken_over)

    def _start(self, trial: Trial) -> None:
        lock = self.sweep.lock(trial)
        if lock is None:
            return
        trial.folder.failure.unlink(missing_ok=True)
        command = [sys.executable, "-P", "-m", "launch", "trial", str(self.sweep.folder)]
        # This log holds one start. The logs of all starts are in the trial's run folder.
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
            # A trial that Ctrl-C or a signal has ended can go on, so it has not failed.
            stopped = code < 0 or code == INTERRUPTED_CODE
            trial.state = STOPPED if stopped else FAILED if code else trial.state
            self.sweep.refresh(trial)
            report = trial.folder.failure
            if trial.state == FAILED and not report.exists():
                # It failed before its ranks could write one.
                report.parent.mkdir(parents=True, exist_ok=True)
                write_text(report, self._log(trial).read_text(encoding="utf-8", errors="replace"))
            self._tell(trial)

    def _collect_others(self) -> None:
        for trial in list(self.others):
            lock = self.sweep.lock(trial)
            if lock is None:
                continue
            os.close(lock)
            self.others.remove(trial)
            self.sweep.refresh(trial)
            self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        """Write down and say how a trial has ended."""
        self.sweep.write()
        dice = "" if trial.dice is None else f", Dice {trial.dice:.4f}"
        failure = trial.read_failure().rstrip()
        why = f": {in_one_line(failure)}" if failure else ""
        typer.echo(f"trial {trial.number} {trial.state}{dice}{why}")

    def _log(self, trial: Trial) -> Path:
        return self.sweep.folder / f"trial-{trial.number:03d}.log"
