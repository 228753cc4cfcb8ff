"""Copy the cases that a job reads to storage of its node, once for each node.

    <folder>/<dataset>-<digest>.lock
    <folder>/<dataset>-<digest>/dataset.json, <case>/...    a store with the cases copied so far

The name carries the digest of the content, so another job finds the folder and completes it. A case
appears under its name when all of it is copied. All ranks of a node call `stage`: the first one to
hold the lock copies, and the others wait for it and find the cases there.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from segresmamba.data.store.dataset import Dataset
from segresmamba.data.store.local_files import LocalFiles
from segresmamba.data.store.manifest import MANIFEST
from segresmamba.errors import ConfigError, DataError
from segresmamba.storage import atomic
from segresmamba.storage.locks import locked

logger = logging.getLogger(__name__)

_GIB = 2**30
_MARGIN = 1.02  # a copy takes more than its files' sizes: whole blocks, and folders


def stage(dataset: Dataset, case_ids: Sequence[str], folder: str) -> Dataset:
    """Copy cases to storage of this node; return the dataset there.

    Args:
        dataset: An opened store of any kind.
        case_ids: Cases that the job reads. Others cannot be read afterwards.
        folder: Folder to copy to. $NAME stands for an environment variable of this node.

    Raises:
        ConfigError: If an environment variable is not set here.
        DataError: If there is no such case, the cases do not fit, or the folder cannot be written.
    """
    for case_id in case_ids:
        dataset[case_id]  # its name becomes a path, and only those in the manifest were checked
    expanded = os.path.expanduser(os.path.expandvars(folder))
    if "$" in expanded:
        raise ConfigError(
            "data.stage names an environment variable that is not set on this node",
            where="data.stage",
            got=folder,
            remedy="name one that Slurm sets there (often SLURM_TMPDIR or TMPDIR), or a folder",
        )
    root = Path(expanded).absolute()
    name = f"{dataset.name}-{dataset.digest[:16]}".replace(os.sep, "_").replace("\0", "_")
    target = root / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{name}.lock"):
            _complete(dataset, case_ids, target)
    except OSError as error:
        raise DataError(
            "the store cannot be copied to this node",
            where=f"data.stage: {error.filename or target}",
            got=error.strerror or error,
            remedy="choose another folder with data.stage, or data.stage=null to read the store "
            "where it lies",
        ) from error
    return Dataset(LocalFiles(target), dataset.manifest)


def _complete(dataset: Dataset, case_ids: Sequence[str], target: Path) -> None:
    """Copy the cases that the folder lacks. The caller holds the lock."""
    atomic.remove_leftovers(target)
    for left in target.glob(".*.part"):  # earlier versions called their temporary folders so
        shutil.rmtree(left, ignore_errors=True)
    missing = [case_id for case_id in case_ids if not (target / case_id).exists()]
    sizes = {case_id: dataset.files.sizes(case_id) for case_id in missing}
    needed = sum(sum(files.values()) for files in sizes.values())
    # Before anything is copied, so that a copy that cannot succeed does not fill the disk.
    free = shutil.disk_usage(target).free
    if needed * _MARGIN > free:
        raise DataError(
            "the cases of the job do not fit on this node",
            where=f"data.stage: {target}",
            got=f"{needed / _GIB:.2f} GiB to copy, {free / _GIB:.2f} GiB free",
            remedy="ask for a node with more local storage (sbatch --tmp=SIZE), choose another "
            "folder with data.stage, or data.stage=null to read the store where it lies",
        )
    if missing:
        logger.info("copying %d cases to %s", len(missing), target)
    for case_id, files in sizes.items():
        part = target / f".part-{case_id}"
        for name in files:
            path = part / Path(name).relative_to(case_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset.files.copy(name, path)
        # Not synced to disk, which takes long for many cases. Should the node lose its power, the
        # checksums of the chunks show what is damaged.
        part.rename(target / case_id)
    if not (target / MANIFEST).exists():
        with atomic.atomic_path(target / MANIFEST) as manifest:
            dataset.files.copy(MANIFEST, manifest)
