"""What clusters do to running jobs; the run goes on as if nothing had been.

The ranks are held (SIGSTOP) at a known step while the cluster does it, so a fast machine cannot
finish first. Slurm's own signals then meet them in the middle of a step.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.cluster import cluster
from tests.cluster.conftest import CHECKPOINT_EVERY, STEPS, Followed
from tests.cluster.jobs import (
    REPOSITORY,
    Job,
    Queue,
    launch,
    losses,
    mlflow_run,
    queue_stand_in,
    run,
    slurm,
    wait_until,
)


def expect_same_curve(job: Job, reference: Followed) -> None:
    """Every step, in order and once, with the losses of the run that nothing interrupted."""
    expected, found = losses(reference.job.run), losses(job.run)
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    assert dict(found) == pytest.approx(dict(expected), abs=1e-5)


def expect_same_curve_but_for_a_gap(job: Job, reference: Followed) -> None:
    """As above, but steps since the last checkpoint were trained twice, to the same losses."""
    expected, found = dict(losses(reference.job.run)), losses(job.run)
    for step, loss in found:
        assert loss == pytest.approx(expected[step], abs=1e-5), step
    assert {step for step, _ in found} == set(expected)
    assert len(found) - len(expected) <= CHECKPOINT_EVERY


def test_a_preempted_run_loses_and_repeats_no_step(
    reference: Followed, queue_run: Queue, root: Path
) -> None:
    job = queue_run("preempted")
    job.wait_for_step(3)
    job.hold()
    slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", "-o/dev/null")
    job.wait_for_signal(signal.SIGTERM)
    job.go_on()
    # Once more, while they save, to everybody: it must do no harm.
    while job.state.name == "RUNNING":
        run("scancel", "--signal=TERM", job.id)  # refused if it has left the nodes by now
        time.sleep(0.1)
    assert job.end().exit_code == 0, job.log

    assert "asked to stop: saved step" in job.log
    assert "continuing from step" in job.log
    assert "Restarts=1" in slurm("scontrol", "show", "job", job.id)
    expect_same_curve(job, reference)
    assert mlflow_run(root, "preempted")[0] == "FINISHED"
    assert not (job.run / "failures.jsonl").exists()


def test_a_run_at_its_time_limit_saves_and_goes_on(words: tuple[str, ...], tmp_path: Path) -> None:
    job = queue_stand_in("preempted_once", tmp_path, *words, "cluster.signal_delay_s=118")
    job.wait_for_ranks()
    ran = re.search(r"RunTime=(\d+):(\d+):", slurm("scontrol", "show", "job", job.id))
    assert ran
    # One or two minutes are left, and so Slurm warns when it next looks.
    limit_min = 60 * int(ran[1]) + int(ran[2]) + 2
    slurm("scontrol", "update", f"jobid={job.id}", f"TimeLimit={limit_min}")
    wait_until((job.run / "saved-0").exists, "the warning", lambda: job.log)
    longer = ("scontrol", "update", f"jobid={job.id}", "TimeLimit=60")
    wait_until(lambda: run(*longer).returncode == 0, "the longer limit", lambda: job.log)
    assert job.end().exit_code == 0, job.log
    assert f"saved at step 7; job {job.id} is queued again" in job.log
    assert '"resumed": true' in (job.run / "found-1.json").read_text()


def test_a_run_that_cannot_save_at_its_time_limit_is_queued_again(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    job = queue_stand_in("started_again", tmp_path, *words, "cluster.signal_delay_s=30")
    job.wait_for_ranks()
    slurm("scontrol", "update", f"jobid={job.id}", "TimeLimit=1")
    wait_until(lambda: job.state.name == "PENDING", "its way back to the queue", lambda: job.log)
    slurm("scontrol", "update", f"jobid={job.id}", "TimeLimit=60")
    assert job.end().exit_code == 0, job.log
    assert "queued again, failure 1 of at most 3" in job.log
    assert "error: the time limit has ended the job before its ranks had saved" in job.log
    assert '"resumed": true' in (job.run / "found-1.json").read_text()


def test_a_preempted_run_goes_on_with_other_ranks_at_another_stage(
    reference: Followed, queue_run: Queue, words: tuple[str, ...], root: Path
) -> None:
    job = queue_run("elastic", "train.zero_stage=2", "tracking=none")
    job.wait_for_step(3)
    job.hold()
    slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", "-o/dev/null")
    job.wait_for_signal(signal.SIGTERM)
    job.go_on()
    wait_until(lambda: job.state.name == "PENDING", "its way back to the queue", lambda: job.log)

    changed = ("cluster.nodes=1", "train.zero_stage=3", "train.accumulation=2", "tracking=none")
    done = launch("train", *words, *changed, f"run.root={root}", "run.name=elastic")
    assert done.returncode == 2
    assert f"got:    job {job.id}: PENDING (BeginTime)" in done.stderr
    slurm("scancel", job.id)
    fewer = queue_run("elastic", *changed)
    assert fewer.end().exit_code == 0, fewer.log
    said = ", written by 2 rank(s) at ZeRO stage 2, on 1 rank(s) at ZeRO stage 3"
    assert said in fewer.log
    found = losses(fewer.run)
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    assert dict(found) == pytest.approx(dict(losses(reference.job.run)), abs=1e-4)


def test_a_killed_rank_is_named_and_costs_at_most_the_checkpoint_interval(
    reference: Followed, queue_run: Queue, root: Path
) -> None:
    job = queue_run("killed_rank")
    job.wait_for_step(CHECKPOINT_EVERY + 2)
    os.kill(job.ranks()[1], signal.SIGKILL)
    # Patience is minutes, and ranks that wait for a dead one do so for an hour.
    wait_until(lambda: job.state.name != "RUNNING", "its stop", lambda: job.log)
    cause = (
        "rank 1 on n2 ended without an error message: Killed; "
        "the kernel does so when memory runs out"
    )
    # Slurm itself may add that it ends the script.
    assert cause in job.log.splitlines()[-2:]
    assert "queued again, failure 1 of at most 3" in job.log
    assert job.end().exit_code == 0, job.log

    expect_same_curve_but_for_a_gap(job, reference)
    status, tags = mlflow_run(root, "killed_rank")
    assert status == "FINISHED"
    assert tags["failure"] == f"rank 1: {cause}"
    (setback,) = map(json.loads, (job.run / "failures.jsonl").read_text().splitlines())
    assert setback["checkpoint"] >= CHECKPOINT_EVERY
    assert setback["step"] >= CHECKPOINT_EVERY + 2


def test_a_run_goes_on_after_a_node_has_failed(words: tuple[str, ...], tmp_path: Path) -> None:
    job = queue_stand_in("started_again", tmp_path, *words)
    job.wait_for_ranks()
    cluster.kill_node("n2")
    slurm("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait_until(lambda: job.state.name != "RUNNING", "its stop", lambda: job.log)
    cluster.start_node("n2")
    # Refused once the node has registered: Slurm then takes it back by itself.
    run("scontrol", "update", "nodename=n2", "state=resume")
    wait_until(
        lambda: "down" not in slurm("sinfo", "-h", "-n", "n2", "-o", "%T"), "the node's return"
    )
    assert job.end().exit_code == 0, job.log
    for rank in range(2):
        assert '"resumed": true' in (job.run / f"found-{rank}.json").read_text()


def test_a_rank_that_dies_while_slurmctld_is_away_is_queued_again_when_it_is_back(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    job = queue_stand_in("stopped", tmp_path, *words)
    job.wait_for_ranks()
    ranks = job.ranks()
    cluster.stop_controller()
    try:
        os.kill(ranks[1], signal.SIGKILL)
        wait_until(lambda: "Killed" in job.log, "srun's message", lambda: job.log)
        time.sleep(5)  # the handler asks in vain by now
    finally:
        cluster.start_controller()
    wait_until(lambda: "queued again, failure 1" in job.log, "its return", lambda: job.log)
    wait_until(lambda: job.state.name == "PENDING", "the queue", lambda: job.log)


def test_a_cancelled_job_saves_and_stays_away(words: tuple[str, ...], tmp_path: Path) -> None:
    job = queue_stand_in("stopped", tmp_path, *words)
    job.wait_for_ranks()
    slurm("scancel", job.id)
    assert job.end().name == "CANCELLED"
    assert (job.run / "saved-0").exists()
    assert (job.run / "saved-1").exists()
    assert job.state.exit_code == 130


def test_a_job_without_environment_that_only_its_script_warns_is_followed_by_another(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    path = f"cluster.setup=['export PYTHONPATH={REPOSITORY}']"
    job = queue_stand_in("preempted_once", tmp_path, *words, path)
    job.wait_for_ranks()
    assert "TimeLimit=01:00:00" in slurm("scontrol", "show", "job", job.id)
    slurm("scontrol", "update", f"jobid={job.id}", "requeue=0")
    slurm("scancel", "--batch", "--signal=USR1", job.id)
    assert job.end().exit_code == 0, job.log
    said = re.search(
        r"saved at step 7, this cluster does not requeue: job (\d+) goes on after this one", job.log
    )
    assert said, job.log
    assert "Traceback" not in job.log
    after = Job(said[1], job.run)
    assert after.end().exit_code == 0, after.log
    assert '"resumed": true' in (job.run / "found-1.json").read_text()


@pytest.mark.parametrize(
    ("behaviour", "starts", "verdict", "last"),
    [
        (
            "raises",
            2,
            "not queued again: failed 2 times in a row at the same step (step 0, with",
            1,
        ),
        (
            "stale",
            2,
            "not queued again: failed 2 times in a row at the same step (step 0, with",
            75,
        ),
        ("refuses", 1, "", 2),
    ],
)
def test_a_failure_that_comes_again_ends_the_job_and_a_mistake_at_once(
    words: tuple[str, ...], tmp_path: Path, behaviour: str, starts: int, verdict: str, last: int
) -> None:
    job = queue_stand_in(behaviour, tmp_path, *words, "cluster.retries=1")
    assert job.end().exit_code == last, job.log
    assert len(re.findall(f"^job {job.id}, start", job.log, re.MULTILINE)) == starts
    assert verdict in job.log
    assert f"rank 1 failed first; its log: {job.run}/logs/{job.id}_1_log.out" in job.log
    ends = {
        "raises": "RuntimeError: the sky is falling",
        "stale": "  remedy: see that the file system and the network answer; the same command then "
        "goes on from the newest checkpoint",
        "refuses": "  remedy: copy anew",
    }
    assert job.log.splitlines()[-1] == ends[behaviour]
    assert ends[behaviour] in (job.run / "failure.txt").read_text()
