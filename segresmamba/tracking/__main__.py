"""The process of the uploader: `python -m segresmamba.tracking RUN_FOLDER LOGS`.

`RunTracker` starts it, and `mlflow.uploader` says why it is a process of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import cast

from segresmamba.tracking.logs import Style, log_as
from segresmamba.tracking.mlflow.uploader import run

# Slurm sends these to every process of a job. Training reacts to them; the uploader has to live on
# to send what training records in its last seconds.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    """Follow the journal until standard input closes, which happens when training ends or dies."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)  # training comes first
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.captureWarnings(capture=True)
    log_as(cast(Style, sys.argv[2]), rank=0)
    return 0 if run(Path(sys.argv[1]), sys.stdin.buffer) else 1


if __name__ == "__main__":
    sys.exit(main())
