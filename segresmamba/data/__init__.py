"""Dataset formats in, the Zarr store, and crops out.

The way of a volume: a dataset of any format (`formats`), one case in memory (`volumes`), one Zarr
group (`conversion`, `store`), the place of the next crop (`stream.sampler`), batches
(`stream.loader`), the training device (`stream.augmentation`).

Names are imported on first use. A process that only reads crops then imports zarr, but not torch,
MONAI and nibabel, each of which takes longer to import than a case to read. No module here may have
the name of one of these functions: importing the module would hide the function.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segresmamba.data.conversion.convert import Conversion, convert
    from segresmamba.data.conversion.verify import Problem, repair, verify
    from segresmamba.data.formats.sample import make_sample
    from segresmamba.data.preprocessing import Policy, Preprocessing
    from segresmamba.data.store.dataset import Case, Dataset, open_dataset
    from segresmamba.data.store.fingerprint import write_fingerprint
    from segresmamba.data.stream.augmentation import augment, normalise
    from segresmamba.data.stream.batch import Batch
    from segresmamba.data.stream.loader import make_loader, prepare_readers
    from segresmamba.data.stream.sampler import PatchSampler
    from segresmamba.data.stream.staging import stage
    from segresmamba.data.volumes.geometry import OriginalGrid
    from segresmamba.data.volumes.volume import Volume, read_volume

__all__ = [
    "Batch",
    "Case",
    "Conversion",
    "Dataset",
    "OriginalGrid",
    "PatchSampler",
    "Policy",
    "Preprocessing",
    "Problem",
    "Volume",
    "augment",
    "convert",
    "make_loader",
    "make_sample",
    "normalise",
    "open_dataset",
    "prepare_readers",
    "read_volume",
    "repair",
    "stage",
    "verify",
    "write_fingerprint",
]

_MODULES = {
    "conversion.convert": ("Conversion", "convert"),
    "conversion.verify": ("Problem", "repair", "verify"),
    "formats.sample": ("make_sample",),
    "preprocessing": ("Policy", "Preprocessing"),
    "store.dataset": ("Case", "Dataset", "open_dataset"),
    "store.fingerprint": ("write_fingerprint",),
    "stream.augmentation": ("augment", "normalise"),
    "stream.batch": ("Batch",),
    "stream.loader": ("make_loader", "prepare_readers"),
    "stream.sampler": ("PatchSampler",),
    "stream.staging": ("stage",),
    "volumes.geometry": ("OriginalGrid",),
    "volumes.volume": ("Volume", "read_volume"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
