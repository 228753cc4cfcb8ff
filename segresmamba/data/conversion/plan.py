"""A conversion decided completely before its first case, the same in every process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segresmamba import __version__
from segresmamba.data.conversion.store_folder import StoreFolder
from segresmamba.data.formats.registry import AUTO, detect, read_source
from segresmamba.data.formats.source import SourceDataset
from segresmamba.data.preprocessing import Policy
from segresmamba.data.records import Spacing
from segresmamba.data.store import layout
from segresmamba.data.store.manifest import SCHEMA_VERSION, Storage
from segresmamba.data.store.splits import Split, make_splits, read_splits, splits_from_held_out
from segresmamba.data.volumes.geometry import ras_grid, spacing_mm
from segresmamba.data.volumes.voxel_file import open_voxels
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConversionRequest:
    """What a conversion is asked for; see `conversion.convert`."""

    source: Path
    out: Path
    format: str = AUTO
    resample_mismatched: bool = False
    policy: Policy = field(default_factory=Policy)
    splits: Path | Sequence[Split] | None = None
    overwrite: bool = False

    def going_on(self) -> ConversionRequest:
        """The same for processes that join or end a conversion that has begun."""
        return replace(self, overwrite=False)


@dataclass(frozen=True)
class ConversionPlan:
    """What is converted, and how: nothing of it is open any more."""

    source: Path
    out: Path
    dataset: SourceDataset
    storage: Storage
    splits: tuple[Split, ...]

    @classmethod
    def from_request(cls, request: ConversionRequest) -> ConversionPlan:
        """Read the source's lists; of the volumes nothing, or headers for a median.

        Raises:
            DataError: If the source, the policy or the splits cannot be used.
        """
        source, out = request.source, request.out
        name = detect(source) if request.format == AUTO else request.format
        dataset = read_source(source, name)
        policy = request.policy.for_channels(dataset.channel_names)
        begun = {} if request.overwrite else StoreFolder.begun(out)
        storage = Storage(
            converter=__version__,
            codec=begun.get("codec", layout.CODEC),
            chunk_DHW=begun.get("chunk_DHW", layout.CHUNK_DHW),
            source=str(source.absolute()),
            format=name,
            resample_mismatched=request.resample_mismatched,
            policy=policy,
        )
        splits = _splits(dataset, request.splits)
        plan = cls(source, out, dataset, storage, splits)
        return plan._with_spacing(begun.get("spacing_mm"))

    @property
    def folder_header(self) -> dict[str, Any]:
        """What all cases of a store must have in common."""
        storage = self.storage.model_dump(mode="json")
        return {
            "schema_version": SCHEMA_VERSION,
            "channel_names": list(self.dataset.channel_names),
            "labels": self.dataset.labels,
            "codec": storage["codec"],
            "chunk_DHW": storage["chunk_DHW"],
            **storage["policy"],
            "spacing_mm": storage["spacing_mm"],
        }

    def folder(self, *, overwrite: bool = False) -> StoreFolder:
        """The store's folder while it is written."""
        case_ids = {case.case_id for case in self.dataset.cases}
        return StoreFolder(self.out, self.folder_header, case_ids, overwrite=overwrite)

    def _with_spacing(self, begun: Spacing | None) -> ConversionPlan:
        """The plan with the voxel size that its policy comes to.

        Cases that were added since a conversion began do not move the median.
        """
        wanted = self.storage.policy.spacing
        if wanted == "keep":
            return self
        if wanted == "median":
            wanted = begun or _median_spacing_mm(self.dataset)
            logger.info("voxel size (D, H, W): %s mm, the median", list(wanted))
        storage = self.storage.model_copy(update={"spacing_mm": tuple(wanted)})
        return replace(self, storage=storage)


def _median_spacing_mm(dataset: SourceDataset) -> Spacing:
    sizes = []
    for case in dataset.cases:
        try:
            first = open_voxels(case.images[0], len(dataset.channel_names) if case.stacked else 0)
        except DataError as error:  # converting the case will say so again
            last = error
            continue
        sizes.append(spacing_mm(ras_grid(first.shape_XYZ, first.affine)[1]))
    if not sizes:
        raise last
    depth, height, width = np.round(np.median(sizes, axis=0), 4).tolist()
    return depth, height, width


def _splits(dataset: SourceDataset, own: Path | Sequence[Split] | None) -> tuple[Split, ...]:
    case_ids = [case.case_id for case in dataset.cases]
    if isinstance(own, Path):
        return read_splits(own, case_ids)
    if own:
        return tuple(own)
    if dataset.held_out:
        return splits_from_held_out(dataset.held_out, case_ids)
    return make_splits(case_ids, {case.case_id: case.patient for case in dataset.cases})
