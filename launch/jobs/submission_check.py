"""Can these runs be trained? Asked before anything is queued or started.

`train`, `sweep`, their dry runs and `sbatch slurm/train.sh` share this check. What needs torch is
answered by `segresmamba.task.check` in a process of its own.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from segresmamba.config import Config, run_folder
from segresmamba.errors import LaunchError, UserError, is_passing

# After so long a user should know what the command waits for.
NOTE_S = 3.0
# Without garbage collection torch is imported in 0.3 s less.
_CHECK = "import gc; gc.disable(); from segresmamba.task.check import main; main()"
# The longest names below a run folder are those of DeepSpeed's files in a checkpoint.
_LONGEST_INSIDE = 160


def require_trainable(runs: Mapping[str, Sequence[Config]]) -> None:
    """Refuse runs that would end with a mistake of the user once they have started.

    Args:
        runs: Configurations by the name of their run, as errors show it; empty for the only one. A
            run with several has them as alternatives: one that can be trained is enough.

    Raises:
        UserError: The first such mistake.
    """
    for alternatives in runs.values():
        for config in alternatives:
            check_path(run_folder(config))
    process = subprocess.Popen(
        [sys.executable, "-c", _CHECK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    question = pickle.dumps([list(alternatives) for alternatives in runs.values()])
    try:
        answer, output = process.communicate(question, timeout=NOTE_S)
    except subprocess.TimeoutExpired:
        typer.echo("checking store, network and patch before anything is started ...", err=True)
        answer, output = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the check of the settings has failed:\n{output.decode()}")
    found: tuple[int, Exception] | None = pickle.loads(answer)
    if found is None:
        return
    number, error = found
    if is_passing(error):  # a server that cannot be reached from here may be from the nodes
        typer.secho(f"warning: not all could be checked here: {error}", fg="yellow", err=True)
        return
    name = list(runs)[number]
    if name and isinstance(error, UserError):
        error.where = f"{name}: {error.where}"
    raise error


def check_path(folder: Path) -> None:
    """Refuse a run folder whose files would have too long a path.

    Raises:
        LaunchError: If a name or the whole is longer than the file system allows.
    """
    path = folder.absolute()
    existing = next(parent for parent in path.parents if os.path.exists(parent))
    longest_name, longest_path = (
        os.pathconf(existing, name) for name in ("PC_NAME_MAX", "PC_PATH_MAX")
    )
    lengths = [len(os.fsencode(part)) for part in path.parts]
    if max(lengths) > longest_name:
        where, got, most = "run.name", max(lengths), longest_name
    elif len(os.fsencode(path)) > longest_path - _LONGEST_INSIDE:
        where, got, most = "run.root", len(os.fsencode(path)), longest_path - _LONGEST_INSIDE
    else:
        return
    raise LaunchError(
        "the path of the run folder is too long for this file system",
        where=where,
        got=f"{got} bytes, at most {most} are possible: {path}",
        remedy="give a shorter run.name or run.root",
    )
