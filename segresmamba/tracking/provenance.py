"""Where a run comes from: its commit, packages, user and Slurm job.

It is found out once, when the run starts: the checkout and the environment may change later.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from segresmamba.storage.user import user_name

PACKAGES = ("segresmamba", "torch", "deepspeed", "monai", "zarr", "mlflow")
SLURM = ("JOB_ID", "JOB_NAME", "JOB_PARTITION", "JOB_NODELIST", "RESTART_COUNT", "ARRAY_TASK_ID")
GIT_S = 10.0


def provenance() -> dict[str, str]:
    """Tags of a run. Names that begin with mlflow are those that MLflow's pages show."""
    tags = {
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "mlflow.user": user_name(),
        "mlflow.source.name": "segresmamba",
    }
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            tags[f"version.{package}"] = metadata.version(package)
    slurm = {name: os.environ.get(f"SLURM_{name}") for name in SLURM}
    tags |= {f"slurm.{name.lower()}": value for name, value in slurm.items() if value}
    return tags | git_tags(Path(__file__))


@cache  # parsing the metadata of all packages takes 0.1 s
def environment() -> str:
    """Every installed package with its version, as `pip freeze` would list it."""
    packages = (package.metadata for package in metadata.distributions())
    found = {f"{package['Name']}=={package['Version']}" for package in packages}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def git_tags(source: Path) -> dict[str, str]:
    """Commit of the checkout that tracks a source file, and whether there are changes since.

    There are no tags for an installed package. It may lie in a folder of another repository, such
    as an environment below a project, whose commit would say nothing about it.
    """
    if _git(source, "ls-files", "--error-unmatch", source.name) is None:
        return {}
    commit = _git(source, "rev-parse", "HEAD")
    changes = _git(source, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return {}
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(changes))}


def _git(source: Path, *arguments: str) -> str | None:
    """Output of a git command in the folder of a file; None if it fails or git is missing."""
    command = ["git", "-C", str(source.parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=GIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
