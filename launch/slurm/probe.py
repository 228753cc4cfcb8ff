"""What a node of a Slurm job is like: one line of JSON from each node, before the ranks start.

`preflight` runs this file as a script through srun. It needs only the standard library, so it takes
milliseconds and works where the project's own packages cannot be read.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# A network file system may show a new file on other nodes with a delay.
SHARED_PATIENCE_S = 10.0
GPU_PATIENCE_S = 60.0


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


def probe(nonce: Path, content: str, store: str) -> NodeReport:
    """Examine this node.

    Args:
        nonce: A file in the run folder, which the first node has just written.
        content: The content of that file.
        store: The dataset's folder or zip file; empty if it lies behind a URL.
    """
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    gpu_error, gpu_memory_gib = _ask_gpus() if gpus else ("", 0.0)
    # For a slice of a GPU (MIG), nvidia-smi gives the size of the whole GPU.
    is_sliced = any(gpu.startswith("MIG-") for gpu in gpus)
    return NodeReport(
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        time_s=time.time(),
        gpus=len(gpus),
        gpu_error=gpu_error,
        gpu_memory_gib=0.0 if is_sliced else gpu_memory_gib,
        memory_gib=_memory_gib(),
        shm_gib=shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").is_dir() else 0.0,
        shared=_sees(nonce, content),
        write_error=_write_error(nonce),
        store_error=_store_error(store),
    )


def _ask_gpus() -> tuple[str, float]:
    """The error of nvidia-smi, and the memory of the smallest GPU."""
    if shutil.which("nvidia-smi") is None:
        return "", 0.0
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
            timeout=GPU_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gave no answer for {GPU_PATIENCE_S:.0f} s", 0.0
    if done.returncode:
        return (done.stdout + done.stderr).strip()[:200], 0.0
    # Where GPU and host share their memory, it prints "[N/A]".
    sizes_mib = [int(line) for line in done.stdout.split("\n") if line.strip().isdecimal()]
    return "", min(sizes_mib, default=0) / 2**10


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
    print(json.dumps(asdict(probe(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))))
