"""The settings of the place where a job runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from segresmamba.config.section import Section, one_line
from segresmamba.config.slurm_values import minutes, sbatch_options
from segresmamba.errors import ConfigError
from segresmamba.secrets import hide_lines, hide_variables

_OfNextPart = Literal[
    "partition", "account", "qos", "constraint", "reservation", "gpus", "gpus_per_node",
    "memory_gib", "time_min", "sbatch",
]  # fmt: skip


class ClusterConfig(Section):
    """Where `python -m launch` runs a job."""

    name: Literal["local", "debug", "slurm"] = "local"
    """local: processes on this machine; debug: in this process; slurm: sbatch."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    tasks_per_node: PositiveInt = 1
    """Processes (ranks) on each node: one for each GPU if there are GPUs."""
    gpus: str | None = Field(default=None, pattern=r"^([A-Za-z0-9_.-]+:)?[1-9]\d*$")
    """GPUs for each node by their type, such as a100:2; it is another way to set gpus_per_node."""
    gpus_per_task: PositiveInt | None = None
    """GPUs to ask Slurm for, for each rank, in the place of those of a node: the ranks may then lie
    on any nodes' free GPUs, and each sees its own only."""
    gpus_per_node: Annotated[int, Field(ge=0, validate_default=True)] = 0
    """GPUs to ask Slurm for on each node. Without Slurm, the ranks see the GPUs of the shell."""
    cpus_per_task: PositiveInt = 2
    """CPU cores to ask Slurm for, for each rank and its reader processes together."""
    memory_gib: PositiveInt | None = None
    """Host memory of each node in GiB; unset takes the default of the partition."""
    mem_per_gpu: str | None = Field(default=None, pattern=r"^[1-9]\d*[KMGT]?$")
    """Host memory for each GPU in Slurm's form, such as 60G, in the place of memory_gib."""
    time_min: Annotated[PositiveInt | None, BeforeValidator(minutes)] = None
    """Time limit of a job in minutes, or in one of Slurm's forms, such as 24:00:00 or 1-12, which
    becomes minutes; Slurm needs one. A job that reaches it saves a checkpoint and is queued
    again."""
    signal_delay_s: PositiveInt = 120
    """Seconds before the time limit at which Slurm warns the job, so that it saves a checkpoint."""
    partition: str | None = None
    """Slurm partition, or a list of several, such as [a100,h100], of which Slurm takes the one that
    starts the job first; unset takes the default of the cluster."""
    account: str | None = None
    """Slurm account to charge."""
    constraint: str | None = None
    """Slurm node features, such as h100."""
    qos: str | None = None
    """Slurm quality of service."""
    exclude: str | None = None
    """Slurm nodes to avoid, such as gpu[07-08]."""
    nodelist: str | None = None
    """Slurm nodes that the job must have, such as gpu[01-02]."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    reservation: str | None = None
    """Slurm reservation to run in."""
    licenses: str | None = None
    """Licenses to ask Slurm for, such as scratch1 or matlab:2."""
    dependency: str | None = None
    """What has to end before the job starts, in Slurm's form, such as afterok:4711."""
    comment: str | None = None
    """Comment of the job in Slurm. The jobs of a sweep have one of their own instead."""
    mail_user: str | None = None
    """Address to which Slurm writes when the job has ended or failed. For other occasions:
    cluster.sbatch=[--mail-type=ALL]."""
    sbatch: tuple[str, ...] = ()
    """Any other options of sbatch, such as [--switches=1, --tmp=100G]."""
    next_part: dict[_OfNextPart, Any] = Field(default_factory=dict)
    """Settings of the small job that queues the next part of a sweep, where they are not those of
    the trials, such as {partition: cpu, qos: short}. It asks for no GPU; where the partition or
    quality of service allows no such job, give {gpus_per_node: 1}."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before a Slurm job, such as `module load cuda`. Lines that may hold a
    secret are kept out of all files but secrets.json, which only you can read."""
    srun: tuple[str, ...] = ("--cpu-bind=cores",)
    """Further options of the srun that starts the ranks, such as --gpu-bind=closest."""
    python: str | None = Field(default=None, min_length=1)
    """Python of the nodes, or of cluster.container, if it is not the one that submits. It needs the
    same version of this package."""
    container: str | None = Field(default=None, min_length=1)
    """Container image in which the ranks run: a .sif file for Apptainer, or what Slurm's pyxis
    takes, where srun has it. Submission, queueing and the checks before the start stay outside."""
    binds: tuple[str, ...] = ()
    """Folders that the container sees, as FOLDER or FOLDER:INSIDE, besides the run folder, the
    store and those that the cluster's container software mounts by itself."""
    interface: str | None = None
    """Network interface between the nodes, such as ib0, for NCCL and gloo."""
    env: dict[str, str | int] = Field(default_factory=dict)
    """Environment variables of the ranks, such as {NCCL_DEBUG: INFO, NCCL_IB_HCA: mlx5_0}. Values
    of variables that may be secret are kept out of all files but secrets.json, which only you can
    read."""
    requeue: Literal["auto", "slurm", "chain", "never"] = "auto"
    """How a Slurm job goes on once it has saved, or a rank has failed. slurm: Slurm queues it
    again; chain: it queues another job that starts when it has ended; never: it ends; auto: slurm,
    or chain where the cluster does not requeue."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a Slurm job is queued again after a rank failed, if it has written no newer
    checkpoint in between. Preemption and the time limit do not count. A mistake in the settings
    ends a job at once."""

    @field_validator("gpus", mode="before")
    @classmethod
    def _number_of_gpus(cls, gpus: object) -> object:
        """A number without a type."""
        return str(gpus) if type(gpus) is int else gpus

    @field_validator("gpus_per_node")
    @classmethod
    def _gpus_of_a_node(cls, number: int, info: ValidationInfo) -> int:
        """One number of GPUs, in whichever way they are asked for."""
        if info.data.get("gpus_per_task"):
            return 0
        gpus = info.data.get("gpus")
        return int(gpus.rpartition(":")[2]) if gpus else number

    @field_validator("partition", mode="before")
    @classmethod
    def _partitions(cls, partition: Any) -> Any:
        """A list of partitions as Slurm writes it."""
        is_list = isinstance(partition, list | tuple) and all(isinstance(p, str) for p in partition)
        return ",".join(partition) if is_list else partition

    @field_validator("sbatch")
    @classmethod
    def _options_of_sbatch(cls, sbatch: tuple[str, ...]) -> tuple[str, ...]:
        sbatch_options(sbatch)
        return sbatch

    @field_validator("next_part")
    @classmethod
    def _settings_of_next_part(cls, next_part: dict[_OfNextPart, Any]) -> dict[_OfNextPart, Any]:
        cls.model_validate(next_part)
        return next_part

    @field_validator("sbatch", "binds")
    @classmethod
    def _each_stays_on_its_line(
        cls, values: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        return tuple(one_line(value, f"cluster.{info.field_name}") for value in values)

    @field_validator(
        *("partition", "account", "constraint", "qos", "exclude", "interface", "nodelist"),
        *("reservation", "licenses", "dependency", "comment", "mail_user", "python", "container"),
    )
    @classmethod
    def _stays_on_its_line(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value and one_line(value, f"cluster.{info.field_name}")

    @field_validator("setup")
    @classmethod
    def _lines_without_secrets(cls, setup: tuple[str, ...]) -> tuple[str, ...]:
        return hide_lines(setup)

    @field_validator("env")
    @classmethod
    def _variables_without_secrets(cls, env: dict[str, str | int]) -> dict[str, str | int]:
        return hide_variables(env)

    @property
    def world_size(self) -> int:
        """Number of ranks of a job."""
        return self.nodes * self.tasks_per_node

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the ranks, with those that choose the network interface.

        Secret values are markers, see `segresmamba.secrets`.
        """
        # NCCL connects GPUs, gloo processors.
        names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if self.interface else ()
        chosen = {name: str(self.interface) for name in names}
        return chosen | {name: str(value) for name, value in self.env.items()}

    @model_validator(mode="after")
    def _possible(self) -> ClusterConfig:
        # The nodes and the tasks on each that a backend is limited to; Slurm has no limit.
        most = {"local": (1, self.tasks_per_node), "debug": (1, 1)}.get(self.name)
        if most and (self.nodes, self.tasks_per_node) != most:
            raise ConfigError(
                f"cluster={self.name} cannot run that many ranks",
                where="cluster.nodes, cluster.tasks_per_node",
                got=f"{self.nodes}, {self.tasks_per_node}",
                remedy="local uses one node, debug one process; for more: cluster=slurm on many",
            )
        for first, second in (("memory_gib", "mem_per_gpu"), ("gpus", "gpus_per_task")):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ConfigError(
                    "two settings ask for the same thing",
                    where=f"cluster.{second}",
                    got=f"{getattr(self, second)}, with cluster.{first}={getattr(self, first)}",
                    remedy=f"give one of them; cluster.{first}=null takes back that of a preset",
                )
        if self.name != "slurm" and (self.container or self.python):
            raise ConfigError(
                f"cluster={self.name} runs the ranks as this process runs",
                where="cluster.container, cluster.python",
                got=self.container or self.python,
                remedy="start this command in the container or with the other Python, or give "
                "cluster=slurm",
            )
        if self.name == "slurm" and self.time_min is None:
            raise ConfigError(
                "a Slurm job needs a time limit",
                where="cluster.time_min",
                got="nothing",
                remedy="give minutes, as in cluster.time_min=60",
            )
        if self.time_min and self.signal_delay_s >= 60 * self.time_min:
            raise ConfigError(
                "the warning time is not shorter than the time limit",
                where="cluster.signal_delay_s",
                got=f"{self.signal_delay_s}, with cluster.time_min={self.time_min}",
                remedy=f"give a cluster.signal_delay_s below {60 * self.time_min}",
            )
        return self
