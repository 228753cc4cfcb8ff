"""What Slurm's commands say about jobs, as data; and the few things that are asked of Slurm."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.failures import INTERRUPTED_CODE
from segresmamba.errors import LaunchError

# A job that is cancelled gets Slurm's KillWait, usually 30 s, to save.
CANCEL_PATIENCE_S = 120.0
# A job without a time limit gets a year.
UNLIMITED_MIN = 365 * 24 * 60
_LIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "RESIZING", "SUSPENDED"}
_LIVE |= {"REQUEUE_FED", "REQUEUE_HOLD", "SIGNALING", "STAGE_OUT", "STOPPED"}
# A job is SIGNALING for the moment in which slurmctld sends its nodes a signal, as to preempt it.
_RUNNING = re.compile("JobState=(RUNNING|SIGNALING|RESIZING|STOPPED)")
# How long a job waits for an answer of slurmctld, which may be restarted at any time.
AWAY_PATIENCE_S = 600.0
# What Slurm's commands say when it does not answer, or munge does not.
_AWAY = re.compile(
    "Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted"
    "|(Message (send|receive)|Communication (connection|shutdown)) failure|standby mode"
    "|Insane message length|Protocol authentication error|Invalid authentication credential"
)


@dataclass(frozen=True)
class JobState:
    """Where a job stands."""

    name: str
    """Slurm's name of the state, such as RUNNING."""
    code: int
    """The exit code of its script, once it has ended."""
    reason: str = ""
    """Why it waits."""

    @property
    def ended(self) -> bool:
        """Whether it has ended for good; a job on its way back to the queue is COMPLETING."""
        return self.name not in _LIVE

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, neither well nor stopped."""
        return self.ended and self.exit_code not in {0, INTERRUPTED_CODE}

    @property
    def exit_code(self) -> int:
        """What a command that has waited for the job returns."""
        if self.name == "COMPLETED":
            return 0
        return INTERRUPTED_CODE if self.name == "CANCELLED" else self.code or 1

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


@dataclass(frozen=True)
class LiveJob:
    """A job that is queued or runs."""

    job_id: str
    state: str
    """Slurm's name of the state, such as PENDING."""
    reason: str = "None"
    """Why it waits, in Slurm's words."""

    def __str__(self) -> str:
        reason = "" if self.reason == "None" else f" ({self.reason})"
        return f"job {self.job_id}: {self.state}{reason}"


def job_state(job_id: str) -> JobState | None:
    """Where a job stands: squeue knows while it lives and for minutes after, sacct for ever.

    Returns:
        None if neither knows it.
    """
    return job_states([job_id]).get(job_id)


def job_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Where jobs stand, with one question for all of them. A job of an array is 4711_3.

    Returns:
        The state of each job that squeue or sacct knows.
    """
    states: dict[str, JobState] = {}
    if not job_ids:
        return states
    jobs = f"--jobs={','.join(dict.fromkeys(job_ids))}"
    fields = "--Format=JobArrayID:40,State:40,exit_code:40,Reason:80"
    for line in ask("squeue", "--array", "--noheader", "--states=all", jobs, fields).splitlines():
        job_id, name, status, *reason = line.split()
        why = "" if reason == ["None"] else " ".join(reason)
        states[job_id] = JobState(name, os.waitstatus_to_exitcode(int(status)), why)
    if missing := [job_id for job_id in job_ids if job_id not in states]:
        jobs, fields = f"--jobs={','.join(dict.fromkeys(missing))}", "--format=JobID,State,ExitCode"
        # For example "4711_3|CANCELLED by 0|0:15". The last line of a job is its last start.
        for line in ask("sacct", "-X", "-n", "-P", jobs, fields).splitlines():
            job_id, name, code = line.split("|")
            states[job_id] = JobState(name.split()[0], int(code.split(":")[0]))
    return states


def living(job_ids: Sequence[str]) -> LiveJob | None:
    """The first of these jobs that is queued or runs; None if none does."""
    if not job_ids:
        return None
    jobs = f"--jobs={','.join(job_ids)}"
    lines = ask("squeue", "--noheader", jobs, "--format=%i %T %r").splitlines()
    return LiveJob(*lines[0].split(maxsplit=2)) if lines else None


def named(name: str) -> list[str]:
    """The user's jobs of a name that are queued or run."""
    user = f"--user={getpass.getuser()}"
    return ask("squeue", "--noheader", user, f"--name={name}", "--format=%i").split()


def refuse_queued(what: str, where: Path, *names: str) -> None:
    """Refuse to queue something a second time.

    Args:
        what: What the jobs do, such as "conversion".
        where: What they make.
        names: The names of its jobs.

    Raises:
        LaunchError: Names the jobs that are queued or run.
    """
    if queued := [job_id for name in names for job_id in named(name)]:
        raise LaunchError(
            f"this {what} is in the queue already",
            where=where,
            got=", ".join(queued),
            remedy=f"wait for it, or end it: scancel {' '.join(queued)}; then the same command "
            "goes on",
        )


def cancel(job_id: str) -> None:
    """Take a job out of the queue."""
    subprocess.run(["scancel", job_id], check=False, capture_output=True)


def cancel_forgotten(comment: str, known: set[str]) -> None:
    """Cancel the user's jobs that have this comment, except those of known numbers.

    Returns once they have ended, because they may have to save.
    """
    shown = ask("squeue", "--me", "--noheader", "--format=%F %k").splitlines()
    marked = {job for job, _, text in (line.partition(" ") for line in shown) if text == comment}
    for job_id in marked - known:
        cancel(job_id)
        deadline = time.monotonic() + CANCEL_PATIENCE_S
        while ask("squeue", "--noheader", f"--jobs={job_id}") and time.monotonic() < deadline:
            time.sleep(0.5)


def requeue(job_id: str) -> str:
    """Queue a running job again, which ends its processes. Waits if slurmctld is away.

    Returns:
        Why Slurm refuses; empty if it does not.
    """
    done = _scontrol("requeue", job_id)
    return done.stderr.strip() if done.returncode else ""


def is_running(job_id: str) -> bool:
    """Whether a job runs, and is neither cancelled nor on its way back to the queue.

    Waits if slurmctld is away: taken for an ended job, a failed one would not be queued again.
    """
    return _RUNNING.search(_scontrol("show", "job", job_id).stdout) is not None


def release_after(job_id: str, other: str) -> None:
    """Release a held job, to start when another one has ended, well or not.

    Raises:
        LaunchError: If Slurm refuses. The held job is then cancelled.
    """
    for words in (
        ("update", f"jobid={job_id}", f"dependency=afterany:{other}"),
        ("release", job_id),
    ):
        done = _scontrol(*words)
        if done.returncode:
            cancel(job_id)
            raise LaunchError(
                "Slurm does not let a job wait for another one",
                where=f"job {job_id}",
                got=done.stderr.strip(),
                remedy=f"job {other} goes on; give the same command when it has ended",
            )


def may_requeue(job_id: str) -> bool:
    """Whether a job may be queued again; the site or its user may have forbidden it.

    Waits if slurmctld is away.
    """
    return "Requeue=0" not in _scontrol("show", "job", job_id).stdout


def limit_min(job_id: str) -> int:
    """A job's time limit in minutes, rounded up; a year if it has none."""
    shown = re.search(r"TimeLimit=(\S+)", ask("scontrol", "show", "job", job_id))
    limit = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", shown[1]) if shown else None
    if limit is None:
        return UNLIMITED_MIN
    days, hours, minutes, seconds = (int(part or 0) for part in limit.groups())
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    """Run scontrol, again and again for `AWAY_PATIENCE_S` while slurmctld does not answer."""
    deadline = time.monotonic() + AWAY_PATIENCE_S
    if shutil.which("scontrol") is None:
        return subprocess.CompletedProcess(words, 127, "", "this node has no scontrol")
    while True:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False)
        if not _AWAY.search(done.stderr) or time.monotonic() > deadline:
            return done
        time.sleep(5)


def ask(*command: str) -> str:
    """What a command prints; empty if there is no such command, or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    # A user's SQUEUE_STATES would hide jobs.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SACCT_", "SCONTROL_"))
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return "" if done.returncode else done.stdout
