"""A sweep that is larger than Slurm's limits; sbatch and scontrol are stand-ins here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.run_state import QUEUED, WAITING
from launch.slurm.commands import SlurmAwayError
from launch.sweeps import parts
from launch.sweeps.run import run_sweep
from launch.sweeps.sweep import Sweep
from segresmamba.config import load_config
from segresmamba.errors import ConfigError, LaunchError

FakeCommand = Callable[[str, str], None]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    words = ["cluster=slurm", "data=custom", "data.store=x", "seed=range(0,7)"]
    return Sweep.from_overrides([*words, f"run.root={tmp_path}"], "s")


@pytest.fixture
def slurm(tmp_path: Path, fake_command: FakeCommand) -> Callable[..., None]:
    """A function that lets sbatch take so many jobs at once; their numbers count from 100."""
    # All jobs that are asked for wait.
    fake_command(
        "squeue",
        "[ $3 = --states=all ] || exit 0; for job in $(echo ${4#*=} | tr , ' '); do "
        "echo $job PENDING 0 None; done",
    )
    fake_command("srun", "true")
    fake_command("scancel", f'echo "scancel $*" >> {tmp_path}/told')
    fake_command(
        "scontrol",
        f'[ $2 = config ] && echo "MaxArraySize = 5" || echo "$*" >> {tmp_path}/told',
    )

    def take(most: int, message: str) -> None:
        count = f"{tmp_path}/count"
        fake_command(
            "sbatch",
            f"last=$(sed -n 's/.*--array=0-\\([0-9]*\\)%.*/\\1/p' $1); "
            f"[ ${{last:-0}} -lt {most} ] || {{ echo 'sbatch: error: {message}' >&2; exit 1; }}; "
            f"echo x >> {count}; echo Submitted batch job $((99 + $(wc -l < {count})))",
        )

    return take


def queued(sweep: Sweep) -> list[str | None]:
    return [trial.job for trial in sweep.trials]


def test_a_sweep_that_fits_is_one_array(slurm: Callable[..., None], sweep: Sweep) -> None:
    slurm(7, "")
    parts.queue(sweep.trials, sweep, 2)
    assert queued(sweep) == [f"100_{number}" for number in range(7)]


@pytest.mark.parametrize(
    ("message", "first"),
    [("Invalid job array specification", 5), ("AssocMaxSubmitJobLimit", 3)],
)
def test_a_larger_one_is_queued_in_parts(
    slurm: Callable[..., None], sweep: Sweep, tmp_path: Path, message: str, first: int
) -> None:
    slurm(5, message)
    sweep.write()
    parts.queue(sweep.trials, sweep, 2)
    # The small job is queued first, so that the array cannot take its place in the queue.
    assert queued(sweep) == [f"101_{n}" for n in range(first)] + [None] * (7 - first)
    told = (tmp_path / "told").read_text().splitlines()
    assert told == ["update jobid=100 dependency=afterany:101", "release 100"]

    # That is what the small job does.
    rest = tuple(range(first, 7))
    parts.NextPart(sweep.folder, rest, 2)()
    sweep = Sweep.read(sweep.folder)
    states = [trial.state for trial in sweep.trials]
    assert states == [QUEUED] * 7
    assert queued(sweep)[first:] == [f"102_{n}" for n in range(len(rest))]


def test_trials_that_others_have_queued_meanwhile_are_left_to_them(
    slurm: Callable[..., None], sweep: Sweep, tmp_path: Path
) -> None:
    slurm(7, "")
    sweep.write()
    parts.queue(sweep.trials, sweep, 2)
    parts.NextPart(sweep.folder, (5, 6), 2)()
    assert (tmp_path / "count").read_text() == "x\n"


def test_a_trial_whose_run_a_single_job_trains_is_left_to_it(
    slurm: Callable[..., None], sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm(7, "")
    sweep.write()
    logs = sweep.trials[3].folder.logs
    logs.mkdir(parents=True)
    (logs / "42_submitted.pkl").touch()
    assert run_sweep(sweep, None) == 0
    assert queued(sweep) == ["100_0", "100_1", "100_2", None, "100_3", "100_4", "100_5"]
    assert "trial 3 is left to job 42: PENDING\n" in capsys.readouterr().err


AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


def test_while_slurm_does_not_answer_no_trial_is_queued_a_second_time(
    slurm: Callable[..., None], sweep: Sweep, tmp_path: Path, fake_command: FakeCommand
) -> None:
    slurm(7, "")
    sweep.write()
    parts.queue(sweep.trials, sweep, 2)
    fake_command("squeue", f"echo '{AWAY}' >&2; exit 1")
    fake_command("sacct", "exit 1")
    with pytest.raises(SlurmAwayError):
        run_sweep(Sweep.read(sweep.folder), None)
    assert (tmp_path / "count").read_text() == "x\n"
    assert queued(Sweep.read(sweep.folder)) == [f"100_{number}" for number in range(7)]


def test_the_small_job_waits_until_slurm_answers(
    slurm: Callable[..., None],
    sweep: Sweep,
    tmp_path: Path,
    fake_command: FakeCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slurm(7, "")
    sweep.write()
    command = tmp_path / "bin" / "squeue"
    answering = command.read_text()
    fake_command("squeue", f"echo '{AWAY}' >&2; exit 1")
    pauses: list[float] = []

    def back(pause_s: float) -> None:
        pauses.append(pause_s)
        command.write_text(answering)

    monkeypatch.setattr(parts.time, "sleep", back)
    parts.NextPart(sweep.folder, (5, 6), 2)()
    assert pauses == [60.0]
    assert queued(Sweep.read(sweep.folder))[5:] == ["100_0", "100_1"]


def test_a_limit_without_room_for_one_trial_and_the_next_job_is_an_error(
    slurm: Callable[..., None], sweep: Sweep, tmp_path: Path
) -> None:
    slurm(0, "AssocMaxSubmitJobLimit")
    with pytest.raises(LaunchError, match="takes no more jobs of yours") as caught:
        parts.queue(sweep.trials, sweep, 2)
    assert "sacctmgr show assoc" in caught.value.remedy
    assert {trial.state for trial in sweep.trials} == {WAITING}
    assert not (tmp_path / "told").exists()


def test_the_small_job_has_the_resources_that_a_site_wants_for_it(
    slurm: Callable[..., None], tmp_path: Path
) -> None:
    words = ["cluster=slurm", "cluster.partition=gpu", "cluster.gpus_per_node=4", "cluster.qos=big"]
    words += ["cluster.next_part={partition: cpu, gpus_per_node: 1}", f"run.root={tmp_path}"]
    words += ["data=custom", "data.store=x", "seed=range(0,7)"]
    sweep = Sweep.from_overrides(words, "s")
    slurm(5, "AssocMaxSubmitJobLimit")
    parts.queue(sweep.trials, sweep, 2)
    script = (sweep.folder / "jobs" / "100_submission.sh").read_text().splitlines()
    asked = {"--partition=cpu", "--qos=big", "--gpus-per-node=1", "--time=30"}
    assert {f"#SBATCH {option}" for option in asked} <= set(script)


@pytest.mark.parametrize("value", ["{nodes: 2}", "{qos: [1]}"])
def test_what_the_small_job_cannot_have_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="next_part"):
        load_config(["cluster=slurm", "data=custom", "data.store=x", f"cluster.next_part={value}"])
