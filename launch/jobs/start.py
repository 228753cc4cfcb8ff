"""The process of a rank: `python -m launch.jobs.start LOGS [REQUEUE]`, see `cluster.requeue`.

This is submitit's own start, after a look at who has written the job's pickle. Scripts that an
earlier version queued call submitit directly.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from submitit.core.submission import process_job
from submitit.slurm.slurm import SlurmJobEnvironment

from launch.failures import Failure, write_failure
from launch.jobs import rank, succession
from segresmamba.errors import USER_CODE, LaunchError
from segresmamba.storage.terminal import shield_output

MODULE = "launch.jobs.start"
SUBMITIT_MODULE = "submitit.core._submit"
RANK_MODULES = (MODULE, SUBMITIT_MODULE)
"""The main modules that a rank may have."""


def rank_command(submitit_command: str) -> str:
    """The command of a rank in the place of submitit's, whose interpreter and folder it keeps.

    -P, because a launch.py in the folder where the job was submitted would be taken for `launch`.
    """
    return submitit_command.replace(f"-m {SUBMITIT_MODULE}", f"-Pm {MODULE}", 1)


def main() -> None:
    """Run a job as one rank.

    Raises:
        SystemExit: With code 2 if another user has written the job. The screen is in the log.
    """
    shield_output()
    logs = Path(sys.argv[1])
    os.environ["SUBMITIT_FOLDER"] = str(logs)
    place = rank.place()
    try:
        rank.submitted_pickle(logs, place.job_id)
    except LaunchError as error:
        failure = Failure.from_error(error, place.global_rank)
        write_failure(failure, place.paths.folder, place.job_id)
        sys.stderr.write(failure.text + "\n")
        sys.exit(USER_CODE)
    # What submitit does at SIGUSR2 in a process that works alone, such as a conversion.
    SlurmJobEnvironment._requeue = _leave  # type: ignore[assignment,method-assign]
    process_job(logs)


def _leave(place: SlurmJobEnvironment, countdown: int) -> None:
    saved = "what is finished stays"
    succession.leave(place.paths.folder, place.job_id, rank.how_to_go_on(), saved)


if __name__ == "__main__":
    main()
