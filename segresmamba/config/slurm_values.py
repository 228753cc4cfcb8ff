"""Values of `cluster.*` in Slurm's own forms: times, GPUs by type, options of sbatch."""

from __future__ import annotations

import json
import math
import re

from segresmamba.errors import ConfigError

# minutes, minutes:seconds, hours:minutes:seconds; and days-hours, d-h:m, d-h:m:s
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_OPTIONS = re.compile(r"""(cluster\.(?:sbatch|srun))=\[(--[^'"]*)\]""")
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?")
# What the launcher sets in every script, by the setting that changes it; some have none.
_OWN_OPTIONS = {
    "account": "cluster.account",
    "array": "--max-parallel",
    "comment": "cluster.comment",
    "constraint": "cluster.constraint",
    "cpus-per-task": "cluster.cpus_per_task",
    "dependency": "cluster.dependency",
    "error": "run.root",
    "exclude": "cluster.exclude",
    "exclusive": "cluster.exclusive",
    "export": "cluster.env",
    "gpus-per-node": "cluster.gpus_per_node or cluster.gpus",
    "gpus-per-task": "cluster.gpus_per_task",
    "job-name": "run.name",
    "licenses": "cluster.licenses",
    "mail-user": "cluster.mail_user",
    "mem": "cluster.memory_gib",
    "mem-per-gpu": "cluster.mem_per_gpu",
    "nodelist": "cluster.nodelist",
    "nodes": "cluster.nodes",
    "no-requeue": "cluster.requeue",
    "ntasks": "cluster.tasks_per_node",
    "ntasks-per-node": "cluster.tasks_per_node",
    "open-mode": "nothing: logs are appended to",
    "output": "run.root",
    "partition": "cluster.partition",
    "qos": "cluster.qos",
    "requeue": "cluster.requeue",
    "reservation": "cluster.reservation",
    "signal": "cluster.signal_delay_s",
    "time": "cluster.time_min",
}


def minutes(value: object) -> object:
    """A time limit in one of Slurm's forms, such as 1-12:00:00, in minutes, rounded up.

    Anything else is returned as it is, for pydantic to judge.

    Raises:
        ConfigError: For a text that is none of Slurm's forms.
    """
    if not isinstance(value, str) or value.isdecimal():
        return value
    found = _TIME.fullmatch(value)
    if found is None:
        raise ConfigError(
            "this is no time limit",
            where="cluster.time_min",
            got=value,
            remedy="give minutes, as in cluster.time_min=90, or one of Slurm's forms: minutes"
            ":seconds, hours:minutes:seconds, days-hours, days-hours:minutes:seconds",
        )
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part]
    if days is None and len(parts) < 3:
        parts = [0, *parts]  # without hours
    hours, mins, seconds = (*parts, 0, 0)[:3]
    return int(days or 0) * 24 * 60 + hours * 60 + mins + math.ceil(seconds / 60)


def quoted(override: str) -> str:
    """An override as Hydra takes it, whose lists want quotes around what has an equals sign.

    So `cluster.sbatch=[--tmp=100G,--spread-job]` can be written without them. Options may have
    commas: a list is divided where the next option begins.
    """
    found = _OPTIONS.fullmatch(override)
    if found is None:
        return override
    options = re.split(r",\s*(?=--)", found[2])
    return f"{found[1]}={json.dumps(options)}"


def sbatch_options(options: tuple[str, ...]) -> dict[str, str | bool]:
    """Options such as `--any=value` by their names, as submitit takes them.

    Raises:
        ConfigError: For one that is no option, or one that the launcher sets itself.
    """
    parsed: dict[str, str | bool] = {}
    for option in options:
        found = _OPTION.fullmatch(option)
        if found is None:
            raise ConfigError(
                "this is no option of sbatch",
                where="cluster.sbatch",
                got=option,
                remedy="write each as --NAME or --NAME=VALUE, as in cluster.sbatch=[--tmp=100G]",
            )
        name, value = found.groups()
        if name in _OWN_OPTIONS:
            raise ConfigError(
                "this option of sbatch follows from other settings",
                where="cluster.sbatch",
                got=option,
                remedy=f"what sets it is {_OWN_OPTIONS[name]}",
            )
        parsed[name] = True if value is None else value
    return parsed
