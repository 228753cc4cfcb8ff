"""The records of a store: what each case's group and the dataset's manifest hold as JSON.

<store>/dataset.json              Manifest: everything but voxels, one read to open a dataset
<store>/<case>/zarr.json          the same CaseRecord under attributes.segresmamba
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from segresmamba.data.preprocessing import Normalisation, Policy, Preprocessing, ct_normalisation
from segresmamba.data.records import ChannelStatistics, Spacing, StoreRecord
from segresmamba.data.store.files import Files
from segresmamba.data.store.locations import files_of
from segresmamba.data.store.splits import Split
from segresmamba.data.volumes.resampling import GridTransform
from segresmamba.errors import DataError

SCHEMA_VERSION = 2
MANIFEST = "dataset.json"


class SourceFile(StoreRecord):
    """How a file that a case was made from looked: another look means convert again."""

    path: str
    """Relative to the source dataset's folder."""
    size_bytes: int
    modified_ns: int


class CaseRecord(StoreRecord):
    """A case without its voxels."""

    shape_CDHW: tuple[int, int, int, int]
    image_dtype: Literal["int16", "float32", "float16"]
    label_dtype: Literal["uint8", "int16"]
    spacing_mm: tuple[float, float, float]
    """Along (D, H, W)."""
    affine: tuple[tuple[float, float, float, float], ...]
    """4x4, voxel (x, y, z) of the stored grid to RAS mm."""
    original_header: str
    """NIfTI header of the label file, base64: the way back."""
    statistics: tuple[ChannelStatistics, ...]
    scale: tuple[float, ...] = ()
    """Intensity that a stored 1 stands for, of each channel; none where all are 1."""
    foreground: tuple[tuple[float, ...], ...] = ()
    """Of each channel that is normalised as CT, a sample of its labelled voxels' intensities; of
    others, nothing."""
    refit: GridTransform | None = None
    """How the policy changed the grid of the files; the label as it was is then kept as well."""
    class_voxels: dict[int, int]
    """Voxels of each foreground class that occurs."""
    class_positions: dict[int, int]
    """How many of them are listed in the `positions` array, in this order."""
    image_digest: str
    """SHA-256 of the stored image's voxels; equal digests are duplicate cases."""
    label_digest: str
    source: tuple[SourceFile, ...]

    @property
    def shape_DHW(self) -> tuple[int, int, int]:
        """Size of the volume."""
        return self.shape_CDHW[1:]


class Storage(StoreRecord):
    """How the arrays were written."""

    converter: str
    """Version of this package."""
    codec: str
    chunk_DHW: tuple[int, int, int]
    """Inner chunk; the shard is the whole array."""
    orientation: Literal["RAS"] = "RAS"
    source: str = ""
    """Absolute path of what was converted; empty in stores of earlier versions."""
    format: str = "nnunet"
    resample_mismatched: bool = False
    policy: Policy = Policy(intensity=())
    """With an intensity for each channel; none in stores of earlier versions, which is zscore."""
    spacing_mm: Spacing | None = None
    """What the policy's spacing came to, along (D, H, W)."""


class Manifest(StoreRecord):
    """A dataset without its voxels."""

    schema_version: int = SCHEMA_VERSION
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    storage: Storage
    cases: dict[str, CaseRecord]
    splits: tuple[Split, ...]
    fingerprint: dict[str, Any]
    """See `fingerprint`."""
    preprocessing: Preprocessing = Preprocessing()
    """How an image is treated before a network sees it."""
    digest: str
    """Identity of the content: the same voxels, geometry, labels and splits give the same."""


def build_manifest(
    name: str,
    channel_names: tuple[str, ...],
    labels: dict[str, int],
    storage: Storage,
    cases: Mapping[str, CaseRecord],
    *,
    splits: tuple[Split, ...],
) -> Manifest:
    """Put the records of all cases together."""
    ordered = dict(sorted(cases.items()))
    preprocessing = Preprocessing(
        spacing_mm=storage.spacing_mm,
        crop=storage.policy.crop,
        normalisation=_normalisation(storage.policy, list(ordered.values())),
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
    if any(one.kind != "zscore" for one in preprocessing.normalisation):
        content["normalisation"] = [one.model_dump() for one in preprocessing.normalisation]
    return Manifest(
        name=name,
        channel_names=channel_names,
        labels=labels,
        storage=storage,
        cases=ordered,
        splits=splits,
        fingerprint=fingerprint(channel_names, labels, list(ordered.values())),
        preprocessing=preprocessing,
        digest=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    )


def _normalisation(policy: Policy, cases: list[CaseRecord]) -> tuple[Normalisation, ...]:
    """Of each channel."""

    def samples(channel: int) -> list[tuple[float, ...]]:
        return [case.foreground[channel] for case in cases]

    return tuple(
        ct_normalisation(samples(channel)) if kind == "ct" else Normalisation(kind=kind)
        for channel, kind in enumerate(policy.intensity)
    )


def fingerprint(
    channel_names: tuple[str, ...], labels: dict[str, int], cases: list[CaseRecord]
) -> dict[str, Any]:
    """What planning and reports need to know of the dataset: medians and means over its cases."""
    voxel_ml = [float(np.prod(case.spacing_mm)) / 1000 for case in cases]

    def channel(index: int) -> dict[str, float]:
        of_cases = [case.statistics[index].model_dump() for case in cases]
        return {key: float(np.mean([one[key] for one in of_cases])) for key in of_cases[0]}

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


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, that also survives a power cut; or leave it as it is.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(store: Path | Files) -> Manifest:
    """Read a store's manifest.

    Raises:
        DataError: If there is none, it is damaged, or written by a newer version; if the server of
            a store cannot be reached, or refuses.
    """
    files = files_of(store) if isinstance(store, Path) else store
    path = files.join(MANIFEST)
    try:
        content = json.loads(files.read(MANIFEST))
        version = int(content["schema_version"])
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            "there is no converted dataset",
            where=path,
            got=error.strerror,
            remedy="run `segresmamba convert SOURCE STORE` to its end (it goes on where it "
            "stopped), or correct data.store",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_manifest(path, error) from error
    if version > SCHEMA_VERSION:
        raise newer_version(path, version)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise _not_a_manifest(path, error) from error


def newer_version(path: str | Path, version: int) -> DataError:
    """The refusal of a store that this version cannot know."""
    return DataError(
        "the dataset was converted by a newer version",
        where=f"{path}: schema_version",
        got=f"{version}, this version reads up to {SCHEMA_VERSION}",
        remedy="upgrade segresmamba, or convert the dataset again with this version",
    )


def _not_a_manifest(path: str, error: Exception) -> DataError:
    return DataError(
        "the manifest of a dataset is damaged",
        where=path,
        got=" ".join(str(error).split())[:200],
        remedy="give the folder that `segresmamba convert` wrote, or run it again",
    )
