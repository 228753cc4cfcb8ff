"""Does a training step fit the GPUs? Checked before a job is queued, and again on its nodes.

`segresmamba.planner` answers in a process of its own, so that submitting imports no torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import typer

from segresmamba.config import Config
from segresmamba.errors import LaunchError
from segresmamba.storage.run_folder import write_config


def require_fit(config: Config, where: str = "plan.gpu_memory_gib") -> None:
    """Warn, or with plan.strict refuse, if a step does not fit plan.gpu_memory_gib.

    Args:
        config: The run.
        where: What an error names as the source of the GPUs' size.

    Raises:
        LaunchError: If it does not fit and `plan.strict` is set, or the planner cannot answer.
    """
    if config.plan.gpu_memory_gib is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        write_config(config, path)
        command = [sys.executable, "-m", "segresmamba.planner", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchError(
            "it cannot be predicted whether a training step fits",
            where=where,
            got=done.stderr.strip()[-1500:],
            remedy="correct that, or leave plan.gpu_memory_gib unset to submit without a plan",
        )
    # Libraries may print before the answer.
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["fits"]:
        return
    if config.plan.strict:
        raise LaunchError(
            "a training step does not fit the GPUs",
            where=where,
            got=f"it would take {answer['needed']}",
            remedy=answer["verdict"],
        )
    typer.secho(f"warning: a step would take {answer['needed']}; {answer['verdict']}", fg="yellow",
                err=True)  # fmt: skip
