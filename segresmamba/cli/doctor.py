"""Checks what this machine offers for training, and names the command for what is missing.

It checks MLflow and DeepSpeed without importing them, which would take seconds.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from segresmamba.build_tools import INSTALL_BUILD_TOOLS, missing_build_tool
from segresmamba.config import Config, load_config
from segresmamba.errors import ConfigError
from segresmamba.ops import available_backends
from segresmamba.tracking import tracking_uri

BYTES_PER_GIB = 1 << 30
# The longest wait for an answer from Slurm or MLflow.
WAIT_S = 3.0
# Reader processes pass batches through shared memory. Docker's default for a container is 64 MiB.
SHARED_MEMORY_GIB = 1.0
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

STYLES = {"ok": "green", "missing": "red", "off": "yellow"}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: Name of the part that was checked.
        status: "ok", "missing" (to be installed or repaired), or "off" (this machine or
            configuration does without it).
        detail: What was found.
        remedy: The command or setting that changes it; empty if there is nothing to do.
    """

    name: str
    status: Literal["ok", "missing", "off"]
    detail: str
    remedy: str = ""


def checks(config: Config | None = None) -> list[Check]:
    """Check everything that training may use, which takes a few seconds at most.

    Args:
        config: Says which MLflow and run folder to check; by default the shipped configuration.
    """
    config = config or load_config()
    return [
        Check("Python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        _host(),
        *_torch(),
        *_scan_backends(),
        _deepspeed(),
        *_slurm(),
        _mlflow(config),
        _folder("run.root", config.run.root, "set run.root to a folder that you can write to"),
        _folder("temporary files", Path(tempfile.gettempdir()), "export TMPDIR=FOLDER"),
        _shared_memory(),
    ]


def render(results: list[Check]) -> Group:
    """The checks as a table, and below it what to do; print it with `soft_wrap`."""
    table = Table("", "what", "found", box=None)
    todo = Text()
    for check in results:
        style = STYLES[check.status]
        table.add_row(f"[{style}]{check.status}[/]", check.name, escape(check.detail))
        if check.remedy:
            todo.append(f"\n{check.name}", style).append(f": {check.remedy}")
    # Below the table and not in it: a cell would wrap commands, which then cannot be copied.
    return Group(table, todo)


def _host() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    detail = f"{cores} of {os.cpu_count()} cores for this process, {_gib(memory)} GiB memory"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        detail += f", limited to {_gib(int(text))} GiB"
    return Check("host", "ok", detail)


def _torch() -> Iterator[Check]:
    """The build of torch and the GPUs that it finds."""
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs only"
    yield Check("torch", "ok", f"{torch.__version__}, built {built}")
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        remedy = "install a CUDA build: https://pytorch.org/get-started" if driver else ""
        yield Check("GPU", "missing" if driver else "off", "torch sees none", remedy)
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield Check(
            f"GPU {index}",
            "ok",
            f"{gpu.name}, {_gib(gpu.total_memory)} GiB, compute capability {gpu.major}.{gpu.minor}",
        )


def _scan_backends() -> Iterator[Check]:
    """The scan backends, then the packages of those that run on GPUs."""
    import torch

    has_gpu = torch.cuda.is_available()
    for name, answer in available_backends().items():
        if answer == "ok":
            yield Check(f"scan backend {name}", "ok", "usable")
        elif name == "mamba_ssm" and not has_gpu:
            # Building it takes minutes, and here nothing could use it.
            yield Check(f"scan backend {name}", "off", "not installed, needs a GPU")
        else:
            yield Check(f"scan backend {name}", "missing", "not installed", answer)
    yield _build_tools()
    # Without a remedy: the backends above have it already.
    for name in ("mamba-ssm", "causal-conv1d", "triton"):
        version = _version(name)
        yield Check(name, "ok" if version else "off", version or "not installed (GPU, optional)")


def _build_tools() -> Check:
    """The compiler that Triton needs once there is a GPU."""
    import torch

    if (tool := missing_build_tool()) is None:
        return Check("C compiler for Triton", "ok", "a compiler and Python.h are there")
    status: Literal["missing", "off"] = "missing" if torch.cuda.is_available() else "off"
    return Check("C compiler for Triton", status, f"without {tool}", INSTALL_BUILD_TOOLS)


def _deepspeed() -> Check:
    version, spec = _version("deepspeed"), find_spec("deepspeed")
    if version is None or spec is None or spec.origin is None:
        return Check("DeepSpeed", "missing", "not installed", "pip install deepspeed")
    import torch

    # DeepSpeed chooses its accelerator by this rule.
    detected = "cuda" if torch.cuda.is_available() else "cpu"
    accelerator = os.environ.get("DS_ACCELERATOR", detected)
    # The installation writes the list of its compiled ops into this file.
    facts = Path(spec.origin).with_name("git_version_info_installed.py")
    found = re.search(r"^installed_ops\s*=\s*(\{.*\})", facts.read_text(), flags=re.MULTILINE)
    built: dict[str, bool] = ast.literal_eval(found[1]) if found else {}
    ops = ", ".join(name for name in built if built[name]) or "none, and training needs none"
    return Check("DeepSpeed", "ok", f"{version}, accelerator {accelerator}, prebuilt ops: {ops}")


def _slurm() -> Iterator[Check]:
    for command in ("sbatch", "squeue", "sacct"):
        path = shutil.which(command)
        if path is None:
            remedy = "needed for cluster=slurm only: run on a login node, or load its Slurm module"
            yield Check(f"Slurm {command}", "off", "not found", remedy)
            continue
        try:
            answer = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=WAIT_S, check=True
            )
        except subprocess.CalledProcessError as error:
            problem = error.stderr.strip().rpartition("\n")[2]
            yield Check(f"Slurm {command}", "missing", problem, "export SLURM_CONF=/.../slurm.conf")
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Check(f"Slurm {command}", "missing", str(error), f"try: {command} --version")
        else:
            yield Check(f"Slurm {command}", "ok", answer.stdout.strip())


def _mlflow(config: Config) -> Check:
    if not config.tracking.enabled:
        return Check("MLflow", "off", "tracking.enabled=false: the journal only")
    version = _version("mlflow")
    if version is None:
        return Check("MLflow", "missing", "not installed", "pip install mlflow")
    try:
        uri = tracking_uri(config.tracking, config.run.root)
        found = _reach(uri)
    except ConfigError as error:
        return Check("MLflow", "missing", f"{error.where}: {error.got}", error.remedy)
    except (OSError, HTTPException) as error:
        remedy = (
            "start the server or correct tracking.uri; runs go on without it, and "
            "`segresmamba sync RUN` catches up"
        )
        return Check("MLflow", "missing", f"{version}, cannot be reached: {error}", remedy)
    return Check("MLflow", "ok", f"{version}, {found}")


def _reach(uri: str) -> str:
    """Try to reach a tracking URI, and describe what is there.

    Raises:
        OSError: If nothing answers.
        HTTPException: If the answer is not that of a web server.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        path = Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))
        if path.exists():
            path.open("r+b").close()  # raises if the file cannot be written
        return f"SQLite file {path}" + ("" if path.exists() else " (made by the first run)")
    if scheme in DATABASE_PORTS:
        # The URI itself is not shown: it may hold a password.
        address = (parts.hostname or "localhost", parts.port or DATABASE_PORTS[scheme])
        socket.create_connection(address, WAIT_S).close()
        return f"{scheme} database at {address[0]}:{address[1]}"
    server = f"server at {parts.scheme}://{parts.hostname}:{parts.port or scheme}"
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=WAIT_S).close()
    except urllib.error.HTTPError as error:
        # A server that wants a password or has no /health is a server all the same.
        error.close()
        return f"{server} (answers /health with {error.code})"
    return server


def _folder(name: str, folder: Path, remedy: str) -> Check:
    """Whether a file can be written to a folder, or to its nearest parent that exists."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check(name, "missing", f"{folder.resolve()}: {error.strerror}", remedy)
    return Check(name, "ok", f"{folder.resolve()}, {_gib(free)} GiB free")


def _shared_memory() -> Check:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Check("shared memory", "off", "this system has no /dev/shm")
    size = shutil.disk_usage(shared).total
    detail = f"/dev/shm of {_gib(size)} GiB"
    if size < SHARED_MEMORY_GIB * BYTES_PER_GIB:
        remedy = "start the container with --shm-size=8g, or set data.workers=0"
        return Check(
            "shared memory", "missing", f"{detail}: too small for reader processes", remedy
        )
    return Check("shared memory", "ok", detail)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / BYTES_PER_GIB:.1f}"
