"""OME-Zarr 0.5 metadata, so that other viewers can open a case.

Source: https://ngff.openmicroscopy.org/0.5/. The format has scale and translation but no rotation.
The full affine of an oblique scan is in the case's record.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba.data.store import layout

Affine = Sequence[Sequence[float]] | npt.NDArray[np.float64]
VERSION = "0.5"
IMAGE_AXES = ("c", "z", "y", "x")
LABEL_AXES = ("z", "y", "x")


def image_attributes(name: str, affine: Affine, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Attributes of a group whose array `0` is an image.

    Args:
        name: Its name.
        affine: 4x4, voxel (x, y, z) to RAS mm.
        spacing_mm: Voxel size along (D, H, W).
    """
    multiscale = _multiscale(name, IMAGE_AXES, affine, spacing_mm)
    return {"version": VERSION, "multiscales": [multiscale]}


def label_attributes(
    affine: Affine, spacing_mm: Sequence[float], labels: dict[str, int], source: str | None
) -> dict[str, Any]:
    """Attributes of a group whose array `0` is a label.

    Args:
        affine: As in `image_attributes`.
        spacing_mm: As in `image_attributes`.
        labels: Name to value.
        source: Where the image lies, from the label's group; None if it is not in the same store.
    """
    colors = []
    for value in labels.values():
        # Neighbouring values get distant hues; 0 is transparent.
        hue = value * 0.618 % 1  # steps of the golden ratio do not come back to an earlier hue
        rgb = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1)]
        colors.append({"label-value": value, "rgba": [*rgb, 255 * bool(value)]})
    return {
        "version": VERSION,
        "multiscales": [_multiscale(layout.LABEL_NAME, LABEL_AXES, affine, spacing_mm)],
        "image-label": {
            **({"source": {"image": source}} if source else {}),
            "colors": colors,
            "properties": [{"label-value": value, "name": key} for key, value in labels.items()],
        },
    }


def _multiscale(
    name: str, axes: tuple[str, ...], affine: Affine, spacing_mm: Sequence[float]
) -> dict[str, Any]:
    origin_mm = [float(affine[axis][3]) for axis in (2, 1, 0)]
    channels = len(axes) - len(LABEL_AXES)
    return {
        "name": name,
        "axes": [
            {"name": axis, "type": "channel"}
            if axis == "c"
            else {"name": axis, "type": "space", "unit": "millimeter"}
            for axis in axes
        ],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0] * channels + list(spacing_mm)},
                    {"type": "translation", "translation": [0.0] * channels + origin_mm},
                ],
            }
        ],
    }
