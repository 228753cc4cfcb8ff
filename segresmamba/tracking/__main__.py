"""The uploader's process: `python -m segresmamba.tracking RUN_FOLDER`, started by training."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from pathlib import Path

from segresmamba.tracking.uploader import follow

# MLflow's own retries would hide an outage for minutes, and its telemetry needs the internet.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
# Slurm sends these to every process of a job; what they mean is training's business.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    """Follow the journal until standard input closes, which it does when training is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    return 0 if follow(Path(sys.argv[1]), _training_ended) else 1


def _training_ended(wait_s: float) -> bool:
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


if __name__ == "__main__":
    sys.exit(main())
