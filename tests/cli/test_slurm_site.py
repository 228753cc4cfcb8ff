"""`segresmamba doctor --slurm`: what Slurm says becomes a preset that can be used."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from segresmamba.cli.main import app
from segresmamba.cli.slurm_site import Partition, preset
from segresmamba.config import ClusterConfig, load_config

SINFO = """cpu*|infinite|40|64|(null)|(null)
gpu|2-00:00:00|8|64|gpu:a100:4(S:0-1)|a100,nvlink
gpu|2-00:00:00|4|96+|gpu:h100:4|(null)
debug|30:00|2|8|gpu:2|(null)"""
PARTITIONS = [Partition.from_line(line) for line in SINFO.splitlines()]


def cluster(text: str, folder: Path) -> ClusterConfig:
    (folder / "cluster").mkdir(parents=True)
    (folder / "cluster" / "ours.yaml").write_text(text)
    words = ["cluster=ours", f"run.config_dir={folder}", "train.batch_size=4"]
    return load_config(words).cluster


def test_the_preset_asks_for_the_gpus_and_the_time_that_there_are(tmp_path: Path) -> None:
    text = preset(PARTITIONS, ["lab|normal,long"], {"MaxArraySize": "1001", "PreemptMode": "OFF"})
    made = cluster(text, tmp_path)
    assert (made.name, made.partition, made.gpus, made.gpus_per_node) == (
        *("slurm", "gpu", "a100:4", 4),
    )
    assert (made.tasks_per_node, made.cpus_per_task, made.time_min) == (4, 8, 1440)
    assert (made.account, made.qos) == ("lab", None)
    assert "# qos: long    # one of long, normal" in text
    assert "fewer than 1001 jobs" in text
    assert "cpu (default): 40 nodes of 64 cores" in text


def test_without_gpus_accounts_or_a_short_limit_there_is_a_preset_too(tmp_path: Path) -> None:
    facts = {"JobRequeue": "0", "AccountingStorageType": "accounting_storage/none",
             "PreemptMode": "CANCEL"}  # fmt: skip
    text = preset([PARTITIONS[0]], [], facts)
    made = cluster(text, tmp_path)
    assert (made.partition, made.gpus_per_node, made.tasks_per_node) == ("cpu", 0, 1)
    assert (made.account, made.time_min) == (None, 1440)
    for fact in ("JobRequeue=0", "Without accounting", "PreemptMode=CANCEL"):
        assert fact in text
    two = preset([PARTITIONS[3]], ["a|", "b|"], {})
    assert "# account: a    # one of a, b" in two
    assert "time_min: 30" in two


def test_the_command_asks_slurm_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, answer in {
        "sinfo": SINFO, "scontrol": "Configuration data\nMaxArraySize = 20", "sacctmgr": "lab|x",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'E'\n{answer}\nE\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = tmp_path / "configs" / "cluster" / "ours.yaml"
    done = CliRunner().invoke(app, ["doctor", "--slurm", str(path)])
    assert (done.exit_code, f"{path}: look it over" in done.output) == (0, True)
    assert "account: lab" in (text := path.read_text())
    again = CliRunner().invoke(app, ["doctor", "--slurm", str(path)])
    assert "already" in str(again.exception)
    assert path.read_text() == text
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    away = CliRunner().invoke(app, ["doctor", "--slurm", f"{path}.2"])
    assert "no controller" in str(away.exception)
