"""What a job's batch script does before and after the srun of its ranks, as lines of shell.

They call programs by their module names. A queued script runs them in the version that is installed
when the job starts, so former module names stay importable.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from segresmamba.config import ClusterConfig
from segresmamba.errors import USER_CODE
from segresmamba.secrets import is_hidden


def before_ranks(cluster: ClusterConfig, logs: Path) -> list[str]:
    """The environment, then the preflight, which prints the port at which the ranks meet.

    A mistake of the user ends the job. Any other failure of the preflight, such as a file system
    that is away, is dealt with like one of a rank: the job is queued again.
    """
    preflight = _python("launch.in_allocation.preflight", logs)
    return [
        *environment(cluster, logs),
        f"MASTER_PORT=$({preflight}) || {{ code=$?; [ $code != {USER_CODE} ] || exit $code; "
        f"exec {_python('launch.in_allocation.on_failure', logs)} $code; }}",
        "export MASTER_PORT",
    ]


def environment(cluster: ClusterConfig, logs: Path) -> list[str]:
    """The user's own lines, then the variables of the configuration.

    What is secret is asked for when the job runs: everybody may read a script.
    """
    lines = []
    for line in cluster.setup:
        if is_hidden(line):
            lines += [f"line=$({_secret(line, logs)}) || exit", 'eval "$line"']
        else:
            lines.append(line)
    for name, value in cluster.variables.items():
        if is_hidden(value):
            lines += [f"{name}=$({_secret(value, logs)}) || exit", f"export {name}"]
        else:
            lines.append(f"export {name}={shlex.quote(value)}")
    return lines


def after_ranks(logs: Path) -> list[str]:
    """What follows srun: the failure handler, unless srun succeeded."""
    return [
        "code=$?",
        f"[ $code = 0 ] || exec {_python('launch.in_allocation.on_failure', logs)} $code",
    ]


def _secret(marker: str, logs: Path) -> str:
    return f"{_python('segresmamba.secrets', logs)} {shlex.quote(marker)}"


def _python(module: str, logs: Path) -> str:
    return f"{shlex.quote(sys.executable)} -Pm {module} {shlex.quote(str(logs))}"
