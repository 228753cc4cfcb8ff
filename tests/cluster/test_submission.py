"""Jobs that nothing interrupts, and jobs that Slurm does not take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.slurm.squeue import job_state
from segresmamba.cli.slurm_site import write_preset
from segresmamba.config import read_config
from tests.cluster.conftest import STEPS, Followed
from tests.cluster.jobs import (
    REPOSITORY,
    Job,
    Queue,
    launch,
    losses,
    mlflow_run,
    run,
    slurm,
    wait_until,
)


def test_a_followed_job_shows_its_progress_and_ends_with_its_exit_code(
    reference: Followed, root: Path
) -> None:
    job = reference.job
    assert reference.code == 0, reference.err
    assert reference.out.splitlines() == [
        f"job {job.id}, log {job.run}/logs/{job.id}_0_log.out",
        f"watch and compare: mlflow ui --backend-store-uri sqlite:///{root}/mlflow.db",
    ]
    assert f"job {job.id}: RUNNING" in reference.err
    assert f"step {STEPS}/{STEPS}  loss" in reference.err
    assert reference.err.endswith(f"job {job.id}: COMPLETED\n")
    assert [step for step, _ in losses(job.run)] == list(range(1, STEPS + 1))
    assert mlflow_run(root, "reference")[0] == "FINISHED"
    shown = launch("status", str(job.run)).stdout
    assert shown.split()[:3] == ["finished", "step", f"{STEPS}/{STEPS}"]
    assert shown.endswith(f"{job.run}  job {job.id} COMPLETED\n")


def test_submitting_takes_a_few_seconds(reference: Followed) -> None:
    assert reference.submitted_cpu_s < 6  # of which the check in a process with torch takes most


def test_sbatch_runs_the_same_job_on_what_it_was_granted(
    words: tuple[str, ...], root: Path, tmp_path: Path
) -> None:
    asked = (
        "--nodes=2",
        "--ntasks-per-node=2",
        "--cpus-per-task=1",
        "--time=20",
        "--partition=low",
    )
    script = str(REPOSITORY / "slurm" / "train.sh")
    more = ("train.max_steps=3", "tracking=none", f"run.root={root}", "run.name=batch")
    done = run("sbatch", "--parsable", *asked, script, *words, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    job = Job(done.stdout.strip(), root / "batch")
    assert job.end().exit_code == 0, job.log

    (output,) = tmp_path.glob("slurm-*.out")
    said = output.read_text().removeprefix(
        "checking store, network and patch before anything is started ...\n"  # where it takes long
    )
    assert said == f"log: {job.run}/logs/{job.id}_0_log.out\n"
    assert [step for step, _ in losses(job.run)] == [1, 2, 3]
    cluster = read_config(job.run / "config.yaml").cluster
    assert (cluster.nodes, cluster.tasks_per_node, cluster.cpus_per_task) == (2, 2, 1)
    # From the header, which no flag overrode.
    assert cluster.gpus_per_node == 2
    assert (cluster.time_min, cluster.partition, cluster.account) == (20, "low", "root")
    assert "NumTasks=4" in slurm("scontrol", "show", "job", job.id)
    assert len(list(job.run.glob("logs/*_log.out"))) == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["cluster.partition=nope"], "invalid partition specified: nope"),
        (["cluster.gpus_per_node=3"], "Requested node configuration is not available"),
        (["cluster.partition=short", "cluster.time_min=31"], "PartitionTimeLimit: the partition"),
        (["cluster.account=nobody"], "Invalid account or account/partition combination"),
        (["cluster.account=lab"], "AssocMaxWallDurationPerJobLimit: the limit asks for less"),
    ],
)
def test_a_job_that_can_never_run_is_refused_at_once(
    words: tuple[str, ...],
    tmp_path: Path,
    overrides: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slurm("sacctmgr", "-i", "modify", "user", "root", "where", "account=lab", "set", "maxwall=10")
    # Only Slurm's own refusal matters here, and the check before it imports torch.
    monkeypatch.setattr("launch.__main__.require_trainable", lambda runs: None)
    monkeypatch.setattr(
        sys, "argv", ["launch", "train", *words, f"run.root={tmp_path}", *overrides]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    screen = capsys.readouterr().err
    assert said in screen
    shows = "sacctmgr show assoc" if "account" in overrides[0] else "sinfo -o"
    assert f"remedy: `{shows}" in screen
    assert list(tmp_path.iterdir()) == []
    assert slurm("squeue", "--noheader") == ""


def test_a_run_with_other_settings_is_refused_key_by_key_unless_told(
    reference: Followed, queue_run: Queue, words: tuple[str, ...], root: Path
) -> None:
    changed = ("train.lr=2e-3", "augment.noise_std=0.3")
    done = launch("train", *words, *changed, f"run.root={root}", "run.name=reference")
    assert done.returncode == 2
    assert "got:    augment.noise_std: 0.1 -> 0.3; train.lr: 0.001 -> 0.002\n" in done.stderr
    assert "--allow-config-change" in done.stderr
    assert slurm("squeue", "--noheader") == ""
    # The run has finished: there has to be something left to train.
    more = f"train.max_steps={STEPS + 1}"
    job = queue_run("reference", *changed, more, "--allow-config-change")
    slurm("scancel", job.id)


def test_where_a_job_stands_is_known_with_and_without_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = slurm("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 3")
    job = Job(done.strip(), tmp_path)
    assert job.end().exit_code == 3
    # The database hears of it a moment later than the queue.
    wait_until(lambda: "FAILED" in slurm("sacct", "-X", "-j", job.id), "its record")
    for command in ("squeue", "sacct"):
        only = tmp_path / command
        only.mkdir()
        (only / command).symlink_to(f"/usr/bin/{command}")
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(only))
            state = job.state
        assert (state.name, state.exit_code) == ("FAILED", 3), command
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert job_state(job.id) is None


def test_the_preset_that_doctor_writes_is_what_this_cluster_takes(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    write_preset(tmp_path / "cluster" / "ours.yaml")
    experiment = [word for word in words if not word.startswith("cluster")]
    done = launch("train", "--dry-run", "cluster=ours", f"--config-dir={tmp_path}", *experiment)
    (tmp_path / "job.sh").write_text(done.stdout)
    tried = run("sbatch", "--test-only", str(tmp_path / "job.sh"))
    assert (tried.returncode, "using 8 processors on nodes n1" in tried.stderr) == (0, True)
