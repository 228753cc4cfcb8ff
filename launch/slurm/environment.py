"""What sbatch reads from the environment beside its script, and what a job must not inherit.

sbatch takes `SBATCH_*` variables for options, and they win over those of a script. A job also gets
the environment of the command that submits it. Inside another job that environment describes the
other job, and srun would obey it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_OPTION = re.compile(r"^#SBATCH --([a-z-]+)", re.MULTILINE)
# Variables that begin with SLURM_, but describe the cluster and no job.
_OF_THE_CLUSTER = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
# Slurm sets them for the GPUs of a job.
_GPUS = {"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"}
# Variables whose option has another name.
_OPTIONS = {
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_REQ_SWITCH": "switches",
    "SBATCH_TIMELIMIT": "time",
}
# Options that say the same thing in different ways: a script that has one of them has said it.
_SAME = (
    {"requeue", "no-requeue"},
    {"output", "error"},
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "gres"},
)
# One job would become an array, or the command would wait for its end.
_NEVER = {"array", "wait"}
# They change nothing that a job of ours asks for.
_HARMLESS = {"clusters", "debug", "export", "get-user-env", "ignore-pbs", "input"}


@dataclass(frozen=True)
class Variables:
    """The variables that sbatch or the job would heed."""

    left_out: list[str]
    """Names of those that are kept from both."""
    notes: list[str]
    """A line for each `SBATCH_*` variable of the user's shell that matters, or would."""


def variables_of(script: str) -> Variables:
    """Judge the environment of this process, for the submission of a script.

    What the script says wins over the user's shell, whose variables hold for everything else.
    """
    said = {option.replace("_", "-") for option in _OPTION.findall(script)}
    known = said.union(*(options for options in _SAME if options & said))
    left_out = [name for name in os.environ if _describes_a_job(name)]
    notes = []
    for name, value in sorted(os.environ.items()):
        option = _OPTIONS.get(name) or name.removeprefix("SBATCH_").lower().replace("_", "-")
        if not name.startswith("SBATCH_") or _describes_a_job(name) or option in _HARMLESS:
            continue
        shown = " ".join(f"{name}={value}".split())  # on one line
        if option in known | _NEVER:
            left_out.append(name)
            notes.append(f"{shown} of your shell is left out: cluster.* decides on that")
        else:
            notes.append(f"{shown} of your shell holds for the job, beside cluster.*")
    return Variables(left_out, notes)


@contextmanager
def without(names: list[str]) -> Iterator[None]:
    """Take variables out of this process's environment for a while."""
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _describes_a_job(name: str) -> bool:
    """Whether a variable speaks of the job that this process is in, if it is in one.

    Outside a job, variables such as SLURM_CPU_BIND are what the user wants of srun.
    """
    if not any(other.startswith("SLURM_JOB") for other in os.environ):
        return False
    is_set_by_slurm = name.startswith(("SLURM", "SRUN_", "SBATCH_MEM_BIND"))
    return name in _GPUS or (is_set_by_slurm and name not in _OF_THE_CLUSTER)
