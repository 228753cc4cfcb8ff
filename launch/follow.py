"""Watching a job on Slurm: its log on the terminal until it has ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from launch.slurm.squeue import INTERRUPTED_CODE, job_state
from launch.watch import show

# Often enough to watch; the queue's server answers everybody.
POLL_S = 2.0
# The log is written on another machine; network file systems are seconds late.
LOG_DELAY_S = 3.0


def follow(job_id: str, log: Path) -> int:
    """Show `log` while it grows, and where the job stands whenever that changes.

    A job that is queued again is followed on. Ctrl-C ends the watching, not the job.

    Returns:
        0 if the job ended well, 130 if it was cancelled or nobody watches any more, else its exit
        code.
    """
    position, said = 0, ""
    try:
        while True:
            state = job_state(job_id)
            position = show(log, position)
            if str(state) != said:
                said = str(state)
                _say(job_id, said)
            if state is None or state.ended:
                time.sleep(LOG_DELAY_S)
                show(log, position)
                return state.exit_code if state else 1
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        _say(job_id, f"goes on; `scancel {job_id}` ends it, `tail -f {log}` shows it")
        return INTERRUPTED_CODE


def _say(job_id: str, text: str) -> None:
    sys.stderr.write(f"job {job_id}: {text}\n")
    sys.stderr.flush()
