"""The uploader's process: `python -m segresmamba.tracking RUN_FOLDER LOGS`, started by training."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from pathlib import Path
from typing import cast

from segresmamba.tracking.logs import Style, log_as
from segresmamba.tracking.mlflow.uploader import follow

# Slurm sends these to every process of a job; what they mean is training's business.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    """Follow the journal until standard input closes, which it does when training is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.captureWarnings(capture=True)
    log_as(cast(Style, sys.argv[2]), rank=0)
    return 0 if follow(Path(sys.argv[1]), _training_ended) else 1


def _training_ended(wait_s: float) -> bool:
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


if __name__ == "__main__":
    sys.exit(main())
