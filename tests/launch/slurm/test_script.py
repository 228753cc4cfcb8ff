"""The lines of a batch script, run by a real shell with a stand-in for Python."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.slurm import script
from segresmamba.config import ClusterConfig, load_config
from segresmamba.errors import USER_CODE, ConfigError
from tests.processes import started


def run_script(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    preflight: str,
    failure: str = 'echo "handler: $4"; exit 75',
    *then: str,
) -> tuple[int, str]:
    """Run the lines before the ranks, with a preflight that does this; exit code and output."""
    python = folder / "python"
    python.write_text(
        f"#!/bin/bash\nif [[ $2 = *preflight ]]; then {preflight}; else {failure}; fi\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    lines = script.before_ranks(load_config(["cluster=slurm"]).cluster, folder / "logs")
    then = then or ('echo "ranks meet at $MASTER_PORT"',)
    ran = subprocess.run(
        ["bash"], input="\n".join([*lines, *then]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran.returncode, ran.stdout.strip()


def test_the_ranks_get_the_port_that_the_preflight_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(tmp_path, monkeypatch, "echo 4711") == (0, "ranks meet at 4711")


def test_a_mistake_that_the_preflight_finds_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(tmp_path, monkeypatch, "exit 2") == (2, "")


@pytest.mark.parametrize("code", [75, 1])
def test_other_failures_of_the_preflight_go_to_the_handler_that_queues_the_job_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    assert run_script(tmp_path, monkeypatch, f"exit {code}") == (75, f"handler: {code}")


def run_setup(folder: Path, *setup: str) -> subprocess.CompletedProcess[str]:
    """Run a script file, as Slurm does, with these lines of the user before its own."""
    cluster = ClusterConfig(name="slurm", time_min=60, setup=setup)
    path = folder / "script.sh"
    path.write_text("\n".join([*script.environment(cluster, folder), "false", "echo went on"]))
    return subprocess.run(["bash", str(path)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("module load nope-1.2", "module load nope-1.2: exit code 127"),
        ("cd /nowhere/at/all", "cd /nowhere/at/all: exit code 1"),
        (". SOURCED", "SOURCED, line 2: exit code 1"),
        # It may hold a secret, so its text is in no file but secrets.json.
        ("TOKEN=$(exit 3)", "***cluster.setup-2***: exit code 3"),
        # The trap ERR of bash learns nothing of these.
        ("source /nowhere/env.sh", "it has ended the script: exit code 1"),
        ("exit 0", "***cluster.setup-2***: exit code 0"),
        (". ENDING", "it has ended the script: exit code 0"),
        ("set -u; echo $UNSET", "it has ended the script: exit code 1"),
    ],
)
def test_a_line_of_the_user_that_fails_ends_the_job_as_a_mistake(
    tmp_path: Path, line: str, got: str
) -> None:
    (tmp_path / "sourced.sh").write_text("true\ngrep -q secret-word /dev/null\n")
    (tmp_path / "ending.sh").write_text("true\nexit 0\n")
    names = {name: str(tmp_path / f"{name.lower()}.sh") for name in ("SOURCED", "ENDING")}
    for name, path in names.items():
        line, got = line.replace(name, path), got.replace(name, path)
    done = run_setup(tmp_path, "ulimit -c 0", line)
    assert (done.returncode, done.stdout) == (USER_CODE, "")
    assert f"error: a line of cluster.setup failed\n  where:  cluster.setup\n  got:    {got}\n" in (
        done.stderr
    )
    assert "secret-word" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "trap 'true' EXIT",
        "(exit 0)",
        "cd /nowhere/at/all || true",
        "export A_PATH=$(false; echo x)",
        "set +e",
        "ulimit -c 0",
    ],
)
def test_a_line_that_may_fail_and_what_follows_the_users_lines_do_not_end_the_job(
    tmp_path: Path, line: str
) -> None:
    done = run_setup(tmp_path, line)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def test_lines_that_no_shell_can_read_are_refused_before_a_job_has_them() -> None:
    for setup in (("if true; then", "cd /"), ("echo 'one",), ("if [ 1 = 1 ]; then", "cd /", "fi")):
        cluster = load_config(["cluster=slurm", f"cluster.setup={json.dumps(setup)}"]).cluster
        with pytest.raises(ConfigError, match="no shell") as caught:
            script.refuse_bad_shell(cluster.setup)
        assert "line" in caught.value.got
    script.refuse_bad_shell(("if true; then", "cd /", "fi", "module load cuda"))


@pytest.mark.parametrize(
    ("signum", "passed_on"),
    [(signal.SIGUSR1, "USR2"), (signal.SIGUSR2, "USR2"), (signal.SIGTERM, "TERM")],
)
def test_a_signal_to_the_script_alone_reaches_the_ranks(
    tmp_path: Path, signum: int, passed_on: str
) -> None:
    ranks = (
        f'bash -c \'trap "echo got USR2; exit 7" USR2; trap "echo got TERM; exit 7" TERM; '
        f"touch {tmp_path}/ready; while sleep 0.1; do :; done' &"
    )
    path = tmp_path / "script.sh"
    before = script.environment(load_config(["cluster=slurm"]).cluster, tmp_path)
    path.write_text("\n".join([*before, ranks, *script.after_share()]))
    with started(["bash", str(path)], stdout=subprocess.PIPE) as process:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        process.send_signal(signum)
        out, _ = process.communicate(timeout=200)
    assert (process.returncode, out) == (7, f"got {passed_on}\n")


def test_sigterm_calls_the_handler_that_knows_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # srun ends when the handler has begun, as it does when Slurm kills it.
    waits = f"while [ ! -e {tmp_path}/limit ]; do sleep 0.1; done"
    ranks = f"(trap '' TERM; sleep 0.5; kill -TERM $$; {waits}) &"
    lines = [ranks, *script.after_ranks(tmp_path / "logs")]
    handler = f"touch {tmp_path}/$4; echo handler: $4"
    code, said = run_script(tmp_path, monkeypatch, "echo 4711", handler, *lines)
    assert code == 0
    assert "handler: limit" in said
