"""Whoever reads the end of the tests' output learns what was not tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_where_there_is_no_slurm_the_summary_says_so_loudly() -> None:
    code = (
        "import sys, pytest; from tests.cluster import cluster;"
        "cluster.PROGRAMS = ('no-such-program',);"
        "sys.exit(pytest.main(['-q', 'tests/cluster/test_cluster.py']))"
    )
    unasked = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    unasked.pop("SEGRESMAMBA_CLUSTER", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=unasked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    heading, reason, remedy = done.stdout.partition("!! THE CLUSTER")[2].splitlines()[:3]
    assert heading.startswith(" TESTS DID NOT RUN !!")
    assert "no-such-program" in reason or "only root" in reason
    assert remedy.startswith("SEGRESMAMBA_CLUSTER=install")
