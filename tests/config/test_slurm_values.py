"""Settings of `cluster.*` in Slurm's own forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segresmamba.config import ClusterConfig, load_config
from segresmamba.errors import ConfigError


def cluster(*words: str) -> ClusterConfig:
    return load_config(["cluster=slurm", *words]).cluster


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("24:00:00", 1440),
        ("90:30", 91),
        ("1-12", 2160),
        ("1-02:03", 1563),
        ("1-2:3:4", 1564),
        ("null", None),
    ],
)
def test_a_time_limit_has_slurms_forms(text: str, minutes: int | None) -> None:
    name = "slurm" if minutes else "local"
    assert load_config([f"cluster={name}", f"cluster.time_min={text}"]).cluster.time_min == minutes


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_a_time_limit_is_rounded_up_to_minutes(days: int, hours: int, mins: int, secs: int) -> None:
    text = f"{days}-{hours:02d}:{mins:02d}:{secs:02d}"
    expected = days * 1440 + hours * 60 + mins + 1
    made = ClusterConfig(name="slurm", signal_delay_s=1, time_min=text)  # type: ignore[arg-type]
    assert made.time_min == expected


@pytest.mark.parametrize("text", ["soon", "1-", "1:2:3:4", "-5", "0"])
def test_what_is_no_time_limit_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.time_min") as caught:
        cluster(f"cluster.time_min={text}")
    assert "minutes" in caught.value.remedy


def test_gpus_are_asked_for_by_type_by_number_or_for_each_rank() -> None:
    assert cluster("cluster.gpus=a100:4").gpus_per_node == 4
    assert cluster("cluster.gpus=4").gpus == "4"
    assert cluster("cluster.gpus_per_task=1").gpus_per_node == 0


def test_several_partitions_are_a_list() -> None:
    assert cluster("cluster.partition=[a100,h100]").partition == "a100,h100"


@pytest.mark.parametrize(
    "text",
    [
        "cluster.sbatch=[--tmp=100G,--gres-flags=a,b,--spread-job]",
        "cluster.sbatch=['--tmp=100G', '--gres-flags=a,b', --spread-job]",
    ],
)
def test_options_of_sbatch_need_no_quotes(text: str) -> None:
    assert cluster(text).sbatch == ("--tmp=100G", "--gres-flags=a,b", "--spread-job")


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["cluster.sbatch=[--time=3]"], "cluster.sbatch"),
        (["cluster.sbatch=[tmp]"], "cluster.sbatch"),
        (["cluster.gpus=a100:0"], "cluster.gpus"),
        (["cluster.gpus=a100:2", "cluster.gpus_per_task=1"], "cluster.gpus_per_task"),
        (["cluster.memory_gib=3", "cluster.mem_per_gpu=60G"], "cluster.mem_per_gpu"),
        (["cluster.comment='a\nb'"], "cluster.comment"),
        (["cluster=local", "cluster.container=x.sif"], "cluster.container"),
    ],
)
def test_what_slurm_would_refuse_or_take_twice_is_refused(words: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["cluster=slurm", *words] if "cluster=local" not in words else words)
    assert where in caught.value.where
