"""Slurm's commands, and what it means when they fail: Slurm has refused, or it did not answer.

The difference decides what a caller may do. A job that Slurm does not know has ended, and its run
may be started. Where Slurm gives no answer, a second job might train a run that has one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time

from segresmamba.errors import LaunchError, PassingError

# How long a job waits for an answer of slurmctld, which may be restarted at any time.
AWAY_PATIENCE_S = 600.0
RETRY_S = 5.0
_OF_JOBS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
# What Slurm's commands say when it does not answer, or munge does not. "Unexpected message" is what
# scontrol says then to everything but a question.
_AWAY = re.compile(
    "Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted"
    "|(Message (send|receive)|Communication (connection|shutdown)) failure|standby mode"
    "|Insane message length|Protocol authentication error|Invalid authentication credential"
    "|Unexpected message received|Munge (en|de)code failed|Resource temporarily unavailable"
)


class SlurmAwayError(PassingError, LaunchError):
    """Slurm gives no answer. Whether a job of a run lives is then unknown."""


def is_away(message: str) -> bool:
    """Whether a command has failed because Slurm gave no answer.

    Args:
        message: What the command printed on standard error.
    """
    return _AWAY.search(message) is not None


def away(message: str, remedy: str = "") -> SlurmAwayError:
    """The error for a command to which Slurm gave no answer."""
    return SlurmAwayError(
        "Slurm does not answer now",
        where="slurmctld",
        got=message.strip() or "no answer",
        remedy=remedy or "try again later; `scontrol ping` says when it answers",
    )


def run_once(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm; where there is no such command, it fails."""
    if shutil.which(command[0]) is None:
        return subprocess.CompletedProcess(command, 127, "", f"this node has no {command[0]}")
    # A user's SQUEUE_STATES would hide jobs.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SACCT_", "SCONTROL_"))
    }
    # Slurm sends these to all processes of a job, and a command that dies of one gives no answer: a
    # preempted run was not queued again. What is blocked here is blocked in the command.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_JOBS)
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with process:
        out, error = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def ask(*command: str, patiently: bool = False) -> str:
    """What a command prints; empty if there is no such command, or Slurm refuses it.

    Args:
        command: The command and its arguments.
        patiently: Wait for an answer, see `run_patiently`.

    Raises:
        SlurmAwayError: If Slurm does not answer. The commands wait for it some seconds themselves.
    """
    done = (run_patiently if patiently else run_once)(*command)
    if done.returncode and is_away(done.stderr):
        raise away(done.stderr)
    return "" if done.returncode else done.stdout


def run_patiently(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command, again and again for `AWAY_PATIENCE_S` while Slurm does not answer.

    Not for sbatch: a submission without an answer may have been taken.
    """
    deadline = time.monotonic() + AWAY_PATIENCE_S
    while True:
        done = run_once(*command)
        if not done.returncode or not is_away(done.stderr) or time.monotonic() > deadline:
            return done
        time.sleep(RETRY_S)
