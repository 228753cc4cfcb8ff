"""The end of a Slurm job whose ranks have failed: say why, tell MLflow, try again or stop.

The batch script comes here when srun returns with an error. A job that was preempted or cancelled
has nothing to say. After a mistake of the user trying again would be no use; after anything else
the job is queued again, as long as each attempt gets the run past its newest checkpoint:

    <run folder>/failures.jsonl     every failure: when, which job, rank, how far, the error
    <run folder>/failure.txt        the last one's traceback, also on the MLflow run
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.failures import USER_ERROR_CODE, Failure, first_failure, forget_failures
from launch.jobs import submission
from launch.report import report_failure
from launch.slurm import allocation, squeue
from segresmamba.config import Config, run_folder
from segresmamba.storage.run_folder import RunFolder

HISTORY = "failures.jsonl"
_END_S = 60
_SRUN = re.compile(r"srun: error: (\S+): tasks? (\d+)\S*: (.*)")


@dataclass(frozen=True)
class Setback:
    """A line of the run's history of failures."""

    time_s: float
    job: str
    rank: int
    checkpoint: int
    """The newest checkpoint's step, 0 if there is none: where the next attempt starts."""
    step: int
    """The last step in the journal: how far it got."""
    error: str
    """The last line of it."""


def on_failure(config: Config, logs: Path, code: int) -> int:
    """Deal with the failure of this job; return the batch script's exit code."""
    job_id = allocation.job_id()
    if not squeue.is_running(job_id):
        return code
    failure = _find_failure(logs, job_id) or Failure(
        0, time.time(), code, f"srun ended with exit code {code} before a rank could say anything"
    )
    forget_failures(logs, job_id)
    folder = run_folder(config)
    lines = [f"rank {failure.rank} failed first; its log: {logs}/{job_id}_{failure.rank}_log.out"]
    again = failure.exit_code != USER_ERROR_CODE
    if again:
        history = _remember(folder, job_id, failure)
        again = len(history) <= config.cluster.retries
        lines.append(_verdict(history, config.cluster.retries))
    report_failure(config, failure)
    # The cause last, where a reader of the log looks first.
    sys.stderr.write("\n".join(["", *lines, failure.text, ""]))
    sys.stderr.flush()
    if again:
        refusal = squeue.requeue(job_id)
        if not refusal:
            time.sleep(_END_S)  # Slurm ends this process; leaving first would be a failed job's way
        sys.stderr.write(f"Slurm does not queue it again: {refusal or 'no reason given'}\n")
    return failure.exit_code


def _find_failure(logs: Path, job_id: str) -> Failure | None:
    """What went wrong first: what a rank wrote, unless one before it died without a word.

    srun names tasks as they end; a rank that was killed is there and has written nothing.
    """
    written = first_failure(logs, job_id)
    log = submission.batch_log(logs).read_text(errors="replace")
    this_start = log[log.rfind(f"job {job_id}, start ") :]
    ended = _SRUN.search(this_start)
    if ended is None or (logs / f"{job_id}_{ended[2]}_failure.json").exists():
        return written
    hint = "; the kernel does so when memory runs out" if "Killed" in ended[3] else ""
    text = f"rank {ended[2]} on {ended[1]} ended without a word: {ended[3]}{hint}"
    return Failure(int(ended[2]), time.time(), 1, text)


def _remember(folder: Path, job_id: str, failure: Failure) -> list[Setback]:
    """Write the failure down; return this job's since it last got past a checkpoint."""
    setback = Setback(
        time_s=failure.time_s,
        job=job_id,
        rank=failure.rank,
        checkpoint=max(RunFolder(folder).saved_steps(), default=0),
        step=_last_step(folder),
        error=failure.text.splitlines()[-1],
    )
    path = folder / HISTORY
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(setback)) + "\n")
    setbacks = [Setback(**json.loads(line)) for line in path.read_text().splitlines()]
    return [s for s in setbacks if (s.job, s.checkpoint) == (job_id, setback.checkpoint)]


def _verdict(history: list[Setback], retries: int) -> str:
    last, times = history[-1], len(history)
    reached = f"step {last.step}, with step {last.checkpoint} as the newest checkpoint"
    if times <= retries:
        return (
            f"queued again, failure {times} of at most {retries + 1} without a new checkpoint: "
            f"{reached}"
        )
    steps = {setback.step for setback in history}
    where = "at the same step" if len(steps) == 1 else "without a new checkpoint"
    return (
        f"not queued again: failed {times} times in a row {where} ({reached}); mend the cause, "
        "then the same command goes on from there"
    )


def _last_step(folder: Path) -> int:
    """The last step in the journal, whose last line may be cut."""
    journal = folder / "journal.jsonl"
    text = journal.read_text(errors="replace") if journal.exists() else ""
    return max((int(step) for step in re.findall(r'"step": ?(\d+)', text)), default=0)


def main() -> None:
    """Deal with the failure of this job: `python -m launch.in_allocation.on_failure LOGS CODE`."""
    # Preemption may come just now; the decision is then Slurm's.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    work = submission.load_work(folder, allocation.job_id())
    sys.exit(on_failure(work.config, folder, int(sys.argv[2])))


if __name__ == "__main__":
    main()
