"""Where a run comes from: commit, packages, user, Slurm job. Found out once, when it starts."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("segresmamba", "torch", "deepspeed", "monai", "zarr", "mlflow")
SLURM = ("JOB_ID", "JOB_NAME", "JOB_PARTITION", "JOB_NODELIST", "RESTART_COUNT", "ARRAY_TASK_ID")
GIT_S = 10.0


def provenance() -> dict[str, str]:
    """Tags of a run, in the names that MLflow's pages look for where there are any."""
    tags = {
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "mlflow.user": _user(),
        "mlflow.source.name": "segresmamba",
    }
    tags |= {f"version.{name}": version for name in PACKAGES if (version := _version(name))}
    slurm = {name: os.environ.get(f"SLURM_{name}") for name in SLURM}
    tags |= {f"slurm.{name.lower()}": value for name, value in slurm.items() if value}
    return tags | git_tags(Path(__file__))


def environment() -> str:
    """Every installed package with its version, as `pip freeze` would list it."""
    found = {
        f"{package.metadata['Name']}=={package.version}" for package in metadata.distributions()
    }
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def git_tags(source: Path) -> dict[str, str]:
    """Commit and state of the checkout that a source file is tracked in; none for an installed one.

    An installed package may lie in a folder of somebody else's repository, whose commit would say
    nothing about it.
    """
    if _git(source, "ls-files", "--error-unmatch", source.name) is None:
        return {}
    commit = _git(source, "rev-parse", "HEAD")
    changes = _git(source, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return {}
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(changes))}


def _git(source: Path, *arguments: str) -> str | None:
    """What git says about the folder of a file; None if it refuses or is not there."""
    command = ["git", "-C", str(source.parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=GIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return str(os.getuid())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
