"""What a submission keeps from sbatch and from the job."""

import os

import pytest

from launch.slurm import environment

SCRIPT = "#!/bin/bash\n#SBATCH --partition=low\n#SBATCH --mem=2G\n#SBATCH --requeue\nsrun x\n"


@pytest.fixture(autouse=True)
def _no_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH_", "SRUN_"))]:
        monkeypatch.delenv(name)


def test_what_describes_the_outer_job_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    found = environment.variables_of(SCRIPT)
    with environment.without(found.left_out):
        assert {name for name in os.environ if name.startswith("SLURM")} == {"SLURM_CONF"}
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert os.environ["SLURM_MEM_PER_CPU"] == "1"
    assert found.notes == []


def test_outside_a_job_slurms_variables_are_what_the_user_wants_of_srun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CPU_BIND", "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert environment.variables_of(SCRIPT).left_out == []


@pytest.mark.parametrize(
    ("name", "is_left_out"),
    [
        ("SBATCH_PARTITION", True),
        ("SBATCH_MEM_PER_CPU", True),  # another way to say --mem
        ("SBATCH_NO_REQUEUE", True),
        ("SBATCH_ARRAY_INX", True),
        ("SBATCH_WAIT", True),
        ("SBATCH_TIMELIMIT", False),  # this script says nothing about the time
        ("SBATCH_RESERVATION", False),
    ],
)
def test_the_script_wins_over_the_users_shell_and_both_are_said(
    monkeypatch: pytest.MonkeyPatch, name: str, is_left_out: bool
) -> None:
    monkeypatch.setenv(name, "7")
    found = environment.variables_of(SCRIPT)
    assert found.left_out == [name] * is_left_out
    (note,) = found.notes
    assert note.startswith(f"{name}=7 of your shell {'is left out' if is_left_out else 'holds'}")


def test_what_changes_no_request_is_not_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    assert environment.variables_of(SCRIPT) == environment.Variables([], [])
