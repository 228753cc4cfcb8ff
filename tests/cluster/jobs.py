"""Jobs on the test cluster: submit them, wait for what they do, do things to them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.slurm.squeue import JobState, job_state

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 400.0  # the machine may be busy


@dataclass(frozen=True)
class Job:
    """A job of a run."""

    id: str
    run: Path

    @property
    def log(self) -> str:
        """What the batch script and rank 0 have printed."""
        path = self.run / "logs" / f"{self.id}_0_log.out"
        return path.read_text() if path.exists() else ""

    @property
    def state(self) -> JobState:
        state = job_state(self.id)
        assert state is not None
        return state

    def wait_for(self, name: str) -> None:
        """Wait for a state in Slurm's words; an end in another one is an error."""

        def reached() -> bool:
            state = self.state
            assert state.name == name or not state.ended, f"{state}\n{self.log}"
            return state.name == name

        wait_until(reached, f"{name} of job {self.id}", lambda: f"{self.state}\n{self.log}")

    def end(self) -> JobState:
        """Wait for the end, whatever it is. A job back in the queue is let start at once."""

        def ended() -> bool:
            if self.state.reason == "BeginTime":
                release(self.id)
            return self.state.ended

        wait_until(ended, f"the end of job {self.id}", lambda: f"{self.state}\n{self.log}")
        return self.state

    def wait_for_step(self, step: int) -> None:
        """Wait until the journal has a step's loss."""
        wait_until(
            lambda: any(s >= step for s, _ in losses(self.run)),
            f"step {step}",
            lambda: f"{self.state}\n{self.log}",
            every_s=0.02,  # the job would train on meanwhile
        )

    def ranks(self) -> dict[int, int]:
        """The process of each rank, by rank."""
        pids = {}
        for pid, command, environment in _processes():
            array, task = (environment.get(f"SLURM_ARRAY_{n}_ID") for n in ("JOB", "TASK"))
            job_id = f"{array}_{task}" if array else environment.get("SLURM_JOB_ID")
            is_rank = b"launch.jobs.start" in command and "SLURM_PROCID" in environment
            if is_rank and job_id == self.id:
                pids[int(environment["SLURM_PROCID"])] = pid
        return pids

    def hold(self) -> None:
        """Stop the ranks' clocks: what is done to the job meanwhile finds them at this step."""
        for pid in self.ranks().values():
            os.kill(pid, signal.SIGSTOP)

    def wait_for_signal(self, signum: int) -> None:
        """Wait until a held rank 0 has been sent a signal, or has already heeded it.

        Slurm wakes stopped processes itself before it sends some.
        """
        rank = self.ranks().get(0, 0)
        wait_until(
            lambda: "asked to stop" in self.log or signum in pending_signals(rank),
            f"signal {signum}",
            lambda: self.log,
        )

    def go_on(self) -> None:
        """Let held ranks run; signals that came meanwhile are delivered."""
        for pid in self.ranks().values():
            os.kill(pid, signal.SIGCONT)


Queue = Callable[..., Job]
"""Queues a run; takes its name and more overrides."""


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m launch` to its end."""
    return run(sys.executable, "-m", "launch", *words)


def queue(words: tuple[str, ...], root: Path, name: str) -> Job:
    """`python -m launch train cluster=slurm`, with two ranks on two nodes unless told otherwise."""
    done = launch("train", *words, f"run.root={root}", f"run.name={name}")
    assert done.returncode == 0, done.stderr
    return Job(done.stdout.split()[1].strip(","), root / name)


def queue_stand_in(behaviour: str, root: Path, *words: str) -> Job:
    """Queue a job with a stand-in engine (see `tests.launch.engines`): it starts in a second."""
    words = (*words, "tracking=none", f"run.root={root}", f"run.name={behaviour}")
    code = (
        "from launch import launcher; from launch.jobs.train_job import TrainJob;"
        "from segresmamba.config import load_config;"
        f"launcher.start(TrainJob(load_config({words}), engine='tests.launch.engines'))"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return Job(done.stdout.split()[1].strip(","), root / behaviour)


def run(*command: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, here."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def slurm(*command: str) -> str:
    """Run a command of Slurm; its output."""
    done = run(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def release(job_id: str) -> None:
    """Let a requeued job start at once, which Slurm would make wait for two minutes.

    Not in the second in which it was ended: the nodes would take the new start for the old one.
    """
    time.sleep(2)
    run("scontrol", "update", f"jobid={job_id}", "StartTime=now")


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every training record in the journal, in its order."""
    return [
        (record["step"], record["values"]["train/loss"])
        for record in _journal(run)
        if "train/loss" in record.get("values", ())
    ]


def mlflow_run(root: Path, name: str) -> tuple[str, dict[str, str]]:
    """Status and tags of the one MLflow run of this name."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        ((run_id, status),) = database.execute(
            "SELECT run_uuid, status FROM runs WHERE name = ?", [name]
        ).fetchall()
        tags = database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run_id])
        return status, dict(tags.fetchall())


def wait_until(
    condition: Callable[[], bool],
    what: str,
    why: Callable[[], str] = str,
    *,
    every_s: float = 0.25,  # most conditions start a command of Slurm, which takes a core 9 ms
) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come: {why()}"
        time.sleep(every_s)


def pending_signals(pid: int) -> set[int]:
    """Signals that a stopped process has yet to see; none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return set()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return {n for n in range(1, 65) for mask in masks if mask >> (n - 1) & 1}


def _journal(run: Path) -> list[dict[str, Any]]:
    path = run / "journal.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _processes() -> list[tuple[int, bytes, dict[str, str]]]:
    """Number, command line and environment; without those that end meanwhile."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            pairs = (word.partition("=") for word in words)
            environment = {name: value for name, _, value in pairs}
            found.append((int(entry.name), command, environment))
    return found
