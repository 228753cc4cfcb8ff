"""The test cluster itself."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.cluster import cluster
from tests.cluster.jobs import run, slurm


def test_it_comes_up_in_seconds_over_what_a_crash_left(slurm_conf: Path) -> None:
    for daemon in ("slurmctld", "slurmd.n1"):
        os.kill(int((cluster.ROOT / f"{daemon}.pid").read_text()), signal.SIGKILL)
    started = time.monotonic()
    cluster.up()
    assert time.monotonic() - started < 120
    places = slurm("srun", "-N2", "--gpus-per-node=2", "printenv", "SLURMD_NODENAME").split()
    assert sorted(places) == ["n1", "n2"]


def lines_of_others(hosts: str) -> list[str]:
    """Without those of test clusters: another one may come up or go down meanwhile."""
    return [line for line in hosts.splitlines() if cluster.HOSTS_MARK not in line]


def test_nothing_of_it_is_left_behind(slurm_conf: Path) -> None:
    before = cluster.HOSTS.read_text()
    cluster.down()
    try:
        assert not cluster.ROOT.exists()
        after = cluster.HOSTS.read_text()
        assert cluster.HOSTS_LINE in before
        assert cluster.HOSTS_LINE not in after
        assert lines_of_others(after) == lines_of_others(before)
        assert run("pgrep", "-f", str(cluster.ROOT)).stdout == ""
        cluster.down()  # once more is once too many for nobody
    finally:
        cluster.up()
