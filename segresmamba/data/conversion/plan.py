"""Everything that a conversion decides before its first case.

Each process of a conversion makes the plan from the same request, and comes to the same one.
"""

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
from segresmamba.data.volumes.statistics import with_ignored
from segresmamba.data.volumes.voxel_file import open_voxels
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConversionRequest:
    """What the user asks for; see `conversion.convert` for the fields."""

    source: Path
    out: Path
    format: str = AUTO
    resample_mismatched: bool = False
    policy: Policy = field(default_factory=Policy)
    splits: Path | Sequence[Split] | None = None
    overwrite: bool = False

    def going_on(self) -> ConversionRequest:
        """The same request for processes that join or end a conversion that has begun.

        They must not empty the store again.
        """
        return replace(self, overwrite=False)


@dataclass(frozen=True)
class ConversionPlan:
    """What is converted, and how. Nothing in it is left to be decided."""

    source: Path
    out: Path
    dataset: SourceDataset
    storage: Storage
    splits: tuple[Split, ...]

    @classmethod
    def from_request(cls, request: ConversionRequest) -> ConversionPlan:
        """Read the source's lists of files, and for a median spacing the headers of its images.

        Raises:
            DataError: If the source, the policy or the splits cannot be used.
        """
        source, out = request.source, request.out
        name = detect(source) if request.format == AUTO else request.format
        dataset = read_source(source, name)
        policy = request.policy.for_channels(dataset.channel_names)
        # A store goes on as it was begun, though another version of this package may choose another
        # codec, and cases that have been added since would move the median.
        begun = {} if request.overwrite else StoreFolder.resumed_header(out)
        wanted_mm: Spacing | None = None
        if policy.spacing == "median":
            wanted_mm = begun.get("spacing_mm") or _median_spacing_mm(dataset)
            logger.info("voxel size (D, H, W): %s mm, the median", list(wanted_mm))
        elif policy.spacing != "keep":
            wanted_mm = policy.spacing
        storage = Storage(
            converter=__version__,
            codec=begun.get("codec", layout.CODEC),
            chunk_DHW=begun.get("chunk_DHW", layout.CHUNK_DHW),
            source=str(source.absolute()),
            format=name,
            resample_mismatched=request.resample_mismatched,
            policy=policy,
            spacing_mm=wanted_mm,
            ignore_value=dataset.ignore_value,
            clip=begun.get("clip", ()),
        )
        case_ids = [case.case_id for case in dataset.cases]
        if isinstance(request.splits, Path):
            splits = read_splits(request.splits, case_ids)
        elif request.splits:
            splits = tuple(request.splits)
        elif dataset.held_out:
            splits = splits_from_held_out(dataset.held_out, case_ids)
        else:
            splits = make_splits(case_ids, {case.case_id: case.patient for case in dataset.cases})
        return cls(source, out, dataset, storage, splits)

    def folder(self, *, overwrite: bool = False) -> StoreFolder:
        """The store's folder while it is written."""
        storage: dict[str, Any] = self.storage.model_dump(mode="json")
        header = {
            "schema_version": SCHEMA_VERSION,
            "channel_names": list(self.dataset.channel_names),
            "labels": with_ignored(self.dataset.labels, self.dataset.ignore_value),
            "codec": storage["codec"],
            "chunk_DHW": storage["chunk_DHW"],
            **storage["policy"],
            # In a store with a median spacing the policy does not say how large voxels are.
            "spacing_mm": storage["spacing_mm"],
            "clip": storage["clip"],
        }
        case_ids = {case.case_id for case in self.dataset.cases}
        return StoreFolder(self.out, header, case_ids, overwrite=overwrite)


def _median_spacing_mm(dataset: SourceDataset) -> Spacing:
    sizes = []
    for case in dataset.cases:
        try:
            first = open_voxels(case.images[0], len(dataset.channel_names) if case.stacked else 0)
        except DataError as error:  # converting the case will report it
            last = error
            continue
        sizes.append(spacing_mm(ras_grid(first.shape_XYZ, first.affine)[1]))
    if not sizes:
        raise last
    depth, height, width = np.round(np.median(sizes, axis=0), 4).tolist()
    return depth, height, width
