"""One case: its files -> one group of the store."""

from __future__ import annotations

import hashlib
import logging
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.conversion.plan import ConversionPlan
from segresmamba.data.formats.source import SourceCase
from segresmamba.data.preprocessing import Preprocessing
from segresmamba.data.store.case_writer import write_case
from segresmamba.data.store.manifest import CaseRecord, SourceFile
from segresmamba.data.volumes.dtypes import narrowed
from segresmamba.data.volumes.statistics import (
    class_positions,
    class_voxels,
    foreground_sample,
    positions_kept,
)
from segresmamba.data.volumes.volume import Volume, read_label, read_volume
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)


def convert_case(plan: ConversionPlan, case: SourceCase) -> CaseRecord:
    """Convert a case; its group appears complete or not at all.

    Raises:
        DataError: If a file of it cannot be used, or the group not be written.
    """
    path, policy = plan.out / case.case_id, plan.storage.policy
    volume = read_volume(
        case.images,
        stacked_channels=len(plan.dataset.channel_names) if case.stacked else 0,
        resample_mismatched=plan.storage.resample_mismatched,
        preprocessing=Preprocessing(spacing_mm=plan.storage.spacing_mm, crop=policy.crop),
    )
    filed_DHW, original = read_label(
        case.label,
        plan.dataset.labels,
        volume.original,
        renumbered=plan.dataset.renumbered,
        resample_mismatched=plan.storage.resample_mismatched,
    )
    label_DHW = volume.refit.label(filed_DHW) if volume.refit else filed_DHW
    voxels = class_voxels(label_DHW)
    if volume.refit:
        _say_what_is_lost(case.case_id, filed_DHW, voxels, volume)
    foreground = _foreground(plan, volume, label_DHW, sum(voxels.values()))
    image_CDHW, scale = narrowed(volume.image_CDHW, volume.statistics, policy, path)
    affine = volume.affine.tolist()
    record = CaseRecord(
        shape_CDHW=image_CDHW.shape,
        image_dtype=image_CDHW.dtype.name,
        label_dtype=label_DHW.dtype.name,
        spacing_mm=volume.spacing_mm,
        affine=affine,
        original_header=original.text,
        statistics=volume.statistics,
        scale=scale,
        foreground=foreground,
        grid_transform=volume.refit,
        class_voxels=voxels,
        class_positions={value: positions_kept(count) for value, count in voxels.items()},
        image_digest=digest(image_CDHW),
        label_digest=digest(label_DHW),
        source=source_files(case, plan.source),
    )
    try:
        write_case(
            path,
            record,
            plan.storage,
            labels=plan.dataset.labels,
            image_CDHW=image_CDHW,
            label_DHW=label_DHW,
            positions=class_positions(label_DHW, voxels, case.case_id),
            reference_DHW=filed_DHW if volume.refit else None,
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


def digest(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's voxels, dtype and shape."""
    hashed = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    for part in array.reshape(-1, *array.shape[-2:]):  # planes, so that there is no copy of more
        hashed.update(np.ascontiguousarray(part).data)
    return hashed.hexdigest()


def source_files(case: SourceCase, source: Path) -> tuple[SourceFile, ...]:
    """How the files of a case look now.

    Raises:
        OSError: If one is gone.
    """
    files = []
    named = (*case.images, case.label)
    series = {path: sorted(path.iterdir()) for path in named if path.is_dir()}
    for path in chain.from_iterable(series.get(path, [path]) for path in named):
        status = path.stat()
        files.append(
            SourceFile(
                path=os.path.relpath(path, source),
                size_bytes=status.st_size,
                modified_ns=status.st_mtime_ns,
            )
        )
    return tuple(files)


def _foreground(
    plan: ConversionPlan, volume: Volume, label_DHW: npt.NDArray[Any], voxels: int
) -> tuple[tuple[float, ...], ...]:
    kinds = plan.storage.policy.intensity
    if "ct" not in kinds:
        return ()
    return tuple(
        foreground_sample(channel_DHW, label_DHW, voxels) if kind == "ct" else ()
        for channel_DHW, kind in zip(volume.image_CDHW, kinds, strict=True)
    )


def _say_what_is_lost(
    case_id: str, filed_DHW: npt.NDArray[Any], voxels: dict[int, int], volume: Volume
) -> None:
    """Warn of labels that the network cannot learn, nor ever predict."""
    assert volume.refit is not None
    before, inside = class_voxels(filed_DHW), class_voxels(volume.refit.boxed(filed_DHW))
    if (cut := sum(before.values()) - sum(inside.values())) > 0:
        logger.warning("case %s: %d labelled voxels lie where the image is 0", case_id, cut)
    if gone := sorted(set(inside) - set(voxels)):
        logger.warning("case %s: at this voxel size nothing is left of labels %s", case_id, gone)
