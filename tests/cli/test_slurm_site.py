"""`segresmamba doctor --slurm`: what Slurm says becomes a preset that can be used."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from segresmamba.cli.main import app
from segresmamba.cli.slurm_site import Partition, preset
from segresmamba.config import ClusterConfig, load_config
from segresmamba.errors import LaunchError

SINFO = """cpu*|infinite|40|64|(null)|(null)
gpu|2-00:00:00|8|64|gpu:a100:4(S:0-1)|a100,nvlink
gpu|2-00:00:00|4|96+|gpu:h100:4|(null)
debug|30:00|2|8|gpu:2|(null)"""
PARTITIONS = [Partition.from_line(line) for line in SINFO.splitlines()]

SACCTMGR = """#!/bin/sh
echo $0 $* >>asked
case $* in *assoc*) echo 'lab|x||';; *) echo 'x|';; esac
"""


def cluster(text: str, folder: Path, ranks: int = 4) -> ClusterConfig:
    (folder / "cluster").mkdir(parents=True)
    (folder / "cluster" / "ours.yaml").write_text(text)
    words = ["cluster=ours", f"run.config_dir={folder}", f"train.batch_size={ranks}"]
    return load_config(words).cluster


def test_the_preset_asks_for_the_gpus_and_the_time_that_there_are(tmp_path: Path) -> None:
    facts = {"MaxArraySize": "1001", "PreemptMode": "OFF"}
    text = preset(PARTITIONS, ["lab|normal,long||"], [], facts)
    made = cluster(text, tmp_path)
    assert (made.name, made.partition, made.gpus, made.gpus_per_node) == (
        *("slurm", "gpu", "a100:4", 4),
    )
    assert (made.tasks_per_node, made.cpus_per_task, made.time_min) == (4, 8, 1440)
    assert (made.account, made.qos) == ("lab", None)
    assert '# qos: "long"    # one of long, normal' in text
    assert "fewer than 1001 jobs" in text
    assert "cpu (default): 40 nodes of 64 cores" in text


def test_without_gpus_accounts_or_a_short_limit_there_is_a_preset_too(tmp_path: Path) -> None:
    facts = {"JobRequeue": "0", "AccountingStorageType": "accounting_storage/none",
             "PreemptMode": "CANCEL"}  # fmt: skip
    text = preset([PARTITIONS[0]], [], [], facts)
    made = cluster(text, tmp_path)
    assert (made.partition, made.gpus_per_node, made.tasks_per_node) == ("cpu", 0, 1)
    assert (made.account, made.time_min) == (None, 1440)
    for fact in ("JobRequeue=0", "Without accounting", "PreemptMode=CANCEL"):
        assert fact in text
    two = preset([PARTITIONS[3]], ["a|||", "b|||"], [], {})
    assert '# account: "a"    # one of a, b; unset: your default' in two
    assert "time_min: 30" in two


@pytest.mark.parametrize(
    ("gres", "kind", "number"),
    [
        ("gpu:3090:8", "3090", 8),
        ("gpu:2080ti:4(S:0-1)", "2080ti", 4),
        ("gpu:1g.5gb:7", "1g.5gb", 7),
        ("gpu:a100_3g.20gb:2(S:0),gpu:a100:1", "a100_3g.20gb", 2),
        ("craynetwork:4,gpu:2", "", 2),
        ("shard:gpu:8", "", 0),
    ],
)
def test_types_of_gpus_may_begin_with_a_digit(
    gres: str, kind: str, number: int, tmp_path: Path
) -> None:
    partition = Partition.from_line(f"3090|infinite|1|8|{gres}|(null)")
    assert (partition.gpu_type, partition.gpus) == (kind, number)
    made = cluster(preset([partition], ["0815|on||"], [], {}), tmp_path, ranks=number or 1)
    assert made.gpus == (f"{kind}:{number}" if kind else None)
    assert (made.partition, made.account, made.gpus_per_node) == ("3090", "0815", number)


def test_a_job_is_no_longer_than_account_and_quality_of_service_allow(tmp_path: Path) -> None:
    qos = ["normal|1-12:00:00", "short|02:00:00", "long|"]
    for number, (accounts, limit) in enumerate(
        [
            (["lab|normal,short,long|short|"], 120),
            (["lab|short||"], 120),  # the only one is the one that jobs get
            (["lab|normal,short,long||", "other|normal,short||"], 24 * 60),
            (["lab|long|long|01:30:00"], 90),
        ]
    ):
        made = cluster(preset([PARTITIONS[1]], accounts, qos, {}), tmp_path / str(number))
        assert made.time_min == limit


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for Slurm's commands; it is also the one to work in."""
    for name, answer in {
        "sinfo": SINFO,
        "scontrol": "Configuration data\nClusterName = here\nMaxArraySize = 20",
        "sacctmgr": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho $0 $* >>asked\ncat <<'E'\n{answer}\nE\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sacctmgr").write_text(SACCTMGR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def doctor(path: Path | str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--slurm", str(path)])


def test_the_command_asks_slurm_and_overwrites_nothing(slurm: Path) -> None:
    path = Path("configs/cluster/ours.yaml")
    done = doctor(path)
    assert (done.exit_code, done.output.endswith("use it as cluster=ours\n")) == (0, True)
    assert 'account: "lab"' in (text := path.read_text())
    assert "cluster=here" in (slurm / "asked").read_text()  # a database serves several clusters
    again = doctor(path)
    assert "already" in str(again.exception)
    assert path.read_text() == text
    (slurm / "sinfo").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    assert "no controller" in str(doctor("configs/cluster/b.yaml").exception)
    assert not Path("configs/cluster/b.yaml").exists()


def test_a_preset_elsewhere_comes_with_the_option_that_finds_it(slurm: Path) -> None:
    done = doctor(slurm / "mine" / "cluster" / "ours.yaml")
    assert done.output.endswith(f"use it as --config-dir {slurm}/mine cluster=ours\n")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("ours.yaml", "no place of a preset"),
        ("configs/cluster/ours", "no place of a preset"),
        ("configs/cluster/slurm.yaml", "such a preset already"),  # it builds on that one
        ("/proc/configs/cluster/ours.yaml", "cannot be written"),
    ],
)
def test_a_place_where_no_preset_is_found_is_refused(slurm: Path, path: str, said: str) -> None:
    done = doctor(path)
    assert isinstance(done.exception, LaunchError)
    assert said in str(done.exception)
    assert not Path(path).exists()
