"""Who may write a job's pickle may run code, so a rank reads none of another user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths

from launch.failures import failure_path
from launch.in_allocation import on_failure, preflight
from launch.jobs import start
from launch.jobs.rank import load_job
from segresmamba.errors import LaunchError

Owner = Callable[[int], None]


def owned_by(user: int, real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
    """`Path.stat` or `Path.lstat` on a file system where all pickles belong to a user."""

    def fake(path: Path, **options: bool) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result((*found[:4], user, *found[5:10])) if path.suffix == ".pkl" else found

    return fake


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Owner:
    """A function that makes all pickles those of a user, for a process of user 1000."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def belong_to(user: int) -> None:
        for name in ("stat", "lstat"):
            monkeypatch.setattr(Path, name, owned_by(user, getattr(Path, name)))

    return belong_to


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The logs of job 4711, whose pickle makes a file when it is read and when it is called."""
    for name, value in {"EXECUTOR": "local", "LOCAL_JOB_ID": "4711"}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    for name in ("GLOBALID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", "0")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    job = DelayedSubmission(Trace(tmp_path / "ran"))
    job.dump(JobPaths(tmp_path, job_id="4711").submitted_pickle)
    (tmp_path / "ran").unlink(missing_ok=True)
    return tmp_path


class Trace:
    """A job that leaves a file as soon as it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.file = state["file"]
        self.file.touch()

    def __call__(self) -> str:
        """What a rank runs."""
        return "done"


@pytest.mark.parametrize("user", [0, 1000])
def test_a_job_of_ours_or_of_root_is_read(owner: Owner, logs: Path, user: int) -> None:
    owner(user)
    assert load_job(logs, "4711")() == "done"
    assert (logs / "ran").exists()


def test_a_job_of_another_user_is_refused_unread(owner: Owner, logs: Path) -> None:
    owner(4711)
    with pytest.raises(LaunchError) as error:
        load_job(logs, "4711")
    assert error.value.where == str(logs / "4711_submitted.pkl")
    assert error.value.got == "user 4711; this job runs as user 1000"
    assert not (logs / "ran").exists()


@pytest.fixture
def _process_of_its_own() -> Iterator[None]:
    """As if `on_failure.main`, which ignores a signal for good, ran in a process of its own."""
    before = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.usefixtures("_process_of_its_own")
@pytest.mark.parametrize(
    ("main", "more"), [(start.main, []), (preflight.main, []), (on_failure.main, ["1"])]
)
def test_whatever_reads_jobs_ends_with_one_screen(
    owner: Owner,
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[[], None],
    more: list[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", str(logs), *more])
    owner(4711)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    screen = capsys.readouterr().err
    assert "error: the pickle of a job belongs to another user" in screen
    assert "Traceback" not in screen
    assert not (logs / "ran").exists()
    if main is start.main:
        failure = json.loads(failure_path(logs, "4711", 0).read_text())
        assert failure["exit_code"] == 2


def test_a_link_of_another_user_is_refused_even_if_it_leads_to_a_file_of_ours(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Path, "stat", owned_by(1000, Path.stat))
    monkeypatch.setattr(Path, "lstat", owned_by(4711, Path.lstat))
    with pytest.raises(LaunchError, match="another user"):
        load_job(logs, "4711")


def test_a_file_of_the_user_is_not_taken_for_this_package(tmp_path: Path) -> None:
    """Ranks start in the folder of the submission, which may have a launch.py."""
    (tmp_path / "launch.py").write_text("raise SystemExit('the wrong launch')")
    command = start.rank_command(f"{sys.executable} -u -m submitit.core._submit {tmp_path}")
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "the wrong launch" not in done.stderr
    assert "submitit" in done.stderr  # which misses its job
