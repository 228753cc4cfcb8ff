"""How a Slurm job goes on when it has saved or failed: in the queue again, or as another job.

Some sites forbid that a job is queued again (`Requeue=0`), and `sbatch --no-requeue` does too. Then
the same batch script is queued as a job that starts when this one has ended, however it ends:

    <job>_successor    in the folder of logs: the id of that job; empty if the job ends for good
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from submitit.core.utils import JobPaths

from launch.failures import INTERRUPTED_CODE
from launch.slurm import commands, environment, squeue
from launch.slurm.commands import SlurmAwayError
from segresmamba.errors import LaunchError
from segresmamba.storage.atomic import write_text
from segresmamba.storage.locks import locked

# Whoever asks for a requeue leaves with it, as submitit does. Slurm ends the others.
_REQUEUED_CODE = 255
_SUFFIX = "_successor"


def leave(logs: Path, job_id: str, requeue: str, saved: str) -> NoReturn:
    """End this process, the first rank of a job that has saved, so that the job goes on later.

    Args:
        logs: The folder of the job's logs.
        job_id: The job.
        requeue: See `cluster.requeue`.
        saved: What is on disk, as the beginning of a line of the log.
    """
    if will_be_requeued(job_id, requeue):
        refusal = squeue.requeue(job_id)
        if not refusal:
            _say(f"{saved}; job {job_id} is queued again")
            sys.exit(_REQUEUED_CODE)
        _say(f"{saved}; Slurm does not queue the job again: {refusal}")
    if requeue in ("auto", "chain"):
        try:
            following = queue_successor(logs, job_id)
        except LaunchError as error:
            _say(f"{saved}, {why_chain(requeue)}, and a job after this one is refused: {error}")
        else:
            _say(f"{saved}, {why_chain(requeue)}: job {following} goes on after this one")
            sys.exit(0)
    if requeue == "never":
        _say(f"{saved}, the job is not queued again: cluster.requeue=never")
    _say("the same command goes on from there")
    write_text(_successor_path(logs, job_id), "")
    sys.exit(INTERRUPTED_CODE)


def will_be_requeued(job_id: str, requeue: str) -> bool:
    """Whether Slurm itself is asked to queue a job again."""
    return requeue == "slurm" or (requeue == "auto" and squeue.may_requeue(job_id))


def why_chain(requeue: str) -> str:
    """Why another job is to go on, for the log."""
    return "cluster.requeue=chain" if requeue == "chain" else "this cluster does not requeue"


def queue_successor(logs: Path, job_id: str) -> str:
    """Queue the job that goes on when this one has ended, unless it is queued already.

    Returns:
        Its id.

    Raises:
        LaunchError: Says why there is none.
    """
    # The first rank may ask for it, and the handler of the time limit.
    with locked(_successor_path(logs, job_id).with_suffix(".lock")):
        return successor(logs, job_id) or _queue_successor(logs, job_id)


def _queue_successor(logs: Path, job_id: str) -> str:
    task = job_id.partition("_")[2]
    script = JobPaths(logs, job_id=job_id).submission_file
    command = ["sbatch", "--parsable", f"--dependency=afterany:{job_id}"]
    if task:  # one job of the array, whose number is part of the names of its files
        command.append(f"--array={task}")
    variables = environment.variables_of(script.read_text(encoding="utf-8"))
    with environment.without(variables.left_out):
        number = _submit(command, script, job_id)
    following = f"{number}_{task}" if task else number
    new = JobPaths(logs, job_id=following)
    shutil.copyfile(script, new.submission_file)
    shutil.copyfile(JobPaths(logs, job_id=job_id).submitted_pickle, new.submitted_pickle)
    write_text(_successor_path(logs, job_id), following)
    return following


def _submit(command: Sequence[str], script: Path, after: str) -> str:
    """Queue a script; return the job's number.

    While Slurm does not answer, it is asked again, if it has not taken the job all the same.
    """
    deadline = time.monotonic() + commands.AWAY_PATIENCE_S
    while True:
        done = commands.run_once(*command, str(script))
        if not done.returncode:
            # Then comes the cluster's name, if there are several.
            return done.stdout.strip().partition(";")[0]
        if not commands.is_away(done.stderr) or time.monotonic() > deadline:
            raise LaunchError(
                "a job cannot queue the one that goes on",
                where=f"after job {after}",
                got=done.stderr.strip() or "no message",
                remedy="the same command goes on",
            )
        time.sleep(commands.RETRY_S)
        with suppress(SlurmAwayError):
            if taken := squeue.submitted_from([script], after):
                return taken[0]


def successor(logs: Path, job_id: str) -> str | None:
    """The job that goes on after a job; None if there is none."""
    path = _successor_path(logs, job_id)
    return (path.exists() and path.read_text(encoding="utf-8")) or None


def newest(logs: Path, job_id: str) -> str:
    """The last job of those that follow a job, or the job itself."""
    while following := successor(logs, job_id):
        job_id = following
    return job_id


def log_of(logs: Path, job_id: str) -> Path:
    """The log of a job's batch script and first rank."""
    return JobPaths(logs, job_id=job_id).stdout


def line_of(logs: Path, job_id: str) -> set[str]:
    """A job and all that it goes on from: their failures count together."""
    before = {
        path.read_text(encoding="utf-8"): path.name.removesuffix(_SUFFIX)
        for path in logs.glob(f"*{_SUFFIX}")
    }
    line = {job_id}
    while (job_id := before.get(job_id, job_id)) not in line:
        line.add(job_id)
    return line


def is_settled(logs: Path, job_id: str) -> bool:
    """Whether it is decided how a job goes on, so that its exit code means no failure."""
    return _successor_path(logs, job_id).exists()


def forget(logs: Path, job_id: str) -> None:
    """Forget what was decided when a job last ended: it starts again."""
    _successor_path(logs, job_id).unlink(missing_ok=True)


def _successor_path(logs: Path, job_id: str) -> Path:
    return logs / f"{job_id}{_SUFFIX}"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
