"""`segresmamba doctor --slurm`: a preset of `cluster` from what Slurm says about itself.

What it chose is a value; what somebody has to choose is a comment with the choices.
"""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segresmamba.config.slurm_values import minutes
from segresmamba.errors import LaunchError
from segresmamba.storage.atomic import write_text

WAIT_S = 20.0
# A run that takes longer is saved and queued again; shorter jobs start sooner.
LONGEST_MIN = 24 * 60
# More cores for a rank and its reader do not make a training faster.
MOST_CORES = 8
# GRES such as gpu:a100:4(S:0-1), gpu:2 or several of them with commas.
_GPUS = re.compile(r"gpu:(?:([A-Za-z][\w.-]*):)?(\d+)")


@dataclass(frozen=True)
class Partition:
    """A line of sinfo: nodes of one kind in a partition."""

    name: str
    is_default: bool
    limit_min: int | None
    nodes: int
    cpus: int
    gpu_type: str
    gpus: int
    features: str

    @classmethod
    def from_line(cls, line: str) -> Partition:
        """Read `%P|%l|%D|%c|%G|%f`."""
        name, limit, nodes, cpus, gres, features = line.split("|")
        gpus = _GPUS.search(gres)
        # A plus sign means that some nodes have more.
        return cls(
            name=name.rstrip("*"),
            is_default=name.endswith("*"),
            limit_min=int(str(minutes(limit))) if limit[0].isdecimal() else None,  # infinite
            nodes=int(nodes),
            cpus=int(cpus.rstrip("+")),
            gpu_type=(gpus[1] or "") if gpus else "",
            gpus=int(gpus[2]) if gpus else 0,
            features="" if features == "(null)" else features,
        )

    def __str__(self) -> str:
        limit = "no limit" if self.limit_min is None else f"{self.limit_min} min"
        gpus = f"{self.gpus} {self.gpu_type} GPUs".replace("  ", " ")
        features = f", features {self.features}" if self.features else ""
        default = " (default)" if self.is_default else ""
        cores = f"{self.nodes} nodes of {self.cpus} cores"
        return f"{self.name}{default}: {cores} and {gpus}, {limit}{features}"


def write_preset(path: Path) -> None:
    """Ask Slurm, and write a preset.

    Raises:
        LaunchError: If Slurm does not answer, or there is such a file already.
    """
    if path.exists():
        raise LaunchError(
            "there is such a preset already",
            where="--slurm",
            got=path,
            remedy="give another name, as in --slurm configs/cluster/theirs.yaml, or delete it",
        )
    partitions = _ask("sinfo", "--noheader", "--format=%P|%l|%D|%c|%G|%f")
    wanted = "format=account,qos"
    accounts = _ask(
        "sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", wanted, must=False
    )
    lines = [line.partition("=") for line in _ask("scontrol", "show", "config")]
    facts = {key.strip(): value.strip() for key, _, value in lines}
    text = preset([Partition.from_line(line) for line in partitions], accounts, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def preset(partitions: Sequence[Partition], accounts: Sequence[str], facts: dict[str, str]) -> str:
    """The preset as YAML.

    Args:
        partitions: What sinfo lists.
        accounts: Lines `account|qos,qos` of the user; none where there is no accounting.
        facts: The keys and values of `scontrol show config`.

    Raises:
        LaunchError: If there is no partition.
    """
    if not partitions:
        raise LaunchError(
            "this Slurm has no partition",
            where="sinfo",
            got="no lines",
            remedy="ask the administrators for a partition that you may use",
        )
    # The default partition, unless only others have GPUs.
    chosen = max(partitions, key=lambda one: (one.gpus > 0, one.is_default))
    ranks = chosen.gpus or 1
    lines = [
        "# Written by `segresmamba doctor --slurm` from what sinfo, sacctmgr and scontrol say.",
        "# Look it over; `python -m launch train cluster=NAME --dry-run` shows the batch script.",
        *(f"#   {partition}" for partition in partitions),
        "defaults:",
        "  - slurm",
        "  - _self_",
        f"partition: {chosen.name}",
        f"tasks_per_node: {ranks}",
        f"gpus: {chosen.gpu_type}:{chosen.gpus}" if chosen.gpu_type else
        f"gpus_per_node: {chosen.gpus}",
        f"cpus_per_task: {max(1, min(MOST_CORES, chosen.cpus // ranks))}",
        f"time_min: {min(chosen.limit_min or LONGEST_MIN, LONGEST_MIN)}",
        *_accounts(accounts),
        *_notes(facts),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _accounts(lines: Sequence[str]) -> list[str]:
    pairs = [line.split("|") for line in lines if line.count("|") == 1]
    names = sorted({account for account, _ in pairs if account})
    qos = sorted({name for _, several in pairs for name in several.split(",") if name})
    found = []
    if len(names) == 1:
        found.append(f"account: {names[0]}")
    elif names:
        found.append(f"# account: {names[0]}    # one of {', '.join(names)}")
    if qos:
        found.append(f"# qos: {qos[0]}    # one of {', '.join(qos)}; unset: your default")
    return found


def _notes(facts: dict[str, str]) -> list[str]:
    """What the site's configuration means for jobs of this project."""
    notes = []
    if most := facts.get("MaxArraySize"):
        notes.append(f"# An array, such as a sweep, has fewer than {most} jobs here.")
    if facts.get("JobRequeue") == "0":
        notes.append(
            "# JobRequeue=0: jobs are queued again only if they ask for it, as those of this "
            "project do."
        )
    if "none" in facts.get("AccountingStorageType", ""):
        notes.append("# Without accounting squeue forgets jobs some minutes after their end.")
    if facts.get("PreemptMode", "OFF") not in ("OFF", "REQUEUE"):
        notes.append(
            f"# PreemptMode={facts['PreemptMode']}: a preempted job is warned, and saves, only "
            "where its partition has a GraceTime."
        )
    return notes


def _ask(*command: str, must: bool = True) -> list[str]:
    """The lines that a command of Slurm prints; none if it fails and need not answer.

    Raises:
        LaunchError: If it must answer and does not.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        if not must:
            return []
        said = getattr(error, "stderr", None)
        raise LaunchError(
            "Slurm gives no answer",
            where=command[0],
            got=(said if isinstance(said, str) else "").strip() or str(error),
            remedy="run this on a login node, where sinfo and scontrol work",
        ) from error
    return [line for line in done.stdout.splitlines() if line.strip()]
