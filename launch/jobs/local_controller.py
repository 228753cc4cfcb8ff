"""The process that owns the ranks of a job on this machine.

Submitit's own controller waits until every rank has ended, so a rank that dies leaves the others
waiting in a collective. This controller ends them, passes signals on, starts a requeued job again,
and stops the job when the launcher is gone. When it is killed itself, the ranks save and end.
Ranks learn their place from the variables that submitit's LocalJobEnvironment reads.

It imports neither submitit nor the configuration, so that the ranks start at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.failures import (
    INTERRUPTED_CODE,
    Failure,
    failure_path,
    write_failure,
)
from launch.ports import free_port

# The exit code by which submitit's local rank 0 asks to be started again.
REQUEUE_CODE = 144
# Once a rank has failed, the others get this long to fail by themselves and leave a traceback.
GRACE_S = 2.0
POLL_S = 0.05
# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class LocalPlan:
    """What a controller needs to know; its command line as JSON."""

    logs: str
    """Folder of the job's logs."""
    command: str
    """The shell command that starts a rank."""
    ranks: int
    """Processes to start."""
    limit_s: float
    """Time limit of one start."""
    signal_delay_s: float
    """Seconds before the limit at which the ranks are warned."""

    def start(self) -> subprocess.Popen[bytes]:
        """Start a controller. Its process number is the job's id.

        It gets a session of its own, so that Ctrl-C reaches only the launcher, which then decides.
        """
        module = "launch.jobs.local_controller"
        command = [sys.executable, "-P", "-m", module, json.dumps(asdict(self))]
        return subprocess.Popen(command, start_new_session=True)


class Controller:
    """Runs one job to its end, and again after each requeue."""

    def __init__(self, plan: LocalPlan) -> None:
        self.plan = plan
        self.job_id = str(os.getpid())
        self.launcher = os.getppid()
        self.ranks: list[subprocess.Popen[bytes]] = []

    def run(self) -> int:
        """Start the ranks and wait for them, until the job is not requeued any more.

        Returns:
            0 if all ranks ended well, 1 if not.
        """
        # A shell starts its background commands with SIGINT ignored, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for signum in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(signum, lambda signum, _frame: self._send(signum))
        code = REQUEUE_CODE
        while code == REQUEUE_CODE:
            try:
                self._start_ranks()
                code = self._wait()
            finally:
                for rank in self.ranks:
                    rank.kill()
                for rank in self.ranks:
                    rank.wait()
                self.ranks = []
        return code

    def _start_ranks(self) -> None:
        plan = self.plan
        # Chosen once for all ranks and anew at each start, because it may be taken meanwhile.
        port = str(free_port(self.job_id))
        for rank in range(plan.ranks):
            place = {
                "SUBMITIT_LOG_LEVEL": os.environ.get("SUBMITIT_LOG_LEVEL", "WARNING"),
                "SUBMITIT_EXECUTOR": "local",
                "MASTER_PORT": port,
                "SUBMITIT_LOCAL_JOB_ID": self.job_id,
                "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
                "SUBMITIT_LOCAL_NODEID": "0",
                "SUBMITIT_LOCAL_NTASKS": str(plan.ranks),
                "SUBMITIT_LOCAL_GLOBALID": str(rank),
                "SUBMITIT_LOCAL_LOCALID": str(rank),
            }
            with Path(plan.logs, f"{self.job_id}_{rank}_log.out").open("ab") as log:
                command, environment = shlex.split(plan.command), os.environ | place
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    # Safe to run between fork and exec: there are no other threads here.
                    preexec_fn=_save_when_controller_dies,  # noqa: PLW1509
                )
            self.ranks.append(process)

    def _wait(self) -> int:
        """Wait until all ranks have ended, or one has failed, or the time limit is reached."""
        start_s = time.monotonic()
        limit_s = self.plan.limit_s
        warning_s, grace_ends_s = limit_s - self.plan.signal_delay_s, float("inf")
        while None in (codes := [rank.poll() for rank in self.ranks]):
            elapsed_s = time.monotonic() - start_s
            if elapsed_s > limit_s:
                text = f"the time limit of {limit_s:.0f} s was over before rank 0 ended"
                self._record_failure(Failure(0, time.time(), 1, text))
                return 1
            if elapsed_s > grace_ends_s:
                return 1
            if elapsed_s > warning_s:
                warning_s = float("inf")
                self._send(signal.SIGUSR2)
            if grace_ends_s == float("inf") and self._record_failures(codes):
                grace_ends_s = elapsed_s + GRACE_S
            if os.getppid() != self.launcher:
                self.launcher = os.getppid()
                self._send(signal.SIGTERM)  # the launcher is gone
            time.sleep(POLL_S)
        if REQUEUE_CODE in codes:
            return REQUEUE_CODE
        return 1 if self._record_failures(codes) else 0

    def _record_failures(self, codes: list[int | None]) -> bool:
        """Write down how ranks failed that left no traceback; return whether any rank failed."""
        failed = [rank for rank, code in enumerate(codes) if code not in {None, 0, REQUEUE_CODE}]
        for rank in failed:
            code = codes[rank] or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self._record_failure(Failure.without_words(rank, "", f", by {how}"))
        return bool(failed)

    def _record_failure(self, failure: Failure) -> None:
        folder = Path(self.plan.logs)
        if failure_path(folder, self.job_id, failure.rank).exists():
            return
        try:
            write_failure(failure, folder, self.job_id)
        except OSError as error:  # a full disk must not keep the other ranks from being ended well
            sys.stderr.write(f"{failure.text}\nthis cannot be written to a file: {error}\n")

    def _send(self, signum: int) -> None:
        for rank in self.ranks:
            rank.send_signal(signum)


def _save_when_controller_dies() -> None:
    """In a rank: let the kernel send SIGTERM, at which it saves, once the controller is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    try:
        sys.exit(Controller(LocalPlan(**json.loads(sys.argv[1]))).run())
    except KeyboardInterrupt:  # submitit's LocalJob.cancel()
        sys.exit(INTERRUPTED_CODE)
