"""Read a store completely, report what is wrong with it, and convert faulty cases again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.conversion.case import digest
from segresmamba.data.conversion.convert import convert
from segresmamba.data.conversion.earlier_versions import fault_of_earlier_version, series_folders
from segresmamba.data.store import layout, ome
from segresmamba.data.store.files import Files
from segresmamba.data.store.locations import files_at
from segresmamba.data.store.manifest import CaseRecord, Manifest, read_manifest
from segresmamba.data.volumes import geometry
from segresmamba.data.volumes.geometry import OriginalGrid
from segresmamba.data.volumes.statistics import annotated, class_voxels, with_ignored
from segresmamba.errors import DataError
from segresmamba.storage.json_text import parse_json

logger = logging.getLogger(__name__)

# A record keeps the label's header and the image's affine, which may differ by half of this.
_ROUNDING_VOXELS = 0.02
_Fault = tuple[str, str]
"""The array or file at fault, relative to the case, and what is wrong with it."""


@dataclass(frozen=True)
class Problem:
    """One fault of a store."""

    case_id: str
    path: str
    """File or URL."""
    message: str

    def __str__(self) -> str:
        return f"{self.case_id}: {self.message} ({self.path})"


def verify(store: str | Path, *, source: Path | None = None) -> list[Problem]:
    """Check every case of a store: files, checksums, geometry, values, label, positions.

    Voxels are read through Zarr's own pipeline, which checks the checksum of every chunk.

    Args:
        store: Its folder, zip file or URL.
        source: Where the dataset lies now, if it has moved since it was converted. Only the headers
            of DICOM series are read there, if an earlier version converted them.

    Returns:
        What is wrong, in the order of the cases; empty for a sound store.

    Raises:
        DataError: If there is no manifest, or it is damaged or of a newer version; if the server of
            a store cannot be reached, or refuses.
    """
    files = files_at(store)
    manifest = read_manifest(files)
    folders = files.folders()
    problems: list[Problem] = []
    for case_id, record in manifest.cases.items():
        if case_id in folders:
            checks = _CaseChecks(
                files, case_id, record, manifest.labels, manifest.storage.ignore_value
            )
            problems += checks.problems()
        else:
            problems.append(Problem(case_id, files.join(f"{case_id}/"), "the case is missing"))
    # The same image twice may be one patient on both sides of a fold.
    first_with: dict[str, str] = {}
    for case_id, record in manifest.cases.items():
        first = first_with.setdefault(record.image_digest, case_id)
        if first != case_id:
            message = f"the image is the same as that of {first}"
            problems.append(Problem(case_id, files.join(case_id), message))
    problems += _misread(files, manifest, source or Path(manifest.storage.source))
    problems += [
        Problem(folder, files.join(folder), "the folder is not a case of the manifest")
        for folder in folders
        if folder not in manifest.cases
    ]
    return problems


def repair(store: str | Path, *, source: Path | None = None, workers: int = 1) -> list[Problem]:
    """Convert the faulty cases of a store again; folds and sound cases stay as they are.

    Args:
        store: Its folder.
        source: Where the dataset lies now, if it has moved since it was converted.
        workers: Number of processes.

    Returns:
        What is wrong afterwards: faults of the source are found again.

    Raises:
        DataError: If the store has no manifest, or the source cannot be converted.
    """
    root = Path(store)
    if not root.is_dir():
        raise DataError(
            "only a store in a folder can be repaired",
            where=store,
            got="a zip file, a URL, or nothing",
            remedy="repair the folder that it is a copy of, and copy that folder again",
        )
    problems = verify(root, source=source)
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
    return verify(root, source=source)


def _misread(files: Files, manifest: Manifest, source: Path) -> Iterator[Problem]:
    """Cases that an earlier version misread. Without their source nothing can be said."""
    unknown = []
    for case_id, record in manifest.cases.items():
        folders = series_folders(record, source)
        if not folders:
            continue
        if not all(folder.is_dir() for folder in folders):
            unknown.append(case_id)
        elif fault := fault_of_earlier_version(record, folders):
            message = f"an earlier version misread the case: {fault}"
            yield Problem(case_id, files.join(case_id), message)
    if unknown:
        logger.warning(
            "%d cases were read from DICOM by an earlier version, which misread tilted series and "
            "slices with a rescale of their own. Their source is not at %s, so they are not "
            "checked; with --fix, --source says where it is",
            len(unknown),
            source,
        )


@dataclass(frozen=True)
class _CaseChecks:
    """The checks of one case's group against its record in the manifest."""

    files: Files
    case_id: str
    record: CaseRecord
    labels: dict[str, int]
    ignore_value: int | None

    def problems(self) -> Iterator[Problem]:
        for check in (self.metadata, self.image, self.label, self.reference):
            try:
                for name, message in check():
                    yield Problem(self.case_id, self.files.join(f"{self.case_id}/{name}"), message)
            except DataError:
                raise
            except Exception as error:  # absurd records lead to errors of any type
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                message = f"the {check.__name__} cannot be checked: {reason}"
                yield Problem(self.case_id, self.files.join(self.case_id), message)

    def metadata(self) -> Iterator[_Fault]:
        record = self.record
        attributes: dict[str, Any] = {}
        stored = None
        try:
            content = parse_json(self.files.read(f"{self.case_id}/zarr.json"))
            attributes = dict(content["attributes"])
            stored = CaseRecord.model_validate(attributes.get(layout.RECORD))
        except DataError:  # the store's server cannot be reached: that is no fault of the case
            raise
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if stored != record:
            yield "zarr.json", "the case's record is damaged or differs from the manifest's"
        affine = np.array(record.affine)
        if affine.shape != (4, 4) or not geometry.is_usable(affine):
            yield "zarr.json", f"the affine does not place the voxels in space: {affine.tolist()}"
        elif not np.allclose(geometry.spacing_mm(affine), record.spacing_mm, rtol=1e-6):
            expected = geometry.spacing_mm(affine)
            yield "zarr.json", f"spacing {record.spacing_mm} is not that of the affine, {expected}"
        else:
            yield from self.origin(affine)
        if attributes and attributes.get("ome") != ome.image_attributes(
            self.case_id, record.affine, record.spacing_mm
        ):
            yield "zarr.json", "the OME metadata does not fit the case"

    def origin(self, affine: geometry.Affine) -> Iterator[_Fault]:
        """See that shape and affine follow from the header of the source files."""
        original, transform = (
            OriginalGrid.from_text(self.record.original_header),
            self.record.grid_transform,
        )
        shape_DHW, expected = geometry.ras_grid(original.shape_XYZ, original.affine)
        stored_DHW = self.record.shape_DHW
        if shape_DHW != (transform.full_DHW if transform else stored_DHW):
            yield "zarr.json", f"shape {stored_DHW} does not follow from the files' {shape_DHW}"
            return
        if transform:
            expected = transform.affine(expected)
        apart_voxels = geometry.corner_distance_voxels(stored_DHW[::-1], expected, affine)
        if apart_voxels > _ROUNDING_VOXELS:
            yield "zarr.json", "the affine does not follow from that of the files"

    def image(self) -> Iterator[_Fault]:
        record = self.record
        image_CDHW, fault = self.read(layout.IMAGE, "image", record.shape_CDHW, record.image_dtype)
        if image_CDHW is None:
            yield layout.IMAGE, fault
        elif not np.isfinite(image_CDHW).all():
            wrong = image_CDHW.size - int(np.isfinite(image_CDHW).sum())
            yield layout.IMAGE, f"{wrong} voxels of the image are NaN or infinite"
        elif digest(image_CDHW) != record.image_digest:
            yield layout.IMAGE, "the image's voxels are not those that were converted"

    def label(self) -> Iterator[_Fault]:
        record, values = self.record, with_ignored(self.labels, self.ignore_value).values()
        label_DHW, fault = self.read(layout.LABEL, "label", record.shape_DHW, record.label_dtype)
        if label_DHW is None:
            yield layout.LABEL, fault
            return
        if label_DHW.min() < 0 or label_DHW.max() > max(values):
            undeclared = sorted(set(np.unique(label_DHW).tolist()) - set(values))
            yield layout.LABEL, f"the label has undeclared values: {undeclared[:10]}"
        elif not label_DHW.any():
            yield layout.LABEL, "the label is empty"
        elif class_voxels(annotated(label_DHW, self.ignore_value)) != record.class_voxels:
            yield layout.LABEL, "the label's class volumes are not those of the record"
        elif digest(label_DHW) != record.label_digest:
            yield layout.LABEL, "the label's voxels are not those that were converted"
        yield from self.positions(label_DHW)

    def positions(self, label_DHW: npt.NDArray[Any]) -> Iterator[_Fault]:
        listed = self.record.class_positions
        expected = np.repeat(list(listed), list(listed.values()))
        if not len(expected):  # then there is no such array
            return
        positions, fault = self.read(layout.POSITIONS, "list of positions", (len(expected), 3))
        if positions is None:
            yield layout.POSITIONS, fault
        elif (positions >= label_DHW.shape).any():
            yield layout.POSITIONS, "positions lie outside the volume"
        elif (wrong := int((label_DHW[tuple(positions.T)] != expected).sum())) > 0:
            yield (
                layout.POSITIONS,
                f"{wrong} positions do not show the class they are listed under",
            )

    def reference(self) -> Iterator[_Fault]:
        """Check the label on the files' grid, which is stored where the policy changed the grid."""
        transform = self.record.grid_transform
        if transform is None:
            return
        name = layout.REFERENCE
        reference_DHW, fault = self.read(name, "files' label", transform.full_DHW)
        if reference_DHW is None:
            yield name, fault
        elif digest(transform.label(reference_DHW)) != self.record.label_digest:
            yield name, "the stored label does not follow from the files' label"

    def read(
        self, name: str, what: str, shape: tuple[int, ...], dtype: str = ""
    ) -> tuple[npt.NDArray[Any] | None, str]:
        """An array with every checksum checked, or None and why it cannot be read.

        An array of another shape or dtype is not read: its metadata may say anything.
        """
        path = f"{self.case_id}/{name}"
        may_be_empty = name in (layout.LABEL, layout.REFERENCE) and not self.record.class_voxels
        try:
            with layout.checking_pipeline():
                array = self.files.zarr_array(path)
                wanted = dtype or array.dtype.name
                if (array.shape, array.dtype.name) != (shape, wanted):
                    return None, f"the {what} is {array.dtype} {array.shape}, not {wanted} {shape}"
                # Zarr writes no shard for zeros, and reads a missing one as zeros. Only labels may
                # be all zeros: any other shard must be there.
                if not may_be_empty:
                    try:
                        self.files.blob(f"{path}/{layout.shard_name(array.ndim)}").tail(1)
                    except FileNotFoundError:
                        return None, "the shard file is missing"
                return np.asarray(array[...]), ""
        except DataError:
            raise
        except Exception as error:  # codecs raise exceptions of any type on damaged bytes
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return None, f"the array cannot be read: {reason}"
