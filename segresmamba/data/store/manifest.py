"""The records of a store, which are kept as JSON.

<store>/dataset.json              Manifest: everything but voxels, so one read opens a dataset
<store>/<case>/zarr.json          the same CaseRecord under attributes.segresmamba

Two words have one meaning each. A *fingerprint* is the summary statistics of a dataset. A *digest*
identifies content: equal content has an equal digest. The *checksum* in dataset.json is over all
that the file says, so that a damaged statistic is noticed too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from segresmamba.data.preprocessing import (
    CT_KINDS,
    Normalisation,
    Policy,
    Preprocessing,
    ct_normalisation,
)
from segresmamba.data.records import ChannelStatistics, Spacing, StoreRecord
from segresmamba.data.store.files import Files
from segresmamba.data.store.locations import files_at
from segresmamba.data.store.splits import Split
from segresmamba.data.untrusted import is_case_id
from segresmamba.data.volumes.resampling import GridTransform
from segresmamba.errors import DataError
from segresmamba.storage.digest import json_digest
from segresmamba.storage.json_text import parse_json

SCHEMA_VERSION = 3
"""Version 3 added the checksum of dataset.json; earlier stores have none, and are read as well."""
MANIFEST = "dataset.json"
_CHECKSUM = "checksum"


class SourceFile(StoreRecord):
    """State of a file that a case was made from. If it changes, the case is converted again."""

    path: str
    """Relative to the source dataset's folder."""
    size_bytes: int
    modified_ns: int


class CaseRecord(StoreRecord):
    """Everything about a case but its voxels."""

    # A stored key keeps its name when its attribute gets another: other versions read it too.
    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    shape_CDHW: tuple[int, int, int, int]
    image_dtype: Literal["int16", "float32", "float16"]
    label_dtype: Literal["uint8", "int16"]
    spacing_mm: tuple[float, float, float]
    """Along (D, H, W)."""
    affine: tuple[tuple[float, float, float, float], ...]
    """4x4, voxel (x, y, z) of the stored grid to RAS mm."""
    original_header: str
    """NIfTI header of the label file in base64. It leads back to the original geometry."""
    statistics: tuple[ChannelStatistics, ...]
    scale: tuple[float, ...] = ()
    """Intensity that a stored 1 stands for, for each channel. Empty if all are 1."""
    foreground: tuple[tuple[float, ...], ...] = ()
    """For each channel that is normalised as CT, a sample of its labelled voxels' intensities. The
    entry of any other channel is empty."""
    grid_transform: GridTransform | None = Field(
        default=None, validation_alias="refit", serialization_alias="refit"
    )
    """How the policy changed the grid of the files. The label as it was is then stored as well."""
    class_voxels: dict[int, int]
    """Voxels of each foreground class that occurs."""
    class_positions: dict[int, int]
    """Rows that each class has in the `positions` array, in the order of the array."""
    image_digest: str
    """SHA-256 of the stored image's voxels. Cases with equal digests are duplicates."""
    label_digest: str
    source: tuple[SourceFile, ...]
    reader: int = 1
    """Version of what read the source files; 1 misread some DICOM series."""

    @property
    def shape_DHW(self) -> tuple[int, int, int]:
        """Size of the volume in voxels."""
        return self.shape_CDHW[1:]


class Storage(StoreRecord):
    """How the arrays were written."""

    converter: str
    """Version of this package."""
    codec: str
    chunk_DHW: tuple[int, int, int]
    """Shape of an inner chunk. The shard is the whole array."""
    orientation: Literal["RAS"] = "RAS"
    source: str = ""
    """Absolute path of the source dataset. Empty in stores of earlier versions."""
    format: str = "nnunet"
    resample_mismatched: bool = False
    policy: Policy = Policy(intensity=())
    """Has an intensity for each channel. Stores of earlier versions have none: zscore."""
    spacing_mm: Spacing | None = None
    """Voxel size along (D, H, W) that the policy's spacing led to."""
    ignore_value: int | None = None
    """Value in labels of voxels that nobody has annotated: training and scores leave them out."""
    clip: tuple[tuple[float, float] | None, ...] = ()
    """Bounds that training clips each channel to, where the stored image is clipped already."""


class Manifest(StoreRecord):
    """Everything about a dataset but its voxels."""

    schema_version: int = SCHEMA_VERSION
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    storage: Storage
    cases: dict[str, CaseRecord] = Field(min_length=1)
    splits: tuple[Split, ...]
    fingerprint: dict[str, Any]
    """Summary statistics, see `dataset_fingerprint`."""
    preprocessing: Preprocessing = Preprocessing()
    """What is done to an image before a network sees it."""
    digest: str
    """SHA-256 of the content: voxels, geometry, labels, splits and normalisation."""


def build_manifest(
    name: str,
    channel_names: tuple[str, ...],
    labels: dict[str, int],
    storage: Storage,
    cases: Mapping[str, CaseRecord],
    *,
    splits: tuple[Split, ...],
) -> Manifest:
    """Make the manifest from the records of all cases."""
    # Sorted, so that neither the manifest nor the digest depends on the order of conversion.
    ordered = dict(sorted(cases.items()))
    preprocessing = Preprocessing(
        spacing_mm=storage.spacing_mm,
        crop=storage.policy.crop,
        normalisation=_normalisation(storage, list(ordered.values())),
    )
    content: dict[str, Any] = {
        "channels": channel_names,
        "labels": labels,
        "splits": [split.model_dump() for split in splits],
        "cases": {
            case_id: (record.image_digest, record.label_digest, record.affine)
            for case_id, record in ordered.items()
        },
    }
    # Only if it is not zscore, so that stores of versions that knew nothing else keep their digest.
    if any(one.kind != "zscore" for one in preprocessing.normalisation):
        content["normalisation"] = [one.model_dump() for one in preprocessing.normalisation]
    if storage.ignore_value is not None:
        content["ignore_value"] = storage.ignore_value
    return Manifest(
        name=name,
        channel_names=channel_names,
        labels=labels,
        storage=storage,
        cases=ordered,
        splits=splits,
        fingerprint=dataset_fingerprint(channel_names, labels, list(ordered.values())),
        preprocessing=preprocessing,
        digest=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    )


def _normalisation(storage: Storage, cases: list[CaseRecord]) -> tuple[Normalisation, ...]:
    found: list[Normalisation] = []
    for channel, kind in enumerate(storage.policy.intensity):
        if kind not in CT_KINDS:
            found.append(Normalisation(kind=kind))
            continue
        one = ct_normalisation([case.foreground[channel] for case in cases])
        if storage.clip and (bounds := storage.clip[channel]):
            # Cases that were added later have not moved the bounds of those that were there.
            one = one.model_copy(update={"low": bounds[0], "high": bounds[1]})
        found.append(one)
    return tuple(found)


def dataset_fingerprint(
    channel_names: tuple[str, ...], labels: dict[str, int], cases: list[CaseRecord]
) -> dict[str, Any]:
    """Summary statistics of a dataset: medians and means over its cases."""
    voxel_ml = [float(np.prod(case.spacing_mm)) / 1000 for case in cases]

    def channel(index: int) -> dict[str, float]:
        # Records of earlier versions lack the share of non-zero voxels.
        statistics = [case.statistics[index].model_dump(exclude_none=True) for case in cases]
        keys = [key for key in statistics[0] if all(key in one for one in statistics)]
        return {key: float(np.mean([one[key] for one in statistics])) for key in keys}

    def volume_ml(value: int) -> float:
        voxels = [case.class_voxels.get(value, 0) for case in cases]
        return float(np.mean(np.multiply(voxels, voxel_ml)))

    return {
        "cases": len(cases),
        "median_shape_DHW": np.median([case.shape_DHW for case in cases], axis=0).tolist(),
        "median_spacing_mm": np.median([case.spacing_mm for case in cases], axis=0).tolist(),
        "mean_intensities": {name: channel(index) for index, name in enumerate(channel_names)},
        "mean_class_volume_ml": {name: volume_ml(value) for name, value in labels.items() if value},
    }


def manifest_text(manifest: Manifest) -> str:
    """What dataset.json holds: the manifest and its checksum."""
    content = json.loads(manifest.model_dump_json())
    return json.dumps(content | {_CHECKSUM: json_digest(content)}, indent=1)


def read_manifest(store: Path | Files) -> Manifest:
    """Read a store's manifest.

    Raises:
        DataError: If there is no manifest, it is damaged, or a newer version wrote it; if the
            server of a store cannot be reached or refuses access.
    """
    files = files_at(store) if isinstance(store, Path) else store
    path = files.join(MANIFEST)
    try:
        content = parse_json(files.read(MANIFEST))
        if (version := int(content["schema_version"])) > SCHEMA_VERSION:
            raise newer_version(path, version)
        written = content.pop(_CHECKSUM, None)
        if written is not None and written != (found := json_digest(content)):
            raise ValueError(f"checksum {found}, written with {written}")
        manifest = Manifest.model_validate(content)
        _require_folder_names(manifest, path)
        return manifest
    except DataError:  # caught here, as it is a ValueError too
        raise
    except OSError as error:
        # A run keeps the path as it was given, and its user may be in another folder by now.
        is_relative = "://" not in path and not Path(path).is_absolute()
        raise DataError(
            "there is no converted dataset",
            where=path,
            got=f"{error.strerror} in {Path.cwd()}" if is_relative else error.strerror,
            remedy="run `segresmamba convert SOURCE STORE` to its end (it goes on where it "
            "stopped), or correct data.store",
        ) from error
    # Pydantic's errors are ValueErrors; a version that is infinite overflows.
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(
            "the manifest of a dataset is damaged",
            where=path,
            got=" ".join(str(error).split())[:200],
            remedy="bring the file back from a copy; or run the same `segresmamba convert` again: "
            "it keeps the cases that are done, and writes the manifest anew",
        ) from error


def _require_folder_names(manifest: Manifest, path: str) -> None:
    """Refuse names of cases that, as a path, would lead out of the store or of a copy of it."""
    ids = {*manifest.cases, *(one for split in manifest.splits for one in split.train + split.val)}
    if unsafe := sorted(case_id for case_id in ids if not is_case_id(case_id)):
        raise DataError(
            "a case's name cannot be a folder's name",
            where=path,
            got=repr(unsafe[0]),
            remedy="take the store from somebody whom you trust, or convert the dataset anew",
        )


def newer_version(path: str | Path, version: int) -> DataError:
    """The error for a store that this version cannot read."""
    return DataError(
        "the dataset was converted by a newer version",
        where=f"{path}: schema_version",
        got=f"{version}, this version reads up to {SCHEMA_VERSION}",
        remedy="upgrade segresmamba, or convert the dataset again with this version",
    )
