"""Limits of partitions, accounts and qualities of service (QOS) that keep a job from starting.

Some limits end by waiting: others of a group use what a job needs. Some never do: the job alone is
too large. Slurm gives both the same reason, so for the limits of a group and of a user its records
are compared with what the job asks for.
"""

from __future__ import annotations

import getpass
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from launch.slurm.commands import SlurmAwayError, ask
from launch.slurm.squeue import UNLIMITED_MIN, limit_min

SINFO = "`sinfo -o '%P %l %D %G %f'` lists partitions, limits, nodes, GPUs, features"
_ASSOC = (
    "`sacctmgr show assoc tree user=$USER format=account,user,partition,qos,maxwall,maxtres,"
    "maxtresmins,maxjobs,maxsubmit,grptres,grptresmins,grpsubmit` lists your accounts and limits"
)
_QOS = (
    "`sacctmgr show qos format=name,maxwall,maxtres,mintres,maxtrespu,maxjobspu,maxsubmitpu,"
    "grptres,grptresmins,grpsubmit,flags` lists the qualities of service and their limits"
)
_PARTITION = "`scontrol show partition` lists who may use which partition, and its limits"
_OVERVIEWS = {
    "Assoc": _ASSOC,
    "QOS": _QOS,
    "Account": _PARTITION,
    "Reservation": "`scontrol show reservation` lists the reservations",
    "Dependency": "`squeue --me` shows the job that this one waits for",
}
# Reasons for which a job waits for ever, unless somebody changes the cluster or the job.
_HOPELESS = {
    "AccountNotAllowed": "the partition does not take this account: cluster.account",
    "BadConstraints": "no node is like that: cluster.constraint, cluster.gpus_per_node",
    "DependencyNeverSatisfied": "the job that it waits for did not end as it should",
    "InvalidAccount": "there is no such account: cluster.account",
    "InvalidQOS": "there is no such quality of service: cluster.qos",
    "MaxMemPerLimit": "the partition allows less memory: cluster.memory_gib",
    "PartitionNodeLimit": "the partition allows fewer nodes: cluster.nodes",
    "PartitionTimeLimit": "the partition allows less time: cluster.time_min",
    "QOSNotAllowed": "the partition does not take this quality of service: cluster.qos",
    "ReservationDeleted": "the reservation is gone",
}
_TOO_LARGE = re.compile(r"(Assoc|QOS)Max\w*Per(Job|Node)(Limit)?|QOSMin\w+|(Assoc\w*|QOS)TimeLimit")
# Limits that others use too, or other jobs of the user.
_SHARED = re.compile(r"(Assoc|QOS)(Grp\w+|Max\w+|\w*(Job|Resource)Limit)|Max\w+PerAccount")
# Words of a reason, and the setting that they are about. The first that fits counts.
_SETTINGS = {
    "Minutes": "cluster.time_min, times what the job asks for",
    "Wall": "cluster.time_min",
    "Time": "cluster.time_min",
    "GRES": "cluster.gpus_per_node",
    "Cpu": "cluster.cpus_per_task, cluster.tasks_per_node",
    "CPU": "cluster.cpus_per_task, cluster.tasks_per_node",
    "Mem": "cluster.memory_gib",
    "Node": "cluster.nodes",
    "Job": "jobs at once",
}
# What stands there until Slurm has looked at the job.
_UNDECIDED = {"None", "PartitionConfig"}
# Refusals of sbatch for the number of jobs alone: fewer at once may be taken.
_TOO_MANY = re.compile(r"SubmitJob|Invalid job array specification")
# Words of other refusals of sbatch, and where to look.
_REFUSALS = {
    "error: Assoc": _ASSOC,
    "error: QOS": _QOS,
    "Invalid account": _ASSOC,
    "Invalid job array": "`scontrol show config` has the largest array of this cluster "
    "(MaxArraySize)",
    "Invalid qos": f"{_ASSOC}; {_QOS}",
    "accounting/QOS policy": f"{_ASSOC}; {_QOS}",
    "group not permitted": _PARTITION,
    "reservation": _OVERVIEWS["Reservation"],
    "license": "`scontrol show licenses` lists the licenses",
    "Unable to contact slurm controller": "the cluster does not answer now: try again later, and "
    "`scontrol ping` says when it does",
}
_FIELD = re.compile(r"(\w+)=(\S+)")
_AMOUNT = re.compile(r"([\w/:]+)=([\d.]+)([KMGT]?)")
_UNITS = {"K": 2**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20, "": 1.0}


@dataclass(frozen=True)
class Verdict:
    """Why a job will never start."""

    got: str
    """Slurm's reason, and the setting that it is about."""
    remedy: str
    """The command that shows the limit."""


def hopeless(job_id: str) -> Verdict | None:
    """Why a job that was just queued will never start; None if it may.

    Slurm says so when it first looks at the job, usually within a second.
    """
    with suppress(SlurmAwayError):  # the job is queued, and `launch status` says it later
        for _ in range(10):  # two seconds
            shown = ask("squeue", "--noheader", f"--jobs={job_id}", "--Format=State:40,Reason:80")
            # An array has one line per job, and all its jobs wait for the same reason.
            state, _, reason = shown.partition("\n")[0].partition(" ")
            reason = reason.strip()
            if verdict := verdict_of(reason):
                return verdict
            if state == "PENDING" and _SHARED.fullmatch(reason):
                found = next(_exceeded(ask("scontrol", "-o", "show", "job", job_id)), None)
                return Verdict(f"{reason}: {found}", _remedy(reason)) if found else None
            if state != "PENDING" or reason not in _UNDECIDED:
                return None
            time.sleep(0.2)
    return None


def verdict_of(reason: str) -> Verdict | None:
    """What a reason alone says: why a job will never start, or None if it may."""
    if reason in _HOPELESS:
        return Verdict(f"{reason}: {_HOPELESS[reason]}", _remedy(reason))
    if _TOO_LARGE.fullmatch(reason):
        allowed = "more" if reason.startswith("QOSMin") else "less"
        setting = next((text for word, text in _SETTINGS.items() if word in reason), "cluster.*")
        return Verdict(f"{reason}: the limit asks for {allowed}: {setting}", _remedy(reason))
    return None


def refusal_remedy(message: str) -> str:
    """Where the user sees why sbatch refused a job.

    Args:
        message: What sbatch said.
    """
    return next((text for words, text in _REFUSALS.items() if words in message), SINFO)


def are_too_many(message: str) -> bool:
    """Whether sbatch may take fewer jobs of those that it has refused with this message."""
    return _TOO_MANY.search(message) is not None


def max_array_size() -> int | None:
    """How many jobs an array may have; None if Slurm does not say."""
    found = re.search(r"^MaxArraySize\s*= (\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else None


def _remedy(reason: str) -> str:
    return next((text for word, text in _OVERVIEWS.items() if reason.startswith(word)), SINFO)


def _exceeded(job: str) -> Iterator[str]:
    """The limits that a job exceeds even if nothing else runs.

    Args:
        job: Slurm's record of the job, on one line.
    """
    fields = dict(_FIELD.findall(job))
    # Such as cpu=8,mem=20000M,node=2; memory in MiB.
    amounts = _AMOUNT.findall(fields.get("ReqTRES") or fields.get("TRES", ""))
    asked = {kind: float(number) * _UNITS[unit] for kind, number, unit in amounts}
    minutes = limit_min(fields["JobId"]) if "JobId" in fields else UNLIMITED_MIN
    keeps_usage = _usage_is_kept()
    for owner, limits in _limits(fields.get("Account", ""), fields.get("QOS", "")):
        for name, value in limits.items():
            if name in {"GrpJobs", "MaxJobs", "MaxJobsPU", "MaxJobsPA"} and value.startswith("0("):
                yield f"{owner} allows no job ({name}=0)"
            elif name in {"GrpTRES", "MaxTRESPU", "MaxTRESPA"}:
                yield from _too_much(owner, name, value, asked)
            elif name in {"GrpTRESMins", "GrpTRESRunMins"}:
                wanted = {kind: amount * minutes for kind, amount in asked.items()}
                used = keeps_usage and name == "GrpTRESMins"
                yield from _too_much(owner, name, value, wanted, less_used=used)
            elif name == "GrpWall":
                wanted = {"wall": float(minutes)}
                text = f"wall={value}"
                yield from _too_much(owner, name, text, wanted, less_used=keeps_usage)


def _too_much(
    owner: str, name: str, limits: str, wanted: dict[str, float], *, less_used: bool = False
) -> Iterator[str]:
    """What exceeds limits such as `cpu=8(2),mem=N(0)`, where 2 cores are in use."""
    for kind, limit, used in re.findall(r"([\w/:]+)=([\d.]+)\(([\d.]+)\)", limits):
        left = float(limit) - (float(used) if less_used else 0)
        if wanted.get(kind, 0) > left:
            yield f"the job asks for {kind}={wanted[kind]:g}, {owner} has {left:g} in all ({name})"


def _limits(account: str, qos: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Limits of a user in an account, of the accounts above, and of a QOS, each with its owner."""
    user, accounts = getpass.getuser(), dict[str, dict[str, str]]()
    shown = ask("scontrol", "-o", "show", "assoc_mgr", f"users={user}", "flags=assoc,qos")
    for line in shown.splitlines():
        fields = dict(_FIELD.findall(line))
        if line.startswith(f"QOS={qos}("):
            # Each user and account has its own, and those of others are not ours:
            # 0={MaxJobsPU=1(0) ...} lab={...}
            for owner, limits in re.findall(r"(\S+)=\{(.*?)\}", line):
                if owner == account or "MaxJobsPU" in limits:
                    fields |= dict(_FIELD.findall(limits))
            yield f"QOS {qos}", fields
        elif fields.get("UserName", "").startswith(f"{user}(") and fields["Account"] == account:
            yield f"user {user} in account {account}", fields
        elif "Account" in fields and "UserName" not in fields:
            accounts[fields["Account"]] = fields
    while account in accounts:
        fields = accounts.pop(account)
        yield f"account {account}", fields
        account = fields.get("ParentAccount", "").partition("(")[0]


def _usage_is_kept() -> bool:
    """Whether used minutes stay used for ever: Slurm neither lets them decay nor resets them."""
    config = ask("scontrol", "show", "config")
    decays = re.search(r"^PriorityDecayHalfLife\s*= (?!00:00:00)\S", config, re.MULTILINE)
    is_reset = re.search(r"^PriorityUsageResetPeriod\s*= (?!NONE)\S", config, re.MULTILINE)
    return bool(config) and not decays and not is_reset
