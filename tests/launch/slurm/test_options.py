"""What sites ask for besides, in the batch script; and ranks in a container or another Python."""

import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.jobs.slurm import Slurm
from launch.jobs.slurm_executor import rank_executor, share_executor
from launch.jobs.train_job import TrainJob
from launch.slurm import container
from segresmamba.config import load_config
from segresmamba.errors import LaunchError

MakeJob = Callable[..., TrainJob]
FakeCommand = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def _srun_is_asked_again() -> None:
    container._has_pyxis.cache_clear()


def script(job: TrainJob) -> list[str]:
    return Slurm().describe(job).splitlines()


def test_each_setting_is_its_option(make_job: MakeJob) -> None:
    words = [
        *("cluster=slurm", "cluster.gpus=a100:2", "cluster.mem_per_gpu=60G", "cluster.nodelist=n1"),
        *("cluster.exclusive=true", "cluster.reservation=course", "cluster.licenses='m:1'"),
        *("cluster.dependency='afterok:7'", "cluster.comment=mine", "cluster.mail_user=me@lab"),
        *("cluster.sbatch=[--tmp=9G,--spread-job]", "cluster.partition=[a,b]"),
    ]
    options = {line.removeprefix("#SBATCH --") for line in script(make_job("mine", *words))}
    assert options >= {
        *("gpus-per-node=a100:2", "mem-per-gpu=60G", "nodelist=n1", "exclusive", "licenses=m:1"),
        *("reservation=course", "dependency=afterok:7", "comment=mine", "mail-user=me@lab"),
        *("mail-type=END,FAIL", "tmp=9G", "spread-job", "partition=a,b", "requeue"),
    }
    per_task = script(make_job("mine", "cluster=slurm", "cluster.gpus_per_task=1"))
    assert "#SBATCH --gpus-per-task=1" in per_task
    assert not any("--gpus-per-node" in line for line in per_task)


def test_a_job_waits_for_the_launchers_and_for_the_users(tmp_path: Path) -> None:
    words = ["cluster=slurm", "cluster.dependency=afterok:7", "cluster.comment=mine"]
    cluster = load_config(words).cluster
    end = share_executor(cluster, "x", tmp_path, after="5").script()
    assert "#SBATCH --dependency=afterany:5,afterok:7\n" in end
    sweep = rank_executor(cluster, "x", tmp_path, comment="segresmamba sweep /s").script()
    assert "#SBATCH --comment='segresmamba sweep /s'\n" in sweep  # which leads to its jobs


def test_the_nodes_may_have_another_python(make_job: MakeJob) -> None:
    text = Slurm().describe(make_job("mine", "cluster=slurm", "cluster.python=/opt/my env/python"))
    assert "'/opt/my env/python' -u -Pm launch.jobs.start" in text
    assert "'/opt/my env/python' -Pm launch.in_allocation.preflight" in text
    assert sys.executable not in text


def test_a_rank_starts_in_the_container_and_all_else_outside(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    """A stand-in for Apptainer writes its arguments down and runs the command that follows them."""
    log, image, store = tmp_path / "seen", tmp_path / "my image.sif", tmp_path / "store.zarr"
    fake_command(
        "apptainer", f'printf "%s\\n" "$@" > {log}; while [ "$1" != {shlex.quote(str(image))} ]; '
        'do shift; done; shift; exec "$@"',
    )  # fmt: skip
    image.touch()
    words = ["cluster=slurm", f"cluster.container='{image}'", f"cluster.python={sys.executable}"]
    job = make_job("mine", *words, f"data.store={store}", "cluster.binds=[/scratch]")
    text = Slurm().describe(job)
    (line,) = [line for line in text.splitlines() if line.startswith("srun")]
    assert f"{sys.executable} -Pm launch.in_allocation.preflight" in text
    assert "apptainer" not in text.replace(line, "")
    command = "apptainer" + line.partition("apptainer")[2].partition(" -u -Pm")[0]
    answer = subprocess.run(
        f"{command} -c 'import sys; print(sys.executable)'",
        shell=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == sys.executable
    seen = log.read_text().splitlines()
    assert seen[:4] == ["exec", "--nv", "--bind", f"/scratch,{tmp_path},{store}"]
    assert seen[4] == str(image)


def test_where_srun_has_pyxis_it_starts_the_container(
    make_job: MakeJob, tmp_path: Path, fake_command: FakeCommand
) -> None:
    fake_command("srun", "echo '      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH'")
    job = make_job("mine", "cluster=slurm", "cluster.container=lab/segresmamba:1", "data.store=x")
    (line,) = [line for line in script(job) if line.startswith("srun")]
    words = shlex.split(line)
    assert "--container-image=lab/segresmamba:1" in words
    here = Path("x").absolute()
    assert f"--container-mounts={tmp_path}:{tmp_path},{here}:{here}" in words
    assert words[words.index("-u") - 1] == "python"


@pytest.mark.parametrize(
    ("image", "problem"), [("none.sif", "not there"), ("docker://lab/x", "no software")]
)
def test_a_container_that_cannot_run_is_refused_at_submission(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image: str, problem: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=problem):
        Slurm().describe(make_job("mine", "cluster=slurm", f"cluster.container='{image}'"))


def test_a_job_with_a_container_can_be_pickled(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "x.sif").touch()
    job = make_job("mine", "cluster=slurm", f"cluster.container={tmp_path}/x.sif")
    assert pickle.loads(pickle.dumps(job)) == job
