"""Submission to Slurm, up to sbatch; `sbatch` itself is a stand-in here."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from launch.__main__ import main
from launch.jobs import slurm, submission
from launch.jobs.slurm import Slurm
from launch.jobs.slurm_executor import rank_executor, share_executor
from launch.jobs.submission import make_logs, submit_array
from launch.jobs.train_job import TrainJob
from launch.launcher import run_in_allocation, start
from launch.slurm import allocation, squeue
from launch.slurm.commands import SlurmAwayError
from segresmamba.config import load_config, read_config
from segresmamba.errors import ConfigError, LaunchError
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking.journal import Journal
from tests.launch.conftest import REPOSITORY

MakeJob = Callable[..., TrainJob]
FakeCommand = Callable[[str, str], None]
GOLDEN = Path(__file__).parent / "golden" / "train.sh"
BIG = [
    "cluster=slurm",
    "cluster.nodes=4",
    "cluster.tasks_per_node=8",
    "cluster.gpus_per_node=8",
    "cluster.memory_gib=900",
    "cluster.partition=gpu",
    "cluster.account=a1",
    "cluster.constraint=h100",
    "cluster.qos=long",
    "cluster.time_min=600",
    "cluster.exclude=gpu13",
    "cluster.interface=ib0",
    "cluster.env={NCCL_DEBUG:WARN,OMP_PLACES:'{0:4}',NCCL_IB_TIMEOUT:22}",
    "cluster.srun=['--cpu-bind=verbose,cores','--gpu-bind=closest']",
    "cluster.setup=['module load cuda']",
    "train.batch_size=32",
]


def normalised(script: str, root: Path) -> str:
    """The script with this machine's folders and interpreter by name."""
    return script.replace(sys.executable, "PYTHON").replace(str(root), "ROOT")


def test_the_sbatch_script_is_the_golden_one(make_job: MakeJob, tmp_path: Path) -> None:
    script = Slurm().describe(make_job("big", *BIG))
    assert normalised(script, tmp_path) == GOLDEN.read_text()
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_exactly_what_a_submission_hands_to_sbatch(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("sbatch", f"cp $1 {tmp_path}/submitted; echo Submitted batch job 4711")
    job = make_job("big", *BIG)
    assert start(job) == 0
    assert (tmp_path / "submitted").read_text() == Slurm().describe(job)


def test_a_dry_run_names_what_the_users_shell_adds(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Slurm().describe(make_job("big", *BIG))
    monkeypatch.setenv("SBATCH_RESERVATION", "mine")
    assert Slurm().describe(make_job("big", *BIG)) == (
        f"{script}\n# SBATCH_RESERVATION=mine of your shell holds for the job, beside cluster.*\n"
    )


def test_describing_a_job_changes_neither_the_executor_nor_what_it_submits(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("sbatch", f"cp $1 {tmp_path}/submitted; echo Submitted batch job 4711")
    fake_command("srun", "exit 1")  # submitit looks for it before it makes an array
    job = make_job("mine", "cluster=slurm")
    executor = rank_executor(job.config.cluster, "mine", tmp_path / "logs", most=2)
    before = copy.deepcopy(executor.parameters)
    array, single = executor.script(3), executor.script()
    assert "#SBATCH --array=0-2%2\n" in array
    assert "--array" not in single
    assert (executor.script(3), executor.script()) == (array, single)
    assert executor.parameters == before
    submit_array(executor, [job])
    assert (tmp_path / "submitted").read_text() == single
    submit_array(executor, [job, job, job])
    assert (tmp_path / "submitted").read_text() == array
    assert executor.parameters == before


def test_a_queued_job_is_announced_with_its_log(
    make_job: MakeJob,
    tmp_path: Path,
    fake_command: FakeCommand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    start(make_job("mine", "cluster=slurm"))
    assert capsys.readouterr().out.splitlines() == [
        f"job 4711, log {tmp_path}/mine/logs/4711_0_log.out",
        f"watch and compare: mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db",
    ]
    assert (tmp_path / "mine/logs/4711_submitted.pkl").exists()


def test_submitting_imports_nothing_heavy(
    tmp_path: Path, tiny_store: Path, fake_command: FakeCommand
) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    words = ["train", "cluster=slurm", f"run.root={tmp_path}", "model.dims=[8,8]"]
    words += ["data=custom", f"data.store={tiny_store}", "data.patch=[36,36,36]"]
    code = f"from launch.__main__ import app; app({words})"
    check = (
        "import atexit, sys; atexit.register(lambda: print(sorted("
        "{'torch', 'deepspeed', 'mlflow', 'monai', 'codecarbon'} & set(sys.modules))));"
    )
    command = [sys.executable, "-c", check + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("job 4711, log ")
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_slurm_says_to_a_refused_job_is_shown(
    make_job: MakeJob,
    tmp_path: Path,
    fake_command: FakeCommand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_command("sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    with pytest.raises(LaunchError, match="refused") as caught:
        start(make_job("mine", "cluster=slurm", "cluster.partition=nope"))
    assert caught.value.got == "sbatch: error: invalid partition specified: nope"
    assert "sinfo" in caught.value.remedy
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "mine").exists()


def test_a_refused_job_leaves_earlier_jobs_of_the_run_alone(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    start(make_job("mine", "cluster=slurm"))
    before = set((tmp_path / "mine" / "logs").iterdir())
    fake_command("sbatch", "exit 1")
    with pytest.raises(LaunchError, match="refused"):
        start(make_job("mine", "cluster=slurm"))
    assert set((tmp_path / "mine" / "logs").iterdir()) == before


def test_a_run_whose_job_waits_to_go_on_gets_no_second_one(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    start(make_job("mine", "cluster=slurm"))
    fake_command("squeue", "echo 4711 PENDING BeginTime")
    with pytest.raises(LaunchError, match="has a job already") as caught:
        start(make_job("mine", "cluster=slurm", "cluster.tasks_per_node=1"))
    assert caught.value.got == "job 4711: PENDING (BeginTime)"
    assert "scancel 4711" in caught.value.remedy
    fake_command("squeue", "exit 1")
    assert start(make_job("mine", "cluster=slurm")) == 0
    # The pickle of a trial's job is in the folder of its sweep; the run has a link to the log.
    (tmp_path / "mine/logs/4800_3_0_log.out").symlink_to("../../sweeps/s/jobs/4800_3_0_log.out")
    fake_command("squeue", "case $2 in *4800_3*) echo 4800_3 PENDING None; esac")
    with pytest.raises(LaunchError, match="has a job already"):
        start(make_job("mine", "cluster=slurm"))


AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


def test_a_run_gets_no_job_while_slurm_does_not_say_whether_it_has_one(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    start(make_job("mine", "cluster=slurm"))
    fake_command("sbatch", f"touch {tmp_path}/again; echo Submitted batch job 4712")
    fake_command("squeue", f"echo '{AWAY}' >&2; exit 1")
    with pytest.raises(SlurmAwayError, match="does not answer"):
        start(make_job("mine", "cluster=slurm"))
    assert not (tmp_path / "again").exists()


def test_a_submission_without_an_answer_leaves_no_job(
    make_job: MakeJob,
    tmp_path: Path,
    fake_command: FakeCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submission, "RETRY_S", 0.0)
    # Slurm takes the job, but too late for sbatch and for the first look at the queue.
    fake_command(
        "sbatch",
        f"echo $1 > {tmp_path}/taken; "
        "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1",
    )
    fake_command(
        "squeue",
        f"[ -e {tmp_path}/looked ] || {{ touch {tmp_path}/looked; exit 0; }}; "
        f"printf '4711|(null)|%s\\n12|(null)|/x.sh\\n' $(cat {tmp_path}/taken)",
    )
    fake_command("scancel", f"echo $* >> {tmp_path}/cancelled")
    with pytest.raises(SlurmAwayError, match="give the same command again"):
        start(make_job("mine", "cluster=slurm"))
    assert (tmp_path / "cancelled").read_text() == "4711\n"
    assert not (tmp_path / "mine").exists()
    fake_command("squeue", f"echo '{AWAY}' >&2; exit 1")
    with pytest.raises(SlurmAwayError, match="may have taken the job"):
        start(make_job("mine", "cluster=slurm"))


def test_a_batch_job_on_a_run_that_another_job_holds_ends_at_once(
    make_job: MakeJob,
    tmp_path: Path,
    fake_command: FakeCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    start(make_job("mine", "cluster=slurm"))
    fake_command("squeue", 'echo "$*" | grep -q 4711 && echo 4711 RUNNING None')
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    with pytest.raises(LaunchError, match="has a job already"):
        run_in_allocation(make_job("mine", "cluster=slurm"))

    def go_on(logs: Path) -> NoReturn:
        raise SystemExit

    # Requeued, a job finds itself.
    monkeypatch.setattr(slurm, "make_logs", go_on)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with pytest.raises(SystemExit):
        run_in_allocation(make_job("mine", "cluster=slurm"))


def test_a_machine_without_sbatch_is_told_where_to_go(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no sbatch") as caught:
        start(make_job("mine", "cluster=slurm"))
    assert "login node" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_written_is_named(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    (tmp_path / "mine").write_text("a file is in the way")
    with pytest.raises(LaunchError, match="cannot be written"):
        start(make_job("mine", "cluster=slurm"))


def test_a_job_that_would_wait_for_ever_is_taken_back(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("sbatch", "echo Submitted batch job 4711")
    fake_command("squeue", "echo 'PENDING     PartitionTimeLimit    '")
    fake_command("scancel", f"echo $* > {tmp_path}/cancelled")
    with pytest.raises(LaunchError, match="waited for ever") as caught:
        start(make_job("mine", "cluster=slurm"))
    assert (
        caught.value.got == "PartitionTimeLimit: the partition allows less time: cluster.time_min"
    )
    assert (tmp_path / "cancelled").read_text() == "4711\n"
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("limit", "minutes", "delay"),
    [
        ("1-06:30:00", 1830, []),
        ("00:20:30", 21, []),
        ("00:01:00", 1, ["cluster.signal_delay_s=30"]),
        ("UNLIMITED", squeue.UNLIMITED_MIN, []),
    ],
)
def test_what_was_granted_is_the_configurations(
    monkeypatch: pytest.MonkeyPatch,
    fake_command: FakeCommand,
    limit: str,
    minutes: int,
    delay: list[str],
) -> None:
    fake_command("scontrol", f"echo '   RunTime=00:00:03 TimeLimit={limit} TimeMin=N/A'")
    for name, value in {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_JOB_PARTITION": "gpu",
        "SLURM_JOB_ACCOUNT": "a1",
        "SLURM_JOB_QOS": "long",
        "SLURM_MEM_PER_NODE": "2500",
    }.items():
        monkeypatch.setenv(name, value)
    words = allocation.overrides()
    assert words == [
        "cluster=slurm",
        *delay,
        "cluster.nodes=2",
        "cluster.tasks_per_node=4",
        "cluster.cpus_per_task=6",
        "cluster.gpus_per_node=0",
        "cluster.partition=gpu",
        "cluster.account=a1",
        "cluster.qos=long",
        "cluster.memory_gib=3",
        f"cluster.time_min={minutes}",
        "cluster.gpus=null",
        "cluster.gpus_per_task=null",
    ]
    assert load_config([*words, "train.batch_size=8"]).cluster.time_min == minutes


def command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    """Run `python -m launch`; its exit code."""
    monkeypatch.setattr(sys, "argv", ["launch", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_outside_an_allocation_the_batch_body_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert command_line(monkeypatch, "train", "--in-allocation") == 2
    assert "remedy: sbatch slurm/train.sh" in capsys.readouterr().err


def test_a_mistake_is_one_screen_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(monkeypatch, "train", "train.lrr=1") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown key\n  where:  train.lrr\n  got:    1\n  remedy: ")


def everything_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("words", [["cluster=slurm"], ["cluster=debug"], ["--in-allocation"], []])
def test_a_run_that_has_finished_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    fake_command: FakeCommand,
    words: list[str],
) -> None:
    fake_command("scontrol", "echo '   RunTime=00:00:03 TimeLimit=UNLIMITED TimeMin=N/A'")
    for name in ("JOB_ID", "JOB_NUM_NODES", "NTASKS_PER_NODE", "CPUS_PER_TASK"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    settings = [
        f"run.root={tmp_path / 'runs'}",
        "run.name=mine",
        "train.max_steps=7",
        "train.warmup_steps=0",
    ]
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.enter(load_config(settings))
    for path in (folder.validation(7), folder.best):
        path.parent.mkdir(parents=True)
        path.touch()
    journal = Journal(folder.journal, name="mine")
    journal.append("status", status="finished")
    journal.close()
    before = everything_in(folder.path)
    # Without words: the folder alone is named.
    command = ["train", *settings, *words] if words else ["resume", str(folder.path)]
    assert command_line(monkeypatch, *command) == 0
    assert capsys.readouterr().out.startswith(f"{folder.path} has finished at step 7, and nothing")
    assert everything_in(folder.path) == before
    assert command_line(monkeypatch, "train", *settings, "train.lr=1") == 2
    assert "--allow-config-change" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
def test_a_dry_run_on_this_machine_says_what_would_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [f"run.root={tmp_path}", "run.name=mine", "cluster.tasks_per_node=2"]
    assert command_line(monkeypatch, "train", "--dry-run", *words) == 0
    assert capsys.readouterr().out == f"cluster=local: 2 rank(s) here, {tmp_path}/mine\n"
    assert list(tmp_path.iterdir()) == []


def test_the_batch_script_parses_and_asks_for_what_the_preset_asks() -> None:
    script = REPOSITORY / "slurm" / "train.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    header = {
        line.removeprefix("#SBATCH --")
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    }
    preset = {
        line.removeprefix("#SBATCH --")
        for line in Slurm().describe(TrainJob(load_config(["cluster=slurm"]))).splitlines()
        if line.startswith("#SBATCH") and "logs" not in line and "job-name" not in line
    }
    minutes = {"time=1440": "time=24:00:00"}
    assert {minutes.get(option, option) for option in preset} <= header


KEYS = ["partition", "account", "constraint", "qos", "exclude", "interface"]


@pytest.mark.parametrize("key", [*(f"cluster.{name}" for name in KEYS), "run.root"])
@pytest.mark.parametrize("end", ["\n", "\r", "\u2028", "\x85", "\0", "\x1b[2K"])
def test_a_setting_that_would_end_its_line_of_the_script_is_refused(
    tmp_path: Path, key: str, end: str
) -> None:
    values = load_config(["cluster=slurm"]).model_dump(mode="json")
    section, name = key.split(".")
    values[section][name] = text = f"x{end}touch owned"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path / "config.yaml")
    assert key in error.value.where
    assert error.value.got == repr(text)


def test_a_folder_that_would_end_its_line_of_the_script_is_refused(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A relative root is read in a folder whose own name is like that, or a store has such a name.
    folder = tmp_path / "here\ntouch owned"
    folder.mkdir()
    monkeypatch.chdir(folder)
    job = make_job("mine", "cluster=slurm", "run.root=runs")
    with pytest.raises(ConfigError, match="line break"):
        Slurm().describe(job)
    with pytest.raises(ConfigError, match="line break"):
        share_executor(job.config.cluster, "convert-a\nb", tmp_path)
    assert list(folder.iterdir()) == []


def test_a_run_folder_of_another_user_is_refused_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(LaunchError, match="cannot be written") as refusal:
        make_logs(tmp_path / "logs")
    assert refusal.value.got == "Permission denied"
    assert "umask 002" in refusal.value.remedy
