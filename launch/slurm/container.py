"""Ranks in a container: the command that goes before their Python, or the options of srun.

    apptainer exec --nv --bind FOLDER,... IMAGE python      where the nodes have Apptainer
    srun --container-image=IMAGE --container-mounts=...     where Slurm has the plugin pyxis

Only the ranks run inside. The batch script, the look at the nodes and the queueing stay outside,
with the Python that submits.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

from segresmamba.config import ClusterConfig
from segresmamba.errors import LaunchError

_RUNTIMES = ("apptainer", "singularity")
# What a container has if cluster.python does not say otherwise.
_PYTHON = "python"


class Inside(NamedTuple):
    """How the ranks get into a container."""

    python: str
    """What takes the place of the Python of the ranks, as shell."""
    srun: tuple[str, ...]
    """Options of their srun."""


def with_binds(cluster: ClusterConfig, *places: Path | str | None) -> ClusterConfig:
    """The cluster with folders and files that its container has to see; URLs are left out."""
    if cluster.container is None:
        return cluster
    here = [str(Path(place).absolute()) for place in places if place and "://" not in str(place)]
    return cluster.model_copy(update={"binds": (*cluster.binds, *dict.fromkeys(here))})


def inside(cluster: ClusterConfig) -> Inside | None:
    """How the ranks get into `cluster.container`; None if there is none.

    Raises:
        LaunchError: If neither this machine's Slurm nor its software can run containers, or the
            image is a file that is not there.
    """
    image = cluster.container
    if image is None:
        return None
    python = shlex.quote(cluster.python or _PYTHON)
    is_sif = image.endswith(".sif")
    if is_sif and not Path(image).is_file():
        raise LaunchError(
            "the container image is not there",
            where="cluster.container",
            got=image,
            remedy="build it, as in apptainer build segresmamba.sif containers/segresmamba.def, "
            "and give its path on a file system that all nodes share",
        )
    if not is_sif and _has_pyxis():
        mounts = [bind if ":" in bind else f"{bind}:{bind}" for bind in cluster.binds]
        options = [f"--container-mounts={','.join(mounts)}"] if mounts else []
        return Inside(python, (f"--container-image={image}", *options))
    runtime = next((name for name in _RUNTIMES if shutil.which(name)), None)
    if runtime is None:
        raise LaunchError(
            "this machine has no software that runs containers",
            where="cluster.container",
            got=f"{image}, without {' or '.join(_RUNTIMES)}, and srun has no --container-image",
            remedy="load its module, as in `module load apptainer`, here and in cluster.setup",
        )
    binds = ["--bind", ",".join(cluster.binds)] if cluster.binds else []
    where = image if not is_sif else str(Path(image).absolute())
    return Inside(f"{shlex.join([runtime, 'exec', '--nv', *binds, where])} {python}", ())


@cache
def _has_pyxis() -> bool:
    if shutil.which("srun") is None:
        return False
    asked = subprocess.run(["srun", "--help"], capture_output=True, text=True, check=False)
    return "--container-image" in asked.stdout
