"""Three small public datasets, made on the spot: virtual subjects of two brains and of a CT.

The ICBM 152 nonlinear 2009a template (Fonov et al., NeuroImage 2011, 54(1):313-327) with its grey-
and white-matter maps ships inside nilearn, so nothing is downloaded. Each subject is the same head
under its own smooth deformation, seen by its own scanner: bias field, contrast, noise, field of
view, orientation and tilt. The kind "hemispheres" has the same images, but its labels tell the
left half of the brain from the right one. The halves look alike, so only the place of a voxel
decides, as it does for kidneys and lungs. The CT is drawn, see `sample_ct`. All are ordinary
nnU-Net raw datasets.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from segresmamba.data.formats import sample_ct
from segresmamba.data.formats.sample_parts import Array, save_volume, smooth_field
from segresmamba.data.formats.source import read_json
from segresmamba.errors import BackendMissingError, DataError
from segresmamba.storage.atomic import (
    complete_folder,
    remove,
    remove_abandoned,
    temporary_path,
)

logger = logging.getLogger(__name__)

_DESCRIPTION = {
    "name": "MNI152Virtual",
    "description": "Virtual subjects: random smooth deformations of the MNI152 template",
    "reference": "Fonov et al., NeuroImage 2011, 54(1):313-327 (as shipped in nilearn)",
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "grey matter": 1, "white matter": 2},
    "file_ending": ".nii.gz",
}
_HEMISPHERES = _DESCRIPTION | {
    "name": "MNI152Hemispheres",
    "labels": {
        "background": 0,
        "left grey matter": 1,
        "left white matter": 2,
        "right grey matter": 3,
        "right white matter": 4,
    },
}
_DESCRIPTIONS = {"brain": _DESCRIPTION, "hemispheres": _HEMISPHERES, "ct": sample_ct.DESCRIPTION}
_ORIENTATIONS = ("RAS", "LAS", "LPS", "PIR")
_BRAIN_INTENSITY = 0.1  # the template is skull-stripped: what is darker lies outside the brain


@dataclass(frozen=True)
class _Head:
    """The template at 2 mm, in RAS: a scan and two tissue probabilities, (x, y, z), 0 to 1."""

    t1: Array
    grey: Array
    white: Array
    affine: npt.NDArray[np.float64]


def make_sample(out: Path, subjects: int = 12, seed: int = 0, kind: str = "brain") -> Path:
    """Write a sample dataset in nnU-Net's raw format; the same seed gives the same files.

    If the folder already holds this sample, it is left alone.

    Args:
        out: The dataset's folder, which gets imagesTr/, labelsTr/ and dataset.json.
        subjects: Number of virtual subjects.
        seed: Seed for everything that differs between subjects.
        kind: "brain" (T1 at 2 mm), "hemispheres" (the same with left and right told apart) or "ct"
            (abdomen at 0.8 x 0.8 x 5 mm).

    Returns:
        `out`.

    Raises:
        DataError: If the folder holds something else or cannot be written, or there is no such
            kind.
        BackendMissingError: If nilearn is not installed.
    """
    if kind not in _DESCRIPTIONS:
        raise DataError(
            "there is no such sample",
            where="--kind",
            got=kind,
            remedy=f"choose one of {', '.join(_DESCRIPTIONS)}",
        )
    description = {**_DESCRIPTIONS[kind], "numTraining": subjects, "seed": seed}
    if _is_there(out, description):
        logger.info("the sample is already in %s (%d subjects, seed %d)", out, subjects, seed)
        return out
    head = None if kind == "ct" else _template()
    # Complete or absent: a sample that was half written must not pass for a dataset.
    remove_abandoned(out.parent, {out.name})
    temporary = temporary_path(out)
    try:
        for name in ("imagesTr", "labelsTr"):
            (temporary / name).mkdir(parents=True)
        for number in range(subjects):
            rng = np.random.default_rng([seed, number])
            if head is None:
                sample_ct.write_subject(temporary, number, rng)
            else:
                _write_subject(temporary, number, head, rng, halves=kind == "hemispheres")
        (temporary / "dataset.json").write_text(json.dumps(description, indent=2))
        complete_folder(temporary, out)
    except OSError as error:
        raise DataError(
            "the sample cannot be written",
            where=out,
            got=error.strerror,
            remedy="choose another folder, with 50 MB of free space",
        ) from error
    finally:
        remove(temporary)
    logger.info("wrote %d virtual subjects to %s", subjects, out)
    return out


def _is_there(out: Path, description: dict[str, Any]) -> bool:
    """Whether `out` is this sample, which got its name when it was complete."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        # Another folder would get this name, and the shell would stay in the one without a name.
        if out.resolve() == Path.cwd():
            raise DataError(
                "the sample cannot take the place of the folder that you are in",
                where=out,
                got=Path.cwd(),
                remedy="name a folder in it, which need not exist",
            )
        return False
    found = read_json(out / "dataset.json")
    if found != description:
        raise DataError(
            "the folder holds something else",
            where=out,
            got="another sample or dataset" if found else "no dataset.json of a sample",
            remedy="choose another folder, or delete this one",
        )
    return True


def _template() -> _Head:
    try:
        from nilearn import datasets
    except ImportError as error:
        raise BackendMissingError(
            "the sample is made from a template in nilearn, which is not installed",
            where="nilearn",
            got=error,
            remedy="pip install 'segresmamba[sample]'",
        ) from error
    t1 = datasets.load_mni152_template(resolution=2)
    grey = datasets.load_mni152_gm_template(resolution=2)
    white = datasets.load_mni152_wm_template(resolution=2)
    volumes = [image.get_fdata(dtype=np.float32) for image in (t1, grey, white)]
    return _Head(volumes[0], volumes[1], volumes[2], t1.affine)


def _write_subject(
    folder: Path, number: int, head: _Head, rng: np.random.Generator, halves: bool
) -> None:
    coordinates = _deformation(head.t1.shape, rng)
    # Tissue probabilities are interpolated, and then the likeliest tissue is taken: outlines stay
    # smooth, and a voxel with two tissues gets the one that has more of it.
    t1, grey, white = (
        ndimage.map_coordinates(volume, coordinates, order=1)
        for volume in (head.t1, head.grey, head.white)
    )
    label = np.stack([1 - grey - white, grey, white]).argmax(axis=0).astype(np.uint8)
    if halves:
        x_mm = np.tensordot(head.affine[0, :3], coordinates, axes=1) + head.affine[0, 3]
        label[(label > 0) & (x_mm > 0)] += 2  # in RAS, x grows to the person's right
    scan = _simulate_scan(t1, rng)
    margins = rng.integers(0, 6, (3, 2))
    margins[2, 0] = 0  # the brain reaches down to the template's edge
    field_of_view = tuple(
        slice(low, size - high) for size, (low, high) in zip(t1.shape, margins, strict=True)
    )
    # The head's tilt in the scanner makes the affine oblique; it still rounds to the same axes.
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-8, 8, 3), degrees=True).as_matrix()
    placed = tilt @ head.affine
    placed[:3, 3] = placed[:3] @ [*margins[:, 0], 1]
    code = _ORIENTATIONS[number % len(_ORIENTATIONS)]
    name = f"subject_{number + 1:02d}"
    save_volume(scan[field_of_view], placed, code, folder / "imagesTr" / f"{name}_0000.nii.gz")
    save_volume(label[field_of_view], placed, code, folder / "labelsTr" / f"{name}.nii.gz")


def _deformation(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Where each voxel of a subject lies in the template: (3, x, y, z) voxel coordinates.

    The deformation is a rotation and a scale about the centre, and shifts of a few voxels that vary
    smoothly.
    """
    centre: Array = np.array([(size - 1) / 2 for size in shape], np.float32)[:, None, None, None]
    from_centre = np.indices(shape, np.float32) - centre
    turn = Rotation.from_euler("xyz", rng.uniform(-6, 6, 3), degrees=True).as_matrix()
    matrix = (turn * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    # A test sees to it that shifts of this size and smoothness never fold the head.
    shifts = np.stack([smooth_field(shape, 7, rng) for _ in range(3)])
    shifts *= np.float32(rng.uniform(1.0, 1.8))
    coordinates: Array = np.tensordot(matrix, from_centre, axes=1) + centre + shifts
    return coordinates


def _simulate_scan(t1: Array, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Voxels as a scanner with its own contrast, bias field, noise and gain would store them."""
    inside = t1 > _BRAIN_INTENSITY
    contrast = np.clip(t1, 0, 1) ** rng.uniform(0.8, 1.25)
    bias = np.exp(rng.uniform(0.05, 0.15) * smooth_field(t1.shape, 4, rng))
    noise = rng.normal(0, rng.uniform(0.01, 0.03), t1.shape)
    signal = rng.uniform(500, 1500) * np.clip(contrast * bias + noise, 0, None)
    stored: npt.NDArray[np.int16] = np.where(inside, signal, 0).astype(np.int16)
    return stored
