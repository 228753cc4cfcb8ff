"""How a job goes on where Slurm may not queue it again; Slurm's commands are stand-ins here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.failures import INTERRUPTED_CODE
from launch.jobs import succession
from launch.slurm import commands

FakeCommand = Callable[[str, str], None]


@pytest.fixture
def logs(tmp_path: Path, fake_command: FakeCommand) -> Path:
    """The logs of job 4711 and of job 3 of array 4800, which may not be queued again."""
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("4711_submission.sh", "4711_submitted.pkl", "4800_submission.sh"):
        (folder / name).write_text("#SBATCH --time=60\n")
    (folder / "4800_3_submitted.pkl").write_text("of the array")
    fake_command("sbatch", f'echo "$*" >> {tmp_path}/asked; echo "4900;cluster"')
    fake_command("scontrol", "echo 'JobState=RUNNING Requeue=0'; [ $1 != requeue ]")
    return folder


def leave(logs: Path, requeue: str, job_id: str = "4711") -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        succession.leave(logs, job_id, requeue, "saved at step 3")
    return caught.value.code


@pytest.mark.parametrize(
    ("requeue", "why"),
    [("auto", "this cluster does not requeue"), ("chain", "cluster.requeue=chain")],
)
def test_a_job_that_may_not_be_queued_again_queues_one_after_it(
    logs: Path, requeue: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave(logs, requeue) == 0
    assert capsys.readouterr().err == (f"saved at step 3, {why}: job 4900 goes on after this one\n")
    script = logs / "4711_submission.sh"
    asked = f"--parsable --dependency=afterany:4711 {script}\n"
    assert (logs.parent / "asked").read_text() == asked
    assert (logs / "4900_submitted.pkl").read_text() == "#SBATCH --time=60\n"
    assert succession.newest(logs, "4711") == "4900"
    assert succession.is_settled(logs, "4711")
    assert succession.line_of(logs, "4900") == {"4711", "4900"}
    # A rank that dies at its very end queues no second one.
    assert succession.queue_successor(logs, "4711") == "4900"
    assert (logs.parent / "asked").read_text() == asked


def test_a_job_of_an_array_is_followed_by_one_with_its_number(logs: Path) -> None:
    assert leave(logs, "auto", "4800_3") == 0
    assert "--dependency=afterany:4800_3 --array=3 " in (logs.parent / "asked").read_text()
    assert succession.successor(logs, "4800_3") == "4900_3"
    assert (logs / "4900_3_submitted.pkl").read_text() == "of the array"
    assert (logs / "4900_submission.sh").exists()


def test_never_means_that_the_user_decides(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(logs, "never") == INTERRUPTED_CODE
    said = capsys.readouterr().err
    assert said.startswith("saved at step 3, the job is not queued again: cluster.requeue=never\n")
    assert "the same command goes on" in said
    assert not (logs.parent / "asked").exists()
    assert succession.is_settled(logs, "4711")
    assert succession.successor(logs, "4711") is None
    succession.forget(logs, "4711")
    assert not succession.is_settled(logs, "4711")


def test_a_refused_requeue_is_no_failure(
    logs: Path, fake_command: FakeCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    assert leave(logs, "slurm") == INTERRUPTED_CODE
    assert "does not queue the job again: Requested operation is" in capsys.readouterr().err
    fake_command("sbatch", "echo 'sbatch: error: not from here' >&2; exit 1")
    assert leave(logs, "chain") == INTERRUPTED_CODE
    assert "sbatch: error: not from here" in capsys.readouterr().err


AWAY = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


def test_a_job_that_goes_on_is_queued_when_slurm_answers_again(
    logs: Path, fake_command: FakeCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "RETRY_S", 0.0)
    asked = logs.parent / "asked"
    fake_command("sbatch", f"echo x >> {asked}; [ $(wc -l < {asked}) -gt 2 ] || "
                 f"{{ echo '{AWAY}' >&2; exit 1; }}; echo 4900")  # fmt: skip
    fake_command("squeue", "echo '4701|(null)|/elsewhere.sh'")
    assert leave(logs, "chain") == 0
    assert asked.read_text() == "x\n" * 3
    assert succession.successor(logs, "4711") == "4900"


def test_a_job_that_slurm_has_taken_without_an_answer_is_not_queued_twice(
    logs: Path, fake_command: FakeCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "RETRY_S", 0.0)
    asked, script = logs.parent / "asked", logs / "4711_submission.sh"
    fake_command("sbatch", f"echo x >> {asked}; echo '{AWAY}' >&2; exit 1")
    fake_command("squeue", f"echo '4900|afterany:4711(unfulfilled)|{script}'")
    assert leave(logs, "chain") == 0
    assert asked.read_text() == "x\n"
    assert succession.successor(logs, "4711") == "4900"


def test_where_slurm_may_queue_it_again_it_does(logs: Path, fake_command: FakeCommand) -> None:
    fake_command("scontrol", f"echo $* >> {logs.parent}/told; echo 'JobState=RUNNING Requeue=1'")
    assert leave(logs, "auto") == 255
    assert (logs.parent / "told").read_text() == "show job 4711\nrequeue 4711\n"
    assert not succession.is_settled(logs, "4711")
