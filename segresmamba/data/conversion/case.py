"""Convert one case: its files become one group of the store."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.conversion.earlier_versions import READER
from segresmamba.data.conversion.plan import ConversionPlan
from segresmamba.data.formats.source import SourceCase
from segresmamba.data.preprocessing import CT_KINDS, Policy, Preprocessing
from segresmamba.data.store.case_writer import write_case
from segresmamba.data.store.manifest import CaseRecord, SourceFile
from segresmamba.data.volumes.dtypes import to_policy_dtype
from segresmamba.data.volumes.geometry import OriginalGrid
from segresmamba.data.volumes.label import read_label
from segresmamba.data.volumes.resampling import GridTransform
from segresmamba.data.volumes.statistics import (
    annotated,
    class_positions,
    class_voxels,
    foreground_sample,
    positions_kept,
    with_ignored,
)
from segresmamba.data.volumes.volume import Volume, read_volume
from segresmamba.data.volumes.voxel_file import FOR_2D, files_of
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)


def convert_case(plan: ConversionPlan, case: SourceCase) -> CaseRecord:
    """Convert a case. Its group appears complete or not at all.

    Raises:
        DataError: If one of its files cannot be used, or the group cannot be written.
    """
    path, policy = plan.out / case.case_id, plan.storage.policy
    volume, reference_DHW, original = _read(plan, case)
    label_DHW = volume.transform.label(reference_DHW) if volume.transform else reference_DHW
    ignored = plan.storage.ignore_value
    known_DHW = annotated(label_DHW, ignored)
    voxels = class_voxels(known_DHW)
    if volume.transform:
        known = annotated(reference_DHW, ignored)
        _warn_of_lost_labels(case.case_id, volume.transform, known, voxels)
    # Before the image is clipped and changes its dtype, which uses it up.
    foreground = _foreground(volume, known_DHW, sum(voxels.values()), policy)
    _clip(volume.image_CDHW, plan.storage.clip)
    image_CDHW, scale = to_policy_dtype(volume.image_CDHW, volume.statistics, policy, path)
    record = CaseRecord(
        shape_CDHW=image_CDHW.shape,
        image_dtype=image_CDHW.dtype.name,
        label_dtype=label_DHW.dtype.name,
        spacing_mm=volume.spacing_mm,
        affine=volume.affine.tolist(),
        original_header=original.text,
        statistics=volume.statistics,
        scale=scale,
        foreground=foreground if CT_KINDS & set(policy.intensity) else (),
        grid_transform=volume.transform,
        class_voxels=voxels,
        class_positions={value: positions_kept(count) for value, count in voxels.items()},
        image_digest=digest(image_CDHW),
        label_digest=digest(label_DHW),
        source=source_files(case, plan.source),
        reader=READER,
    )
    try:
        write_case(
            path,
            record,
            plan.storage,
            labels=with_ignored(plan.dataset.labels, ignored),
            image_CDHW=image_CDHW,
            label_DHW=label_DHW,
            positions=class_positions(label_DHW, voxels, case.case_id),
            reference_DHW=reference_DHW if volume.transform else None,
        )
    except OSError as error:
        raise DataError(
            "a case cannot be written",
            where=path,
            got=str(error),
            remedy="free disk space or choose another folder, and run again; nothing of the case "
            "is left and finished cases are not redone",
        ) from error
    return record


def case_foreground(plan: ConversionPlan, case: SourceCase) -> tuple[tuple[float, ...], ...]:
    """The intensities that stand for the labelled voxels of each CT channel; see `CaseRecord`.

    Raises:
        DataError: As `convert_case`.
    """
    volume, reference_DHW, _ = _read(plan, case)
    label_DHW = volume.transform.label(reference_DHW) if volume.transform else reference_DHW
    known_DHW = annotated(label_DHW, plan.storage.ignore_value)
    voxels = sum(class_voxels(known_DHW).values())
    return _foreground(volume, known_DHW, voxels, plan.storage.policy)


def digest(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's voxels, dtype and shape."""
    hashed = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    for plane in array.reshape(-1, *array.shape[-2:]):  # the copy is of one plane, not of all
        hashed.update(np.ascontiguousarray(plane).data)
    return hashed.hexdigest()


def source_files(case: SourceCase, source: Path) -> tuple[SourceFile, ...]:
    """Path, size and time of change of the files that a case is made from, as they are now.

    Raises:
        OSError: If a file is gone.
    """
    files = []
    for named in (*case.images, case.label):
        for path in files_of(named):
            status = path.stat()
            files.append(
                SourceFile(
                    path=os.path.relpath(path, source),
                    size_bytes=status.st_size,
                    modified_ns=status.st_mtime_ns,
                )
            )
    return tuple(files)


def _read(plan: ConversionPlan, case: SourceCase) -> tuple[Volume, npt.NDArray[Any], OriginalGrid]:
    """Read a case's files: the image on its stored grid, the label on that of the files."""
    resample = plan.storage.resample_mismatched
    volume = read_volume(
        case.images,
        stacked_channels=len(plan.dataset.channel_names) if case.stacked else 0,
        resample_mismatched=resample,
        preprocessing=Preprocessing(
            spacing_mm=plan.storage.spacing_mm, crop=plan.storage.policy.crop
        ),
    )
    if 1 in volume.original.shape_XYZ:
        raise DataError(
            "a case is a 2D image",
            where=case.images[0],
            got=f"shape {volume.original.shape_XYZ}",
            remedy=f"convert volumes; {FOR_2D}",
        )
    reference_DHW, original = read_label(
        case.label,
        with_ignored(plan.dataset.labels, plan.storage.ignore_value),
        volume.original,
        renumbered=plan.dataset.renumbered,
        resample_mismatched=resample,
    )
    return volume, reference_DHW, original


def _foreground(
    volume: Volume, known_DHW: npt.NDArray[Any], voxels: int, policy: Policy
) -> tuple[tuple[float, ...], ...]:
    return tuple(
        foreground_sample(channel_DHW, known_DHW, voxels) if kind in CT_KINDS else ()
        for channel_DHW, kind in zip(volume.image_CDHW, policy.intensity, strict=True)
    )


def _clip(image_CDHW: npt.NDArray[Any], clip: Sequence[tuple[float, float] | None]) -> None:
    """Clip an image in place, to the whole numbers around the bounds of each channel.

    So integers stay integers, and training, which clips to the bounds themselves, sees no change.
    """
    for channel_DHW, bounds in zip(image_CDHW, clip, strict=False):
        if bounds is None:
            continue
        low, high = np.floor(bounds[0]), np.ceil(bounds[1])
        if channel_DHW.dtype == np.int16:
            low, high = np.clip((low, high), -(2**15), 2**15 - 1)
        for plane_HW in channel_DHW:  # plane by plane: temporary arrays stay small
            plane_HW.clip(plane_HW.dtype.type(low), plane_HW.dtype.type(high), out=plane_HW)


def _warn_of_lost_labels(
    case_id: str, transform: GridTransform, reference_DHW: npt.NDArray[Any], voxels: dict[int, int]
) -> None:
    """Warn of labels that a network can neither learn nor predict, as they are not stored."""
    # Losses by the crop and losses by the voxel size have different remedies: count both.
    before, inside = class_voxels(reference_DHW), class_voxels(transform.boxed(reference_DHW))
    if (cut := sum(before.values()) - sum(inside.values())) > 0:
        logger.warning("case %s: %d labelled voxels lie where the image is 0", case_id, cut)
    if gone := sorted(set(inside) - set(voxels)):
        logger.warning("case %s: at this voxel size nothing is left of labels %s", case_id, gone)
