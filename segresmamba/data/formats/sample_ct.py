"""The CT sample: a drawn abdomen of thick slices, for what a brain scan does not show.

Voxels are 0.8 x 0.8 x 5 mm and hold Hounsfield units, with air outside the body. The liver, two
kidneys (which differ by their side alone), the spine and lesions of the liver, one of a few ml and
two small ones, are labelled. Each subject has its own size, shape, places and contrast of the
organs, and noise. Every second subject is annotated in every second slice only: the other slices
have the label `ignore`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from segresmamba.data.formats.sample_parts import Array, save_volume, smooth_field

DESCRIPTION: dict[str, Any] = {
    "name": "CTPhantom",
    "description": "Drawn abdomens of thick slices with lesions in the liver",
    "reference": "made by this program; no patient is in it",
    "channel_names": {"0": "CT"},
    "labels": {
        "background": 0,
        "liver": 1,
        "left kidney": 2,
        "right kidney": 3,
        "spine": 4,
        "lesion": 5,
        "ignore": 6,
    },
    "file_ending": ".nii.gz",
}
_SPACING_MM = (0.8, 0.8, 5.0)
_IN_PLANE = (240, 184)
_SLICES = (20, 28)
# Smallest and largest of each lesion. A small one still reaches into two slices.
_LESION_RADII_MM = (((6, 6, 6), (10, 10, 10)), ((3, 3, 5), (4, 4, 6)), ((3, 3, 5), (4, 4, 6)))
_AIR_HU, _NOISE_HU, _BEND_MM = -1000, 12, 2.5


class _Organ(NamedTuple):
    """An ellipsoid in RAS mm about the body's centre: x to the right, y to the front, z up."""

    label: int
    hu: float
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]


_LIVER = _Organ(1, 110, (34, 12, 10), (38, 32, 40))
# Later ones lie over earlier ones. What has label 0 is there to be told apart from the organs.
_ORGANS = (
    _Organ(0, 50, (0, 0, 0), (84, 61, 1e3)),  # muscle
    _Organ(0, -100, (0, 0, 0), (76, 53, 1e3)),  # fat
    _Organ(0, 30, (-32, 18, 20), (24, 20, 26)),  # stomach
    _LIVER,
    _Organ(2, 180, (-38, -22, -8), (14, 12, 28)),
    _Organ(3, 180, (38, -24, -16), (14, 12, 28)),
    _Organ(4, 450, (0, -34, 0), (14, 13, 1e3)),
)


def write_subject(folder: Path, number: int, rng: np.random.Generator) -> None:
    """Write one subject's image and label below imagesTr/ and labelsTr/."""
    shape = (*_IN_PLANE, int(rng.integers(*_SLICES, endpoint=True)))
    affine = np.diag([*_SPACING_MM, 1.0])
    affine[:3, 3] = [-(size - 1) / 2 * mm for size, mm in zip(shape, _SPACING_MM, strict=True)]
    # Where each voxel lies in the drawing: (3, x, y, z), bent by a few mm.
    places_mm = np.stack(
        [
            mm * index + offset + _BEND_MM * smooth_field(shape, 5, rng)
            for mm, offset, index in zip(
                _SPACING_MM, affine[:3, 3], np.indices(shape, np.float32), strict=True
            )
        ]
    ).astype(np.float32)
    places_mm /= np.float32(rng.uniform(0.92, 1.06))
    image = np.full(shape, _AIR_HU, np.float32)
    label = np.zeros(shape, np.uint8)
    liver_mm = np.array(_LIVER.centre_mm)
    for organ in _ORGANS:
        centre_mm = np.add(organ.centre_mm, rng.uniform(-3, 3, 3) if organ.label else 0)
        liver_mm = centre_mm if organ is _LIVER else liver_mm
        inside = _inside(places_mm, centre_mm, np.multiply(organ.radii_mm, rng.uniform(0.9, 1, 3)))
        image[inside], label[inside] = organ.hu + rng.normal(0, 8), organ.label
    for low_mm, high_mm in _LESION_RADII_MM:
        # Inside the liver, in front of the kidney.
        lesion_mm = np.add(liver_mm, rng.uniform((-10, 0, -12), (12, 12, 16)))
        inside = _inside(places_mm, lesion_mm, rng.uniform(low_mm, high_mm))
        image[inside], label[inside] = 45 + rng.normal(0, 5), 5
    if number % 2:
        label[:, :, 1::2] = DESCRIPTION["labels"]["ignore"]
    image += rng.normal(0, _NOISE_HU, shape).astype(np.float32)
    stored = np.clip(image, -1024, 3071).round().astype(np.int16)
    name = f"ct_{number + 1:02d}"
    save_volume(stored, affine, "LPS", folder / "imagesTr" / f"{name}_0000.nii.gz")
    save_volume(label, affine, "LPS", folder / "labelsTr" / f"{name}.nii.gz")


def _inside(
    places_mm: Array, centre_mm: npt.ArrayLike, radii_mm: npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    """Which voxels lie in an ellipsoid: (x, y, z)."""
    centre, radii = (
        np.asarray(one, np.float32)[:, None, None, None] for one in (centre_mm, radii_mm)
    )
    inside: npt.NDArray[np.bool_] = (((places_mm - centre) / radii) ** 2).sum(axis=0) < 1
    return inside
