"""A job's log on the terminal until it has ended, on this machine (`wait`) or Slurm (`follow`).

On this machine Ctrl-C stops the job. On Slurm it only ends the watching: the job is not a child of
this process, and goes on without it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from launch.failures import INTERRUPTED_CODE
from launch.jobs import succession
from launch.slurm import limits
from launch.slurm.squeue import job_state
from segresmamba.storage.terminal import on_stop_signals

POLL_S = 0.2
# Slurm's controller answers all users of the cluster, so it is asked less often.
QUEUE_POLL_S = 2.0
# The log is written on another machine, and a network file system shows it seconds later.
LOG_DELAY_S = 3.0


def wait(controller: subprocess.Popen[bytes], log: Path) -> int:
    """Show `log` while it grows until the job's controller ends; return the controller's exit code.

    The first Ctrl-C or SIGTERM asks the ranks to save a checkpoint and stop, the second ends them.
    """
    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        again, stopping = stopping, True
        controller.send_signal(signal.SIGINT if again else signal.SIGTERM)
        if not again:
            # No promise: the job may be failing at this moment.
            sys.stderr.write(
                "\nasked the job to save a checkpoint and stop; Ctrl-C again ends it at once\n"
            )

    position = 0
    with on_stop_signals(stop):
        while True:
            # Asked before the log is read: what is written in between would be missed otherwise.
            ended = controller.poll() is not None
            position = show(log, position)
            if ended:
                return controller.returncode
            time.sleep(POLL_S)


def follow(job_id: str, log: Path) -> int:
    """Show `log` while it grows, and a job's state on Slurm whenever that changes.

    A job that is queued again is followed on, and so is the one after it. Ctrl-C ends the watching,
    not the job.

    Returns:
        0 if the job ended well, 130 if it was cancelled or the watching was ended, else the job's
        exit code.
    """
    position, shown = 0, ""
    try:
        while True:
            state = job_state(job_id)
            position = show(log, position)
            if str(state) != shown:
                shown = str(state)
                _print_state(job_id, shown)
                if state and (verdict := limits.verdict_of(state.reason)):
                    _print_state(job_id, f"will not start: {verdict.got}; {verdict.remedy}")
            if state is None or state.ended:
                time.sleep(LOG_DELAY_S)
                show(log, position)
                following = succession.successor(log.parent, job_id)
                if following is None:
                    return state.exit_code if state else 1
                job_id, log, position = following, succession.log_of(log.parent, following), 0
            time.sleep(QUEUE_POLL_S)
    except KeyboardInterrupt:
        _print_state(job_id, f"goes on; `scancel {job_id}` ends it, `tail -f {log}` shows it")
        return INTERRUPTED_CODE


def _print_state(job_id: str, text: str) -> None:
    sys.stderr.write(f"job {job_id}: {text}\n")
    sys.stderr.flush()


def show(log: Path, position: int) -> int:
    """Copy what was added to the log since `position` to standard error; return the new end."""
    if not log.exists():
        return position
    with log.open("rb") as stream:
        stream.seek(position)
        added = stream.read()
    sys.stderr.buffer.write(added)
    sys.stderr.flush()
    return position + len(added)
