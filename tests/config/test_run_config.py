import subprocess
import sys


def test_reading_a_run_needs_no_hydra() -> None:
    code = "import sys; from segresmamba.config import read_config; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert {"hydra", "omegaconf"}.isdisjoint(result.stdout.decode().split())
