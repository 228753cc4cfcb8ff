"""What Slurm's commands say about jobs, as data; and the few things that are asked of Slurm."""

from __future__ import annotations

import getpass
import logging
import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.failures import INTERRUPTED_CODE
from launch.slurm.commands import SlurmAwayError, ask, away, is_away, run_once, run_patiently
from segresmamba.errors import LaunchError

logger = logging.getLogger(__name__)

# A job that is cancelled gets Slurm's KillWait, usually 30 s, to save.
CANCEL_PATIENCE_S = 120.0
# A job without a time limit gets a year.
UNLIMITED_MIN = 365 * 24 * 60
# A job in any other state is queued, runs, or is on its way, be it one of a later Slurm. If it were
# taken for an ended one, its run might be started twice.
_ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}
_ENDED |= {"DEADLINE", "OUT_OF_MEMORY"}
# What stands for the state of a job about which Slurm gives no answer.
UNKNOWN = "UNKNOWN"
_CANCELLED = re.compile("JobState=(CANCELLED|COMPLETING) Reason=None")
# How scontrol refuses to queue a job again that is in the queue.
_PENDING = "Job is pending execution"
_STATE = re.compile(r"JobState=(\w+)")
_AT_LIMIT = re.compile(r"JobState=(COMPLETING|TIMEOUT) Reason=TimeLimit")
# A job in any other state runs. It is SIGNALING, say, for the moment in which slurmctld sends a
# signal to its nodes, also at a preemption: taken for an ended job, it would not be queued again.
_NOT_RUNNING = _ENDED | {"PENDING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"}
_NOT_RUNNING |= {"SPECIAL_EXIT", "RESV_DEL_HOLD", "STAGE_OUT", "REVOKED"}


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
        return self.name in _ENDED

    @property
    def has_failed(self) -> bool:
        """Whether it has ended, neither well nor stopped."""
        return self.ended and self.exit_code not in {0, INTERRUPTED_CODE}

    @property
    def exit_code(self) -> int:
        """What a command that has waited for the job returns."""
        if self.name == "COMPLETED":
            return 0
        return INTERRUPTED_CODE if self.name in {"CANCELLED", "PREEMPTED"} else self.code or 1

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
        The state of each job that squeue or sacct knows. While Slurm does not answer, it is
        `UNKNOWN` for each job of which sacct does not say that it has ended.
    """
    states: dict[str, JobState] = {}
    if not job_ids:
        return states
    jobs = f"--jobs={','.join(dict.fromkeys(job_ids))}"
    fields = "--Format=JobArrayID:40,State:40,exit_code:40,Reason:80"
    is_answered, shown = True, ""
    try:
        shown = ask("squeue", "--array", "--noheader", "--states=all", jobs, fields)
    except SlurmAwayError:
        is_answered = False
    for line in shown.splitlines():
        job_id, name, status, *reason = line.split()
        why = "" if reason == ["None"] else " ".join(reason)
        states[job_id] = JobState(name, os.waitstatus_to_exitcode(int(status)), why)
    if missing := [job_id for job_id in job_ids if job_id not in states]:
        found = _accounted(missing)
        # What sacct says of a living job may be old.
        states |= {job_id: state for job_id, state in found.items() if is_answered or state.ended}
    if not is_answered:
        unknown = JobState(UNKNOWN, 0, "Slurm does not answer")
        states = dict.fromkeys(job_ids, unknown) | states
    return states


def _accounted(job_ids: Sequence[str]) -> dict[str, JobState]:
    """What sacct knows of jobs; nothing where there is no accounting, or it does not answer."""
    states = {}
    jobs, fields = f"--jobs={','.join(dict.fromkeys(job_ids))}", "--format=JobID,State,ExitCode"
    try:
        shown = ask("sacct", "-X", "-n", "-P", jobs, fields)
    except SlurmAwayError:
        return {}
    # For example "4711_3|CANCELLED by 0|0:15". The last line of a job is its last start.
    for line in shown.splitlines():
        job_id, name, code = line.split("|")
        states[job_id] = JobState(name.split()[0], int(code.split(":")[0]))
    return states


def living(job_ids: Sequence[str], *, patiently: bool = False) -> LiveJob | None:
    """The first of these jobs that is queued or runs; None if none does.

    Args:
        job_ids: Their ids.
        patiently: Wait for Slurm's answer as long as a job does.

    Raises:
        SlurmAwayError: If Slurm does not say so.
    """
    if not job_ids:
        return None
    jobs = f"--jobs={','.join(job_ids)}"
    shown = ask("squeue", "--noheader", jobs, "--format=%i %T %r", patiently=patiently)
    lines = shown.splitlines()
    return LiveJob(*lines[0].split(maxsplit=2)) if lines else None


def named(name: str) -> list[str]:
    """The user's jobs of a name that are queued or run.

    Raises:
        SlurmAwayError: If Slurm does not say so.
    """
    user = f"--user={getpass.getuser()}"
    return ask("squeue", "--noheader", user, f"--name={name}", "--format=%i").split()


def submitted_from(scripts: Collection[Path], after: str = "") -> list[str]:
    """The user's jobs that sbatch has made of these scripts and that are queued or run.

    Args:
        scripts: As they were named to sbatch.
        after: Only those that wait for the end of the job of this id.

    Raises:
        SlurmAwayError: If Slurm does not say so.
    """
    shown = ask("squeue", "--me", "--noheader", "--format=%F|%E|%o").splitlines()
    paths, waits = {str(path) for path in scripts}, f"afterany:{after}("
    return [
        job_id
        for job_id, dependency, command in (line.split("|", maxsplit=2) for line in shown)
        if command in paths and (not after or waits in dependency)
    ]


def refuse_queued(what: str, where: Path, *names: str) -> None:
    """Refuse to queue something a second time.

    Args:
        what: What the jobs do, such as "conversion".
        where: What they make.
        names: The names of its jobs.

    Raises:
        LaunchError: Names the jobs that are queued or run, or says that Slurm does not answer.
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
    """Take a job out of the queue.

    Raises:
        SlurmAwayError: If Slurm does not answer: the job is still there.
    """
    done = run_once("scancel", job_id)
    if done.returncode and is_away(done.stderr):
        raise away(done.stderr, f"when it does, end the job: scancel {job_id}")


def cancel_forgotten(comment: str, known: set[str]) -> None:
    """Cancel the user's jobs that have this comment, except those of known numbers.

    Returns once they have ended, because they may have to save.

    Raises:
        SlurmAwayError: If Slurm does not answer.
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
    done = run_patiently("scontrol", "requeue", job_id)
    # Slurm may do what it is told without an answer in time, and refuses it when it is told again.
    is_done = not done.returncode or _PENDING in done.stderr
    return "" if is_done else done.stderr.strip()


def is_running(job_id: str) -> bool:
    """Whether a job runs, and is neither cancelled nor on its way back to the queue.

    Waits if slurmctld is away: taken for an ended job, a failed one would not be queued again. The
    log says why a job is not taken for a running one.
    """
    done = run_patiently("scontrol", "show", "job", job_id)
    found = _STATE.search(done.stdout)
    if found is None:
        said = done.stderr.strip() or "no state"
        logger.warning("not queued again: Slurm says of job %s: %s", job_id, said)
        return False
    if found[1] in _NOT_RUNNING:
        logger.warning("left as it is: Slurm already has job %s as %s", job_id, found[1])
        return False
    return True


def is_cancelled(job_id: str) -> bool:
    """Whether a job is being ended by its user, or Slurm has already queued it again.

    A job that has reached its time limit has that as its reason, a preempted one the time of it.
    Waits if slurmctld is away.
    """
    shown = run_patiently("scontrol", "show", "job", job_id).stdout
    return _CANCELLED.search(shown) is not None and "PreemptTime=None" in shown


def is_ended_by_limit(job_id: str) -> bool:
    """Whether Slurm is ending a job because of its time limit. Waits if slurmctld is away."""
    shown = run_patiently("scontrol", "show", "job", job_id).stdout
    return _AT_LIMIT.search(shown) is not None


def release_after(job_id: str, other: str) -> None:
    """Release a held job, to start when another one has ended, well or not.

    Raises:
        LaunchError: If Slurm refuses. The held job is then cancelled.
    """
    for words in (
        ("update", f"jobid={job_id}", f"dependency=afterany:{other}"),
        ("release", job_id),
    ):
        done = run_patiently("scontrol", *words)
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
    return "Requeue=0" not in run_patiently("scontrol", "show", "job", job_id).stdout


def limit_min(job_id: str) -> int:
    """A job's time limit in minutes, rounded up; a year if it has none."""
    shown = re.search(r"TimeLimit=(\S+)", run_patiently("scontrol", "show", "job", job_id).stdout)
    limit = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", shown[1]) if shown else None
    if limit is None:
        return UNLIMITED_MIN
    days, hours, minutes, seconds = (int(part or 0) for part in limit.groups())
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)
