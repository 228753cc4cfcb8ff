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
    assert time.monotonic() - started < 30
    places = slurm("srun", "-N2", "--gpus-per-node=2", "printenv", "SLURMD_NODENAME").split()
    assert sorted(places) == ["n1", "n2"]


def test_nothing_of_it_is_left_behind(slurm_conf: Path) -> None:
    hosts = cluster.HOSTS.read_text()
    cluster.down()
    try:
        assert not cluster.ROOT.exists()
        assert cluster.HOSTS_LINE not in cluster.HOSTS.read_text()
        assert hosts == cluster.HOSTS.read_text() + cluster.HOSTS_LINE
        assert run("pgrep", "-f", str(cluster.ROOT)).stdout == ""
        cluster.down()  # once more is once too many for nobody
    finally:
        cluster.up()
