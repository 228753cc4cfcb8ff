"""Which limits end by waiting. The words in `recorded/` are those of a real Slurm 22.05."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.slurm import limits

FakeCommand = Callable[[str, str], None]
RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.parametrize(
    ("reason", "setting", "command"),
    [
        ("AssocMaxWallDurationPerJobLimit", "cluster.time_min", "sacctmgr show assoc"),
        ("QOSMaxWallDurationPerJobLimit", "cluster.time_min", "sacctmgr show qos"),
        ("QOSMaxGRESPerJob", "cluster.gpus_per_node", "sacctmgr show qos"),
        ("AssocMaxCpuMinutesPerJobLimit", "cluster.time_min, times", "sacctmgr show assoc"),
        ("AssocMaxNodePerJobLimit", "cluster.nodes", "sacctmgr show assoc"),
        ("QOSMaxMemoryPerNode", "cluster.memory_gib", "sacctmgr show qos"),
        ("QOSMinGRES", "asks for more: cluster.gpus_per_node", "sacctmgr show qos"),
        ("PartitionTimeLimit", "cluster.time_min", "sinfo"),
        ("AccountNotAllowed", "cluster.account", "scontrol show partition"),
        ("DependencyNeverSatisfied", "the job that it waits for", "squeue --me"),
    ],
)
def test_a_job_that_is_too_large_alone_never_starts(
    reason: str, setting: str, command: str
) -> None:
    verdict = limits.verdict_of(reason)
    assert verdict is not None
    assert verdict.got.startswith(f"{reason}: ")
    assert setting in verdict.got
    assert command in verdict.remedy


@pytest.mark.parametrize(
    "reason",
    ["Priority", "Resources", "BeginTime", "ReqNodeNotAvail", "JobHeldUser", "AssocGrpCpuLimit",
     "AssocMaxJobsLimit", "QOSMaxJobsPerUserLimit", "Dependency", "JobArrayTaskLimit"],
)  # fmt: skip
def test_waiting_may_end_other_reasons(reason: str) -> None:
    assert limits.verdict_of(reason) is None


@pytest.fixture
def slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_command: FakeCommand
) -> Callable[..., None]:
    """A function that lets Slurm answer as recorded, with changed limits, for this reason."""
    monkeypatch.setattr(limits.getpass, "getuser", lambda: "root")
    fake_command("sacctmgr", "exit 1")

    def answer(reason: str, *changes: tuple[str, str], decay: str = "") -> None:
        for name in ("job", "assoc_mgr"):
            text = (RECORDED / f"{name}.txt").read_text()
            for old, new in changes:
                text = text.replace(old, new)
            (tmp_path / name).write_text(text)
        fake_command("squeue", f"echo 'PENDING     {reason}   '")
        fake_command(
            "scontrol",
            f"case $* in *config) echo 'MaxArraySize            = 1001'; echo '{decay}';; "
            f"*assoc_mgr*) cat {tmp_path}/assoc_mgr;; *) cat {tmp_path}/job;; esac",
        )

    return answer


ACCOUNT = "GrpTRES=cpu=8(0)"
MINUTES = "GrpTRESMins=cpu=300(0)"


@pytest.mark.parametrize(
    ("reason", "changes", "said"),
    [
        ("AssocGrpCPUMinutesLimit", [], "cpu=480, account lab has 300 in all (GrpTRESMins)"),
        (
            "AssocGrpCPUMinutesLimit",
            [(MINUTES, "GrpTRESMins=cpu=500(100)")],
            "cpu=480, account lab has 400 in all (GrpTRESMins)",
        ),
        (
            "AssocGrpCpuLimit",
            [(ACCOUNT, "GrpTRES=cpu=7(0)"), (MINUTES, "")],
            "cpu=8, account lab has 7 in all (GrpTRES)",
        ),
        (
            "QOSMaxCpuPerUserLimit",
            [("QOS=normal", "QOS=tiny"), (MINUTES, "")],
            "cpu=8, QOS tiny has 6 in all (GrpTRES)",
        ),
        (
            "AssocMaxJobsLimit",
            [("MaxJobs= ", "MaxJobs=0(0) "), (MINUTES, "")],
            "user root in account lab allows no job (MaxJobs=0)",
        ),
    ],
)
def test_a_job_above_a_limit_of_its_group_never_starts(
    slurm: Callable[..., None], reason: str, changes: list[tuple[str, str]], said: str
) -> None:
    slurm(reason, *changes)
    verdict = limits.hopeless("4711")
    assert verdict is not None
    assert verdict.got.endswith(said)
    assert "sacctmgr show" in verdict.remedy


def test_a_job_that_fits_once_others_have_ended_waits(slurm: Callable[..., None]) -> None:
    slurm("AssocGrpCpuLimit", (ACCOUNT, "GrpTRES=cpu=8(8)"), (MINUTES, ""))
    assert limits.hopeless("4711") is None


def test_used_minutes_that_decay_come_back(slurm: Callable[..., None]) -> None:
    used = (MINUTES, "GrpTRESMins=cpu=500(100)")
    slurm("AssocGrpCPUMinutesLimit", used, decay="PriorityDecayHalfLife   = 7-00:00:00")
    assert limits.hopeless("4711") is None


@pytest.mark.parametrize(
    ("message", "command", "too_many"),
    [
        ("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job "
         "violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
         "sacctmgr show assoc", True),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", "sacctmgr show qos", True),
        ("sbatch: error: AssocGrpSubmitJobsLimit", "sacctmgr show assoc", True),
        ("sbatch: error: Batch job submission failed: Invalid job array specification",
         "scontrol show config", True),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit", "sacctmgr show qos", False),
        ("sbatch: error: Batch job submission failed: Invalid qos specification",
         "sacctmgr show qos", False),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition "
         "combination specified", "sacctmgr show assoc", False),
        ("sbatch: error: invalid partition specified: nope", "sinfo", False),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller "
         "(connect failure)", "scontrol ping", False),
    ],
)  # fmt: skip
def test_a_refusal_names_the_command_that_shows_the_limit(
    message: str, command: str, too_many: bool
) -> None:
    assert command in limits.refusal_remedy(message)
    assert limits.are_too_many(message) is too_many
