"""Read a store completely and say what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from segresmamba.data.conversion.case import digest
from segresmamba.data.conversion.convert import convert
from segresmamba.data.store import layout, ome
from segresmamba.data.store.files import Files
from segresmamba.data.store.locations import files_at
from segresmamba.data.store.manifest import CaseRecord, Manifest, read_manifest
from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import OriginalGrid
from segresmamba.data.volumes.resampling import GridTransform
from segresmamba.data.volumes.statistics import class_voxels
from segresmamba.errors import DataError

_ROUNDING_VOXELS = 0.02
"""Between the affines of a case's image and label, which may differ by half of it."""


@dataclass(frozen=True)
class Problem:
    """One fault of a store."""

    case_id: str
    path: str
    """File or URL."""
    message: str

    def __str__(self) -> str:
        return f"{self.case_id}: {self.message} ({self.path})"


def verify(store: str | Path) -> list[Problem]:
    """Check every case of a store: files, checksums, geometry, values, label, positions.

    Voxels are read through Zarr's own pipeline, which checks the checksum of every chunk.

    Args:
        store: Its folder, zip file or URL.

    Returns:
        What is wrong, in the order of the cases; empty for a sound store.

    Raises:
        DataError: If there is no manifest, or it is damaged or of a newer version; if the server of
            a store cannot be reached, or refuses.
    """
    files = files_at(store)
    manifest = read_manifest(files)
    folders = files.folders()
    problems = []
    for case_id, record in manifest.cases.items():
        case = _Case(files, case_id)
        if case_id not in folders:
            problems.append(Problem(case_id, case.join(""), "the case is missing"))
            continue
        found = _case_problems(case, record, manifest.labels)
        problems += [Problem(case_id, case.join(name), message) for name, message in found]
    problems += _duplicates(files, manifest)
    problems += [
        Problem(folder, files.join(folder), "the folder is no case of the manifest")
        for folder in folders
        if folder not in manifest.cases
    ]
    return problems


def repair(store: str | Path, *, source: Path | None = None, workers: int = 1) -> list[Problem]:
    """Convert the faulty cases of a store anew; folds and sound cases stay as they are.

    Args:
        store: Its folder.
        source: Where the dataset lies now, if no longer where it was converted from.
        workers: Processes.

    Returns:
        What is wrong afterwards: faults of the source come again.

    Raises:
        DataError: If the store has no manifest, or the source cannot be converted.
    """
    if not Path(store).is_dir():
        raise DataError(
            "only a store in a folder can be repaired",
            where=store,
            got="a zip file, a URL, or nothing",
            remedy="repair the folder that it is a copy of, and copy that again",
        )
    root = Path(store)
    problems = verify(root)
    manifest = read_manifest(root)
    faulty = {problem.case_id for problem in problems} & set(manifest.cases)
    if not faulty:
        return problems
    storage = manifest.storage
    if source is None and not storage.source:
        raise DataError(
            "the store does not say what it was converted from",
            where=root,
            got=f"a store of version {storage.converter}",
            remedy="name the dataset with --source",
        )
    convert(
        source or Path(storage.source),
        root,
        format=storage.format,
        workers=workers,
        resample_mismatched=storage.resample_mismatched,
        policy=storage.policy,
        splits=manifest.splits,
        redo=faulty,
    )
    return verify(root)


_Found = tuple[str, str]
"""The array or file at fault, relative to the case, and what is wrong with it."""


@dataclass(frozen=True)
class _Case:
    """One case's files."""

    files: Files
    case_id: str

    def join(self, name: str) -> str:
        return self.files.join(f"{self.case_id}/{name}")

    def attributes(self) -> dict[str, Any]:
        """Of its group; empty if they cannot be read."""
        try:
            content = json.loads(self.files.read(f"{self.case_id}/zarr.json"))["attributes"]
            return dict(content)
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def array(
        self, name: str, *, may_be_empty: bool = False
    ) -> tuple[npt.NDArray[Any] | None, str]:
        """An array with every checksum checked, or None and why not."""
        path = f"{self.case_id}/{name}"
        try:
            with layout.checking_pipeline():
                array = self.files.zarr_array(path)
                if not may_be_empty:
                    try:  # Zarr would take a missing shard for zeros
                        self.files.blob(f"{path}/{layout.shard_name(array.ndim)}").tail(1)
                    except FileNotFoundError:
                        return None, "the shard file is missing"
                return np.asarray(array[...]), ""
        except DataError:
            raise
        except Exception as error:  # codecs raise whatever they like on damaged bytes
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return None, f"the array cannot be read: {reason}"


def _case_problems(case: _Case, record: CaseRecord, labels: dict[str, int]) -> Iterator[_Found]:
    yield from _record_problems(case, record)
    image_CDHW, image_fault = case.array(layout.IMAGE)
    label_DHW, label_fault = case.array(layout.LABEL, may_be_empty=not record.class_voxels)
    if image_CDHW is None:
        yield layout.IMAGE, image_fault
    else:
        yield from _image_problems(image_CDHW, record)
    if label_DHW is None:
        yield layout.LABEL, label_fault
    else:
        yield from _label_problems(label_DHW, record, labels)
        yield from _position_problems(case, label_DHW, record)
    if record.grid_transform is not None:
        yield from _reference_problems(case, record.grid_transform, record)


def _record_problems(case: _Case, record: CaseRecord) -> Iterator[_Found]:
    attributes = case.attributes()
    if _record(attributes) != record:
        yield "zarr.json", "the case's record is damaged or differs from the manifest's"
    affine = np.array(record.affine)
    if affine.shape != (4, 4) or not geometry.is_usable(affine):
        yield "zarr.json", f"the affine does not place the voxels in space: {affine.tolist()}"
    elif not np.allclose(geometry.spacing_mm(affine), record.spacing_mm, rtol=1e-6):
        stored, meant = record.spacing_mm, geometry.spacing_mm(affine)
        yield "zarr.json", f"spacing {stored} is not that of the affine, {meant}"
    elif fault := _original_fault(record, affine):
        yield "zarr.json", fault
    if attributes and attributes.get("ome") != ome.image_attributes(case.case_id, record):
        yield "zarr.json", "the OME metadata does not fit the case"


def _record(attributes: dict[str, Any]) -> CaseRecord | None:
    try:
        return CaseRecord.model_validate(attributes.get(layout.RECORD))
    except ValidationError:
        return None


def _original_fault(record: CaseRecord, affine: geometry.Affine) -> str:
    """What the stored grid has that does not follow from the header of the files; or nothing."""
    original, refit = OriginalGrid.from_text(record.original_header), record.grid_transform
    shape_DHW, meant = geometry.ras_grid(original.shape_XYZ, original.affine)
    if shape_DHW != (refit.full_DHW if refit else record.shape_DHW):
        return f"shape {record.shape_DHW} does not follow from the files' {shape_DHW}"
    if refit:
        meant = refit.affine(meant)
    if geometry.corner_distance_voxels(record.shape_DHW[::-1], meant, affine) > _ROUNDING_VOXELS:
        return "the affine does not follow from that of the files"
    return ""


def _image_problems(image_CDHW: npt.NDArray[Any], record: CaseRecord) -> Iterator[_Found]:
    if image_CDHW.shape != record.shape_CDHW or image_CDHW.dtype.name != record.image_dtype:
        yield (
            layout.IMAGE,
            f"the image is {image_CDHW.dtype} {image_CDHW.shape}, not "
            f"{record.image_dtype} {record.shape_CDHW}",
        )
    elif not np.isfinite(image_CDHW).all():
        wrong = image_CDHW.size - int(np.isfinite(image_CDHW).sum())
        yield layout.IMAGE, f"{wrong} voxels of the image are NaN or infinite"
    elif digest(image_CDHW) != record.image_digest:
        yield layout.IMAGE, "the image's voxels are not those that were converted"


def _label_problems(
    label_DHW: npt.NDArray[Any], record: CaseRecord, labels: dict[str, int]
) -> Iterator[_Found]:
    if label_DHW.shape != record.shape_DHW or label_DHW.dtype.name != record.label_dtype:
        yield (
            layout.LABEL,
            f"the label is {label_DHW.dtype} {label_DHW.shape}, not "
            f"{record.label_dtype} {record.shape_DHW}",
        )
        return
    if label_DHW.min() < 0 or label_DHW.max() > max(labels.values()):
        undeclared = sorted(set(np.unique(label_DHW).tolist()) - set(labels.values()))
        yield layout.LABEL, f"the label has undeclared values: {undeclared[:10]}"
    elif not label_DHW.any():
        yield layout.LABEL, "the label is empty"
    elif class_voxels(label_DHW) != record.class_voxels:
        yield layout.LABEL, "the label's class volumes are not those of the record"
    elif digest(label_DHW) != record.label_digest:
        yield layout.LABEL, "the label's voxels are not those that were converted"


def _position_problems(
    case: _Case, label_DHW: npt.NDArray[Any], record: CaseRecord
) -> Iterator[_Found]:
    expected = np.repeat(list(record.class_positions), list(record.class_positions.values()))
    if not len(expected):
        return
    positions, fault = case.array(layout.POSITIONS)
    if positions is None:
        yield layout.POSITIONS, fault
    elif positions.shape != (len(expected), 3):
        yield layout.POSITIONS, f"{positions.shape[0]} positions, not {len(expected)}"
    elif (positions >= label_DHW.shape).any():
        yield layout.POSITIONS, "positions lie outside the volume"
    elif (wrong := int((label_DHW[tuple(positions.T)] != expected).sum())) > 0:
        yield layout.POSITIONS, f"{wrong} positions do not show the class they are listed under"


def _reference_problems(case: _Case, refit: GridTransform, record: CaseRecord) -> Iterator[_Found]:
    reference_DHW, fault = case.array(layout.REFERENCE, may_be_empty=not record.class_voxels)
    if reference_DHW is None:
        yield layout.REFERENCE, fault
    elif reference_DHW.shape != refit.full_DHW:
        yield layout.REFERENCE, f"the files' label is {reference_DHW.shape}, not {refit.full_DHW}"
    elif digest(refit.label(reference_DHW)) != record.label_digest:
        yield layout.REFERENCE, "the stored label does not follow from the files' label"


def _duplicates(files: Files, manifest: Manifest) -> Iterator[Problem]:
    first_with: dict[str, str] = {}
    for case_id, record in manifest.cases.items():
        first = first_with.setdefault(record.image_digest, case_id)
        if first != case_id:
            yield Problem(case_id, files.join(case_id), f"the image is the same as that of {first}")
