"""What preflight makes of the nodes' reports; the nodes themselves are in tests/cluster."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch.in_allocation import preflight
from launch.in_allocation.preflight import problems
from launch.slurm import probe
from launch.slurm.probe import NodeReport
from segresmamba.config import Config, load_config
from segresmamba.errors import LaunchError, PassingError
from tests.launch.conftest import REPOSITORY

GOOD = NodeReport(
    host="gpu07",
    time_s=1000.0,
    gpus=2,
    gpu_error="",
    torch_error="",
    gpu_memory_gib=40.0,
    memory_gib=64.0,
    shm_gib=32.0,
    shared=True,
    write_error="",
    store_error="",
    gpu_name="H200",
    python="Python 3.11.7, torch 2.13.0",
    package="/lab/segresmamba",
)


@pytest.fixture
def config() -> Config:
    return load_config(["cluster=slurm", "data.workers=4", "data.patch=[128,128,128]"])


def test_a_good_node_has_no_problems(config: Config) -> None:
    assert list(problems(config, [GOOD, GOOD], 999.0, 1001.0)) == []


@pytest.mark.parametrize(
    ("change", "problem", "got", "remedy"),
    [
        ({"shared": False}, "not shared between the nodes", "gpu07 does not see", "run.root="),
        ({"write_error": "Disk quota exceeded"}, "cannot be written", "quota", "writable"),
        ({"store_error": "No such file"}, "store cannot be read", "No such file", "full path"),
        ({"gpu_error": "GPU is lost"}, "do not answer", "lost", "cluster.exclude=gpu07"),
        ({"torch_error": "torch sees 0 of 2 GPUs"}, "train on the CPU", "0 of 2", "driver"),
        ({"gpus": 1}, "more ranks than GPUs", "2 ranks, 1 GPUs", "gpus_per_node"),
        ({"memory_gib": 2.0}, "too little memory", "2.0 GiB", "cluster.memory_gib"),
        ({"shm_gib": 0.06}, "/dev/shm is too small", "0.12 GiB are needed", "--shm-size"),
        ({"time_s": 1012.0}, "clocks", "+13 s", "cluster.exclude=gpu07"),
        ({"time_s": 988.0}, "clocks", "-11 s", "cluster.exclude=gpu07"),
        ({"python": "Python 3.9.2"}, "different Pythons", "3.9.2; gpu07 has Python 3.11", "shared"),
        ({"package": ""}, "no segresmamba to import", "Python 3.11", "cluster.exclude=gpu07"),
    ],
)
def test_each_problem_names_the_node_and_the_remedy(
    config: Config, change: dict[str, object], problem: str, got: str, remedy: str
) -> None:
    bad = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    (found,) = problems(config, [GOOD, bad], 999.0, 1001.0)
    assert problem in found.problem
    assert got in found.got
    assert remedy in found.remedy
    assert "gpu07" in found.screen()


def test_a_job_on_the_cpu_may_have_more_ranks_than_gpus(config: Config) -> None:
    on_cpu = config.model_copy(update={"train": config.train.model_copy(update={"device": "cpu"})})
    assert not list(problems(on_cpu, [dataclasses.replace(GOOD, gpus=1)], 999.0, 1001.0))


def test_the_probe_sees_all_gpus_of_a_node_and_not_those_of_one_rank(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_command: Callable[[str, str], None],
) -> None:
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    fake_command("srun", f'env > {tmp_path}/env; echo "$@" > {tmp_path}/words; exit 1')
    with pytest.raises(LaunchError, match="cannot start a process"):
        preflight._ask_nodes(config, tmp_path / "nonce", "4711")
    kept = (tmp_path / "env").read_text()
    assert "SLURM_JOB_GPUS" in kept
    assert "PER_TASK" not in kept
    assert "SLURM_NTASKS_PER_NODE" not in kept
    assert (tmp_path / "words").read_text().endswith("torch\n")
    cluster = config.cluster.model_copy(update={"container": "segresmamba.sif"})
    with pytest.raises(LaunchError, match="cannot start a process"):
        preflight._ask_nodes(config.model_copy(update={"cluster": cluster}), tmp_path / "n", "4711")
    assert not (tmp_path / "words").read_text().endswith("torch\n")


@pytest.mark.parametrize(
    "said",
    [
        "slurmstepd-n2: error: *** STEP 7.0 ON n2 CANCELLED AT 2026-12-01T15:41:21 ***",
        "srun: error: n2: task 0: Terminated",
        "srun: error: n[1-2]: tasks 0-1: User defined signal 2",
    ],
)
def test_a_preemption_while_the_nodes_are_asked_is_no_mistake_of_the_user(
    config: Config, tmp_path: Path, fake_command: Callable[[str, str], None], said: str
) -> None:
    fake_command("srun", f"echo '{said}' >&2; exit 143")
    with pytest.raises(PassingError, match="interrupted before its ranks started"):
        preflight._ask_nodes(config, tmp_path / "nonce", "4711")


def test_different_gpus_are_worth_a_warning() -> None:
    other = dataclasses.replace(GOOD, host="gpu08", gpu_name="A100", gpu_memory_gib=80.0)
    assert preflight.different_gpus([GOOD, GOOD]) == ""
    assert "(gpu07 H200 40 GiB, gpu08 A100 80 GiB)" in preflight.different_gpus([GOOD, other])


def test_a_node_says_what_its_ranks_would_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SHARED_PATIENCE_S", -1.0)
    report = probe.probe(Path("/nowhere/nonce"), "", "")
    assert report.python.startswith(f"Python {sys.version.split()[0]}")
    assert "torch 2" in report.python
    assert Path(report.package) == REPOSITORY / "segresmamba"


@pytest.fixture
def good_nodes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function of hosts and the memory of their GPUs: the nodes of the job, which are well."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")

    def answer(**gib: float) -> None:
        now = dataclasses.replace(GOOD, time_s=time.time())
        reports = [
            dataclasses.replace(now, host=host, gpu_memory_gib=memory)
            for host, memory in gib.items()
        ]
        monkeypatch.setattr(preflight, "_ask_nodes", lambda *_: reports)

    return answer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float | None, str]]:
    """Memory and place of every question to the planner, which never knows."""
    questions: list[tuple[float | None, str]] = []

    def ask(config: Config, where: str) -> None:
        questions.append((config.plan.gpu_memory_gib, where))
        raise LaunchError("no plan", where=where, got="nothing", remedy="none")

    monkeypatch.setattr(preflight, "require_fit", ask)
    return questions


def test_the_training_step_is_held_against_the_smallest_gpu_of_all_nodes(
    good_nodes: Callable[..., None],
    asked: list[tuple[float | None, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good_nodes(gpu08=24.0, gpu07=40.0, cpu01=0.0)
    preflight.check(load_config(["cluster=slurm", "plan.gpu_memory_gib=40"]), tmp_path)
    assert asked == [(24.0, "the GPUs of gpu08")]
    # What keeps the planner from answering need not keep the job from running.
    assert "warning: no plan [the GPUs of gpu08: nothing]" in capsys.readouterr().err


def test_a_job_whose_step_may_not_fit_does_not_start_if_told_so(
    good_nodes: Callable[..., None], asked: list[tuple[float | None, str]], tmp_path: Path
) -> None:
    good_nodes(gpu07=24.0)
    strict = load_config(["cluster=slurm", "plan.gpu_memory_gib=40", "plan.strict=true"])
    with pytest.raises(LaunchError, match="no plan"):
        preflight.check(strict, tmp_path)
    assert asked == [(24.0, "the GPUs of gpu07")]


@pytest.mark.parametrize(("words", "gib"), [(["plan.gpu_memory_gib=40"], 0.0), ([], 24.0)])
def test_nothing_is_planned_without_a_wish_or_for_gpus_of_unknown_size(
    good_nodes: Callable[..., None],
    asked: list[tuple[float | None, str]],
    tmp_path: Path,
    words: list[str],
    gib: float,
) -> None:
    good_nodes(gpu07=gib)
    preflight.check(load_config(["cluster=slurm", *words]), tmp_path)
    assert asked == []


def test_the_probe_runs_without_the_projects_packages(tmp_path: Path) -> None:
    nonce = tmp_path / "nonce"
    nonce.write_text("4711")
    (tmp_path / "store").mkdir()
    words = [str(nonce), "4711", str(tmp_path / "store")]
    command = [sys.executable, "-I", "-S", probe.__file__, *words]
    before_s = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = NodeReport(**json.loads(done.stdout))
    assert (report.shared, report.write_error) == (True, "")
    assert report.store_error == "the folder is empty"
    assert before_s <= report.time_s <= time.time()
    assert report.memory_gib > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nonce", "store"]


def test_a_store_may_be_a_zip_file(tmp_path: Path) -> None:
    store = tmp_path / "store.zip"
    (tmp_path / "nonce").write_text("4711")
    report = probe.probe(tmp_path / "nonce", "4711", str(store))
    assert report.store_error == "No such file or directory"
    store.write_bytes(b"PK")
    assert probe.probe(tmp_path / "nonce", "4711", str(store)).store_error == ""


def test_a_folder_with_another_nonce_is_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SHARED_PATIENCE_S", 0.0)
    nonce = tmp_path / "nonce"
    assert not probe.probe(nonce, "4711", "").shared
    nonce.write_text("another job's")
    assert not probe.probe(nonce, "4711", "").shared


def test_a_gpu_that_fell_off_the_bus_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_command: Callable[[str, str], None]
) -> None:
    fake_command("nvidia-smi", "echo 'Unable to determine the device handle'; exit 15")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(probe, "SHARED_PATIENCE_S", 0.0)
    report = probe.probe(tmp_path / "nonce", "", "")
    assert (report.gpus, report.gpu_error) == (2, "Unable to determine the device handle")


def test_gpus_of_amd_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr(probe, "SHARED_PATIENCE_S", 0.0)
    assert probe.probe(tmp_path / "nonce", "", "").gpus == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees GPUs here")
def test_gpus_that_torch_does_not_see_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe._ask_torch(2).startswith(f"torch sees 0 of 2 GPUs: it is {torch.__version__}")
    monkeypatch.setattr(probe, "_USE_EACH_GPU", "raise RuntimeError('no kernel image')")
    assert probe._ask_torch(2) == "RuntimeError: no kernel image"


@pytest.mark.parametrize(
    ("visible", "said", "gib"),
    [
        ("0,1", "81559\\n40960\\n", 40.0),
        ("0", "[N/A]\\n", 0.0),
        ("MIG-41f5", "81559\\n", 0.0),
        ("", "81559\\n", 0.0),
    ],
)
def test_the_memory_of_the_smallest_gpu_is_reported_where_it_is_known(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_command: Callable[[str, str], None],
    visible: str,
    said: str,
    gib: float,
) -> None:
    fake_command("nvidia-smi", f"printf '{said}'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(probe, "SHARED_PATIENCE_S", 0.0)
    report = probe.probe(tmp_path / "nonce", "", "")
    assert (report.gpu_error, report.gpu_memory_gib) == ("", gib)


def test_a_file_system_that_is_away_is_a_passing_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(tmp_path))

    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setattr(preflight, "load_job", stale)
    monkeypatch.setattr(sys, "argv", ["preflight", str(tmp_path)])
    with pytest.raises(SystemExit, match="75"):
        preflight.main()
    screen = capsys.readouterr().err
    assert "may pass" in screen
    assert "Traceback" not in screen


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ((), True),
        (("model.scan_backend=triton",), True),
        (("model.scan_backend=reference",), False),
        (("model=segresnet",), False),
        (("cluster.gpus_per_node=0",), False),
        (("train.device=cpu",), False),
    ],
)
def test_scans_on_gpus_need_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], refused: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    config = load_config(["cluster=slurm", *words])
    if not refused:
        return preflight.require_build_tools(config)
    with pytest.raises(LaunchError, match="need a compiler") as caught:
        preflight.require_build_tools(config)
    assert "no gcc or clang" in str(caught.value.got)
    assert "apt-get install gcc" in caught.value.remedy
    (tmp_path / "gcc").write_text("")
    (tmp_path / "gcc").chmod(0o755)
    return preflight.require_build_tools(config)
