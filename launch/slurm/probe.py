"""What a node of a Slurm job is like: one line of JSON from each node, before the ranks start.

`preflight` runs this file as a script through srun. It needs only the standard library, so it takes
milliseconds and works where the project's own packages cannot be read. It imports none of them: it
looks where the ranks would find them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

# A network file system may show a new file on other nodes with a delay.
SHARED_PATIENCE_S = 10.0
GPU_PATIENCE_S = 60.0
# On a file system that many nodes read at once, torch alone may take a minute to import.
TORCH_PATIENCE_S = 180.0
_USE_EACH_GPU = """
import torch
count = torch.cuda.device_count()
for number in range(count):
    torch.zeros(1, device=f"cuda:{number}").add_(1).item()
print(count, f"{torch.__version__}, built for CUDA {torch.version.cuda}")
"""


@dataclass(frozen=True)
class NodeReport:
    """What one node reports."""

    host: str
    time_s: float
    """The node's clock, in seconds since the epoch."""
    gpus: int
    """GPUs that Slurm shows to a rank."""
    gpu_error: str
    """The error of nvidia-smi; empty if there is none, or no nvidia-smi."""
    torch_error: str
    """Why torch cannot use these GPUs; empty if it can, or was not asked."""
    gpu_memory_gib: float
    """Memory of the smallest GPU; 0 if it is unknown."""
    memory_gib: float
    """Memory that this job can still use."""
    shm_gib: float
    """Free space in /dev/shm, through which reader processes hand over batches."""
    shared: bool
    """Whether the node sees the file that the first node wrote into the run folder."""
    write_error: str
    """Why the run folder cannot be written; empty if it can."""
    store_error: str
    """Why the store cannot be read; empty if it can."""
    gpu_name: str = ""
    """What nvidia-smi calls the first GPU; empty if it is unknown."""
    python: str = ""
    """Version of Python, and of the packages that the ranks have to agree on."""
    package: str = ""
    """The folder that the ranks would import from; empty if they would find nothing."""


def probe(nonce: Path, content: str, store: str, *, ask_torch: bool = False) -> NodeReport:
    """Examine this node.

    Args:
        nonce: A file in the run folder, which the first node has just written.
        content: The content of that file.
        store: The dataset's folder or zip file; empty if it lies behind a URL.
        ask_torch: Whether to let torch use each GPU that Slurm shows, which takes seconds.
    """
    # Slurm sets the first for GPUs of NVIDIA, and the second for those of AMD.
    shown = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES") or ""
    gpus = [gpu for gpu in shown.split(",") if gpu]
    gpu_error, gpu_memory_gib, gpu_name = _ask_gpus() if gpus else ("", 0.0, "")
    # For a slice of a GPU (MIG), nvidia-smi gives the size of the whole GPU.
    is_sliced = any(gpu.startswith("MIG-") for gpu in gpus)
    return NodeReport(
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        time_s=time.time(),
        gpus=len(gpus),
        gpu_error=gpu_error,
        torch_error=_ask_torch(len(gpus)) if gpus and ask_torch else "",
        gpu_memory_gib=0.0 if is_sliced else gpu_memory_gib,
        memory_gib=_memory_gib(),
        shm_gib=shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").is_dir() else 0.0,
        shared=_sees(nonce, content),
        write_error=_write_error(nonce),
        store_error=_store_error(store),
        gpu_name=gpu_name,
        python=_versions(),
        package=_package(),
    )


def _ask_gpus() -> tuple[str, float, str]:
    """The error of nvidia-smi, the memory of the smallest GPU, and the name of the first."""
    if shutil.which("nvidia-smi") is None:
        return "", 0.0, ""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
            timeout=GPU_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gave no answer for {GPU_PATIENCE_S:.0f} s", 0.0, ""
    if done.returncode:
        return (done.stdout + done.stderr).strip()[:200], 0.0, ""
    lines = [line.partition(",") for line in done.stdout.split("\n") if line.strip()]
    # Where GPU and host share their memory, it prints "[N/A]".
    sizes_mib = [int(size) for size, _, _ in lines if size.strip().isdecimal()]
    return "", min(sizes_mib, default=0) / 2**10, lines[0][2].strip() if lines else ""


def _versions() -> str:
    versions = [f"Python {sys.version.split()[0]}"]
    for name in ("segresmamba", "torch", "deepspeed"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return ", ".join(versions)


def _package() -> str:
    # As in a rank, which looks into its working folder first, and not into this script's.
    found = PathFinder.find_spec("segresmamba", [os.getcwd(), *sys.path[1:]])
    if found is None:  # an editable install has a finder of its own
        found = importlib.util.find_spec("segresmamba")
    return str(Path(found.origin).parent) if found and found.origin else ""


def _ask_torch(gpus: int) -> str:
    """Why torch cannot use each of the GPUs; empty if it can."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _USE_EACH_GPU],
            capture_output=True,
            text=True,
            check=False,
            timeout=TORCH_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return f"torch had not used them after {TORCH_PATIENCE_S:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
    found, _, build = done.stdout.strip().partition(" ")
    return "" if int(found) >= gpus else f"torch sees {found} of {gpus} GPUs: it is {build}"


def _memory_gib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = dict(line.split(":") for line in lines)
    available_gib = int(values["MemAvailable"].split()[0]) / 2**20
    granted_mib = os.environ.get("SLURM_MEM_PER_NODE", "0")
    return min(available_gib, int(granted_mib) / 2**10 or available_gib)


def _sees(nonce: Path, content: str) -> bool:
    deadline = time.monotonic() + SHARED_PATIENCE_S
    while True:
        try:
            if nonce.read_text() == content:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _write_error(nonce: Path) -> str:
    mine = nonce.with_name(f"{nonce.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        mine.write_text("")
        mine.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _store_error(store: str) -> str:
    if not store:
        return ""
    try:
        if Path(store).is_file():  # a zip file
            Path(store).open("rb").close()
        else:
            next(Path(store).iterdir())
    except OSError as error:
        return error.strerror or str(error)
    except StopIteration:
        return "the folder is empty"
    return ""


if __name__ == "__main__":
    path, text, folder, *options = sys.argv[1:]
    print(json.dumps(asdict(probe(Path(path), text, folder, ask_torch="torch" in options))))
