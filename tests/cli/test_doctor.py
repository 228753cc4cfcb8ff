from __future__ import annotations

import http.server
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from launch.ports import free_port
from segresmamba.cli.doctor import Check, _build_tools, _scan_backends, checks, render
from segresmamba.config import Config, load_config


def config(root: Path, *overrides: str) -> Config:
    return load_config([f"run.root={root / 'runs'}", *overrides])


def check(name: str, root: Path, *overrides: str) -> Check:
    (found,) = [found for found in checks(config(root, *overrides)) if found.name == name]
    return found


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all there is on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def write_command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def closed_port() -> int:
    return free_port(f"closed {os.getpid()}")


def test_without_a_gpu_nothing_asks_to_build_mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    build = "pip install mamba-ssm"
    monkeypatch.setattr(
        "segresmamba.cli.doctor.available_backends", lambda: {"cpu": "ok", "mamba_ssm": build}
    )
    for has_gpu, expected in ((False, ("off", "")), (True, ("missing", build))):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=has_gpu: answer)
        found = {check.name: check for check in _scan_backends()}
        mamba = found["scan backend mamba_ssm"]
        assert (mamba.status, mamba.remedy) == expected


def test_everything_is_looked_at_without_importing_mlflow_or_deepspeed() -> None:
    code = (
        "import sys; from segresmamba.cli.doctor import checks\n"
        "print(*(check.name for check in checks()), sep='\\n')\n"
        "sys.exit('mlflow' in sys.modules or 'deepspeed' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(found.stdout.splitlines())
    assert names >= {"Python", "host", "torch", "scan backend cpu", "mamba-ssm", "causal-conv1d"}
    assert names >= {"triton", "DeepSpeed", "Slurm sbatch", "Slurm squeue", "Slurm sacct"}
    assert names >= {"MLflow", "run.root", "temporary files", "shared memory"}


def test_what_is_missing_names_what_to_do(tmp_path: Path) -> None:
    missing = [check for check in checks(config(tmp_path)) if check.status == "missing"]
    assert all(check.remedy for check in missing)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_in_order(tmp_path: Path, commands: Path) -> None:
    assert check("GPU", tmp_path).status == "off"


def test_a_gpu_without_a_compiler_is_found_before_triton_needs_it(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    assert _build_tools().status == "off"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = _build_tools()
    assert (found.status, found.name) == ("missing", "C compiler for Triton")
    assert "no gcc or clang" in found.detail
    assert "apt-get install gcc" in found.remedy
    write_command(commands, "gcc", "")
    assert _build_tools().status == "ok"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no device")
def test_a_gpu_is_shown_by_name(tmp_path: Path) -> None:
    assert torch.cuda.get_device_name(0) in check("GPU 0", tmp_path).detail


def test_no_slurm_is_in_order(tmp_path: Path, commands: Path) -> None:
    found = check("Slurm sbatch", tmp_path)
    assert (found.status, found.detail) == ("off", "not found")


def test_slurm_is_shown_with_its_version(tmp_path: Path, commands: Path) -> None:
    write_command(commands, "sbatch", "echo slurm-wlm 22.05.8")
    assert check("Slurm sbatch", tmp_path) == Check("Slurm sbatch", "ok", "slurm-wlm 22.05.8")


def test_slurm_without_configuration_says_so(tmp_path: Path, commands: Path) -> None:
    write_command(commands, "sacct", "echo details >&2; echo fatal: no configuration >&2; exit 1")
    found = check("Slurm sacct", tmp_path)
    assert (found.status, found.detail) == ("missing", "fatal: no configuration")
    assert "SLURM_CONF" in found.remedy


def test_a_slurm_that_hangs_does_not_hang_the_doctor(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segresmamba.cli.doctor.WAIT_S", 0.1)
    write_command(commands, "squeue", "exec /bin/sleep 60")
    assert check("Slurm squeue", tmp_path).status == "missing"


def test_the_default_database_needs_no_server(tmp_path: Path) -> None:
    found = check("MLflow", tmp_path)
    assert found.status == "ok"
    assert "made by the first run" in found.detail
    assert not (tmp_path / "runs").exists()


def test_mlflow_switched_off_is_in_order(tmp_path: Path) -> None:
    assert check("MLflow", tmp_path, "tracking=none").status == "off"


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_an_mlflow_that_does_not_answer_is_missing(
    tmp_path: Path, closed_port: int, scheme: str
) -> None:
    found = check("MLflow", tmp_path, f"tracking.uri='{scheme}://127.0.0.1:{closed_port}/db'")
    assert found.status == "missing"
    assert "segresmamba sync" in found.remedy


def test_an_unknown_uri_is_missing_with_the_ones_that_work(tmp_path: Path) -> None:
    found = check("MLflow", tmp_path, "tracking.uri='ftp://host'")
    assert found.status == "missing"
    assert "http://host:5000" in found.remedy


@pytest.fixture(params=[200, 401])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_mlflow_that_answers_is_shown(tmp_path: Path, server: str) -> None:
    found = check("MLflow", tmp_path, f"tracking.uri='{server}'")
    assert found.status == "ok"
    assert server in found.detail


def test_no_password_is_shown(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:
        uri = f"postgresql://me:secret@127.0.0.1:{database.getsockname()[1]}/db"
        found = check("MLflow", tmp_path, f"tracking.uri='{uri}'")
    assert found.status == "ok"
    assert "secret" not in found.detail


def test_a_folder_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    found = check("run.root", tmp_path)
    assert found.status == "missing"
    assert "run.root" in found.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_missing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    assert check("run.root", tmp_path).status == "missing"


def test_commands_are_printed_whole_and_brackets_as_they_are() -> None:
    command = "pip install 'segresmamba[gpu]' " + "--option " * 20
    console = Console(file=io.StringIO(), width=80)
    console.print(render([Check("thing", "missing", "[none]", command)]), soft_wrap=True)
    printed = console.file.getvalue()
    assert f"thing: {command}" in printed
    assert "[none]" in printed
