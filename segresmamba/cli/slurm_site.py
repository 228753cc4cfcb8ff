"""`segresmamba doctor --slurm`: a preset of `cluster` from what Slurm says about itself.

What it chose is a value; what somebody has to choose is a comment with the choices.
"""

from __future__ import annotations

import getpass
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segresmamba.config.own_presets import config_folder
from segresmamba.config.slurm_values import minutes
from segresmamba.errors import LaunchError
from segresmamba.storage.atomic import write_text

WAIT_S = 20.0
# A run that takes longer is saved and queued again; shorter jobs start sooner.
LONGEST_MIN = 24 * 60
# More cores for a rank and its reader do not make a training faster.
MOST_CORES = 8
# GRES such as gpu:a100:4(S:0-1), gpu:3090:8, gpu:2 or several of them with commas.
_GPUS = re.compile(r"(?:^|,)gpu:(?:([\w.-]+):)?(\d+)(?![\w.:])")


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
            limit_min=_minutes(limit),
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


def write_preset(path: Path) -> str:
    """Ask Slurm, and write a preset.

    Returns:
        The words by which commands take it.

    Raises:
        LaunchError: If Slurm does not answer, or the file is there already or would not be found.
    """
    other = "give another name, as in --slurm configs/cluster/theirs.yaml"
    if path.parent.name != "cluster" or path.suffix != ".yaml":
        raise LaunchError(
            "this is no place of a preset",
            where="--slurm",
            got=path,
            remedy="name it as in --slurm configs/cluster/ours.yaml",
        )
    # One of the package's names would hide what the preset builds on.
    if path.exists() or (config_folder() / "cluster" / path.name).exists():
        raise LaunchError(
            "there is such a preset already",
            where="--slurm",
            got=path,
            remedy=f"{other}, or delete it",
        )
    partitions = _ask("sinfo", "--noheader", "--format=%P|%l|%D|%c|%G|%f")
    lines = [line.partition("=") for line in _ask("scontrol", "show", "config")]
    facts = {key.strip(): value.strip() for key, _, value in lines}
    # One database may serve several clusters.
    of_user = (f"user={getpass.getuser()}", f"cluster={facts.get('ClusterName', '')}")
    accounts = _accounting("assoc", *of_user, "format=account,qos,defaultqos,maxwall")
    qos = _accounting("qos", "format=name,maxwall")
    text = preset([Partition.from_line(line) for line in partitions], accounts, qos, facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise LaunchError(
            "the preset cannot be written",
            where="--slurm",
            got=f"{path}: {error.strerror}",
            remedy=other,
        ) from error
    folder = path.parents[1]
    option = "" if folder.resolve() == Path("configs").resolve() else f"--config-dir {folder} "
    return f"{option}cluster={path.stem}"


def preset(
    partitions: Sequence[Partition],
    accounts: Sequence[str],
    qos: Sequence[str],
    facts: dict[str, str],
) -> str:
    """The preset as YAML.

    Args:
        partitions: What sinfo lists.
        accounts: Lines `account|qos,qos|default qos|longest time` of the user; none where there is
            no accounting.
        qos: Lines `qos|longest time`.
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
    gpus = json.dumps(f"{chosen.gpu_type}:{chosen.gpus}")
    users, limits = [line.split("|") for line in accounts], dict(line.split("|") for line in qos)
    names = sorted({account for account, *_ in users})
    classes = sorted({name for _, names, *_ in users for name in names.split(",") if name})
    # Jobs get the only one, or a default; which of several accounts they get is not asked.
    given = classes if len(classes) == 1 else [default for *_, default, _ in users]
    walls = [*(wall for *_, wall in users), *(limits.get(name, "") for name in given)]
    longest = [LONGEST_MIN, chosen.limit_min, *(_minutes(wall) for wall in walls)]
    lines = [
        "# Written by `segresmamba doctor --slurm` from what sinfo, sacctmgr and scontrol say.",
        "# Look it over; `python -m launch train cluster=NAME --dry-run` shows the batch script.",
        *(f"#   {partition}" for partition in partitions),
        "defaults:",
        "  - slurm",
        "  - _self_",
        f"partition: {json.dumps(chosen.name)}",
        f"tasks_per_node: {ranks}",
        f"gpus: {gpus}" if chosen.gpu_type else f"gpus_per_node: {chosen.gpus}",
        f"cpus_per_task: {max(1, min(MOST_CORES, chosen.cpus // ranks))}",
        f"time_min: {min(limit for limit in longest if limit)}",
        *_choice("account", names),
        *_choice("qos", classes),
        *_notes(facts),
    ]
    return "\n".join(lines) + "\n"


def _choice(key: str, names: Sequence[str]) -> list[str]:
    """A setting with its only value, or as a comment with all of them."""
    if len(names) < 2:
        return [f"{key}: {json.dumps(name)}" for name in names]
    return [f"# {key}: {json.dumps(names[0])}    # one of {', '.join(names)}; unset: your default"]


def _minutes(limit: str) -> int | None:
    """A time limit of Slurm in minutes; None if there is none: `infinite`, or nothing."""
    return int(str(minutes(limit))) if limit[:1].isdecimal() else None


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


def _accounting(*words: str) -> list[str]:
    """The rows that sacctmgr shows; none where there is no accounting."""
    shown = _ask("sacctmgr", "-n", "-P", "show", *words, must=False)
    return [line for line in shown if "|" in line]


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
