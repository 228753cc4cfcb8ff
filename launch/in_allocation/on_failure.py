"""The end of a Slurm job whose ranks have failed: show why, tell MLflow, try again or stop.

The batch script runs this when srun returns with an error. If the job was preempted or cancelled,
there is nothing to do. A mistake of the user would come again, so the job ends. After any other
failure, passing or ours, the job is queued again, unless too many failures in a row brought no
newer checkpoint: a fault of a node often looks like one of ours.

    <run folder>/failures.jsonl     every failure: when, which job and rank, how far, the error
    <run folder>/failure.txt        traceback of the last failure, also on the MLflow run
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.failures import (
    INTERRUPTED_CODE,
    Failure,
    failure_path,
    first_failure,
    forget_failures,
    in_one_line,
    report_failure,
    write_report,
)
from launch.jobs import succession
from launch.jobs.rank import batch_log, load_job
from launch.slurm import allocation, squeue
from launch.slurm.script import AT_LIMIT
from segresmamba.config import ClusterConfig, Config
from segresmamba.errors import PASSING_CODE, USER_CODE, LaunchError
from segresmamba.storage.run_folder import RunFolder

# Slurm ends the batch script of a requeued job. If the script left first, with an error, the job
# would end as failed.
_END_S = 60
# For example "srun: error: gpu07: tasks 0-1: Exited with exit code 1".
_SRUN = re.compile(r"srun: error: (\S+): tasks? (\d+)\S*: (.*)")


@dataclass(frozen=True)
class FailedStart:
    """A line of failures.jsonl."""

    time_s: float
    job: str
    rank: int
    checkpoint: int
    """The newest checkpoint's step, 0 if there is none: where the next attempt starts."""
    step: int
    """The last step in the journal: how far this start got."""
    error: str
    """The error in one line."""


def on_failure(config: Config, logs: Path, code: int) -> int:
    """Deal with the failure of this job; return the batch script's exit code."""
    job_id = allocation.job_id()
    if succession.is_settled(logs, job_id):  # srun may have ended ranks that had nothing left to do
        return 0 if succession.successor(logs, job_id) else INTERRUPTED_CODE
    if not squeue.is_running(job_id):
        return code
    failure, lines = _find_failure(logs, job_id), list[str]()
    if failure is None:
        text = f"the job failed with exit code {code} before any rank wrote its error; see above"
        failure = Failure(0, time.time(), code, text)
    else:
        log = f"{logs}/{job_id}_{failure.rank}_log.out"
        lines.append(f"rank {failure.rank} failed first; its log: {log}")
    forget_failures(logs, job_id)
    is_requeued = False
    if failure.exit_code != USER_CODE:
        line_of_jobs = succession.line_of(logs, job_id)
        history = _remember(RunFolder.from_config(config), job_id, line_of_jobs, failure)
        is_requeued, line = _go_on(config.cluster, logs, job_id, history)
        lines.append(line)
    report_failure(config, failure)
    # The cause last, where a reader of the log looks first.
    sys.stderr.write("\n".join(["", *lines, failure.text, ""]))
    sys.stderr.flush()
    if is_requeued:
        refusal = squeue.requeue(job_id)
        if not refusal:
            time.sleep(_END_S)
        sys.stderr.write(f"Slurm does not queue it again: {refusal or 'no reason given'}\n")
    return failure.exit_code


def at_limit(config: Config, logs: Path) -> None:
    """Queue this job again if its time limit ends it before its ranks have saved.

    They had been warned, but came to no step boundary: a step takes longer, or a file system gives
    no answer. Slurm takes a job back that it is just ending. Its KillWait, usually 30 s, is all the
    time that there is.
    """
    job_id = allocation.job_id()
    if succession.is_settled(logs, job_id) or not squeue.is_ended_by_limit(job_id):
        return
    error = LaunchError(
        "the time limit has ended the job before its ranks had saved",
        where=f"job {job_id}",
        got=f"a warning {config.cluster.signal_delay_s} s before it (cluster.signal_delay_s), and "
        "no step boundary since then",
        remedy="see in the log what they did; if a step, or the preparation before the first one, "
        "takes so long, raise cluster.signal_delay_s or cluster.time_min",
    )
    failure = Failure(0, time.time(), PASSING_CODE, error.screen())
    line_of_jobs = succession.line_of(logs, job_id)
    history = _remember(RunFolder.from_config(config), job_id, line_of_jobs, failure)
    is_requeued, line = _go_on(config.cluster, logs, job_id, history)
    if is_requeued and (refusal := squeue.requeue(job_id)):
        line = f"Slurm does not queue it again: {refusal}"
    sys.stderr.write("\n".join(["", line, failure.text, ""]))
    sys.stderr.flush()
    write_report(config, failure)
    report_failure(config, failure)  # for MLflow; while a rank lives, it holds the journal


def _find_failure(logs: Path, job_id: str) -> Failure | None:
    """What went wrong first.

    A rank that was killed has written nothing, but srun names the tasks as they end. So the first
    task in srun's messages is the cause if it left no failure of its own.
    """
    written = first_failure(logs, job_id)
    log = batch_log(logs).read_text(errors="replace")
    # All starts of a job write to one log; preflight begins each with this line.
    this_start = log[log.rfind(f"job {job_id}, start ") :]
    ended = _SRUN.search(this_start)
    if ended is None or failure_path(logs, job_id, int(ended[2])).exists():
        return written
    return Failure.without_words(int(ended[2]), f" on {ended[1]}", f": {ended[3]}")


def _remember(
    folder: RunFolder, job_id: str, line_of_jobs: set[str], failure: Failure
) -> list[FailedStart]:
    """Add the failure to failures.jsonl; return those of these jobs at the newest checkpoint."""
    # The last line of a journal may be cut, so it is searched as text.
    journal = folder.journal
    text = journal.read_text(errors="replace") if journal.exists() else ""
    steps = [int(step) for step in re.findall(r'"step": ?(\d+)', text)]
    failed = FailedStart(
        time_s=failure.time_s,
        job=job_id,
        rank=failure.rank,
        checkpoint=max(folder.saved_steps(), default=0),
        step=steps[-1] if steps else 0,
        error=in_one_line(failure.text),
    )
    try:
        with folder.failures.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(failed)) + "\n")
    except OSError:  # the disk may be full, and that be the failure: Slurm's own count must do
        return [failed] * (1 + int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    lines = folder.failures.read_text(encoding="utf-8").splitlines()
    history = [FailedStart(**json.loads(line)) for line in lines]
    return [
        one for one in history if one.job in line_of_jobs and one.checkpoint == failed.checkpoint
    ]


def _go_on(
    cluster: ClusterConfig, logs: Path, job_id: str, history: list[FailedStart]
) -> tuple[bool, str]:
    """Queue another job where that is the way to go on.

    Returns:
        Whether Slurm is to queue this job again; and what becomes of it, as a line of its log.
    """
    last, times = history[-1], len(history)
    reached = f"step {last.step}, with step {last.checkpoint} as the newest checkpoint"
    if times > cluster.retries:
        steps = {failed.step for failed in history}
        where = "at the same step" if len(steps) == 1 else "without a new checkpoint"
        return False, (
            f"not queued again: failed {times} times in a row {where} ({reached}); remove the "
            "cause, then the same command goes on from there"
        )
    count = f"failure {times} of at most {cluster.retries + 1} without a new checkpoint: {reached}"
    if succession.will_be_requeued(job_id, cluster.requeue):
        return True, f"queued again, {count}"
    if cluster.requeue == "never":
        return False, f"not queued again, cluster.requeue=never: {reached}"
    why = succession.why_chain(cluster.requeue)
    try:
        following = succession.queue_successor(logs, job_id)
    except LaunchError as error:
        return False, f"not queued again, {why}: {error}; {count}"
    return False, f"{why}: job {following} goes on after this one, {count}"


def main() -> None:
    """Deal with the end of this job: `python -m launch.in_allocation.on_failure LOGS CODE`.

    In the place of the exit code `limit` says that Slurm has sent SIGTERM to the script, which lets
    this process ignore that signal.
    """
    # Preemption may come just now. Slurm then requeues the job itself, and its warning must not end
    # this process before the failure is recorded.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    folder, code = Path(sys.argv[1]), sys.argv[2]
    try:
        job = load_job(folder, allocation.job_id())
    except LaunchError as error:  # another user's pickle, which the ranks have refused too
        sys.stderr.write(error.screen() + "\n")
        sys.exit(USER_CODE)
    if code == AT_LIMIT:
        at_limit(job.resolved_config(), folder)
    else:
        sys.exit(on_failure(job.resolved_config(), folder, int(code)))


if __name__ == "__main__":
    main()
