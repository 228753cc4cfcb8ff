"""Answers whether a configuration fits, as a process: the launcher must not import torch.

    python -m segresmamba.planner CONFIG_YAML

Prints one line of JSON: whether the configuration fits, and the sentence to show.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from segresmamba.config import read_config
from segresmamba.errors import UserError
from segresmamba.planner import Planner, gpu_memory_gib, verdict
from segresmamba.task.task import Task


def main() -> None:
    """Read the file, plan, and print; a user's mistake gives its screen and exit code 2."""
    logging.disable(logging.WARNING)
    config = read_config(Path(sys.argv[1]))
    try:
        plan = Planner(Task.from_config(config)).plan(gpu_memory_gib(config))
    except UserError as error:
        sys.stderr.write(error.screen() + "\n")
        sys.exit(2)
    needed = f"{plan.asked.needed_gib:.2f} of {plan.gpu_memory_gib:g} GiB"
    print(json.dumps({"fits": plan.fits, "needed": needed, "verdict": verdict(plan)}))


if __name__ == "__main__":
    main()
