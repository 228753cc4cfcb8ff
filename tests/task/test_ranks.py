"""The device of a rank: never the CPU by accident, never a GPU of another rank."""

from __future__ import annotations

import pytest
import torch

from segresmamba.errors import LaunchError
from segresmamba.inference.options import InferenceOptions
from segresmamba.task.ranks import Ranks, device_for


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)


def see(monkeypatch: pytest.MonkeyPatch, gpus: int, ranks: int = 1, rank: int = 0) -> None:
    """Torch sees so many GPUs, and the node has so many ranks."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_RANK", str(rank))


@pytest.mark.parametrize(
    "granted", [{"SLURM_GPUS_ON_NODE": "2"}, {"SLURM_STEP_GPUS": "4,5"}, {"SLURM_JOB_GPUS": "4,5"}]
)
def test_a_job_with_gpus_that_torch_does_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch, granted: dict[str, str]
) -> None:
    see(monkeypatch, gpus=0)
    assert Ranks.from_environment().device.type == "cpu"
    for name, value in granted.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match="would compute on the CPU") as caught:
        Ranks.from_environment()
    assert "2 GPU(s)" in caught.value.got
    assert f"torch {torch.__version__}, built for" in caught.value.got
    assert "driver" in caught.value.got
    assert "train.device=cpu" in caught.value.remedy
    assert Ranks.from_environment("cpu").device.type == "cpu"


def test_gpus_that_were_asked_for_count_like_those_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, gpus=0)
    with pytest.raises(LaunchError, match="with 1 GPU"):
        Ranks.from_environment(gpus_asked=1)
    with pytest.raises(LaunchError, match="cuda, with 0 GPU"):
        Ranks.from_environment("cuda")


def test_an_earlier_run_on_the_cpu_needs_no_gpu_in_a_job_that_has_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, gpus=0)
    assert device_for("cuda").type == "cpu"
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    assert device_for("cpu").type == "cpu"
    with pytest.raises(LaunchError, match="1 GPU") as caught:
        device_for("auto")
    assert "sbatch --gpus-per-node=0" in caught.value.remedy


def test_the_remedy_is_an_option_of_the_command_that_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, gpus=0)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    with pytest.raises(LaunchError) as caught:
        InferenceOptions().torch_device()
    assert caught.value.where == "--device"
    assert "--device cpu" in caught.value.remedy


def test_the_cpu_may_be_chosen_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, gpus=2, ranks=4)
    assert Ranks.from_environment("cpu").device.type == "cpu"


@pytest.mark.parametrize("gpus", [1, 2])
def test_ranks_of_a_workstation_never_share_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    see(monkeypatch, gpus=gpus, ranks=4)
    with pytest.raises(LaunchError, match=f"4 ranks, {gpus} GPUs") as caught:
        Ranks.from_environment()
    assert f"cluster.tasks_per_node={gpus}" in caught.value.remedy


def test_slurm_may_show_each_rank_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, gpus=1, ranks=2, rank=1)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert Ranks.from_environment().device == torch.device("cuda", 0)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    with pytest.raises(LaunchError, match="2 ranks, 1 GPUs"):
        Ranks.from_environment()


def test_a_rank_that_sees_all_gpus_takes_the_one_of_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    see(monkeypatch, gpus=4, ranks=4, rank=3)
    assert Ranks.from_environment().device == torch.device("cuda", 3)
