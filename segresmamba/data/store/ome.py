"""OME-Zarr 0.5 metadata, so that other viewers can open a case.

Source: https://ngff.openmicroscopy.org/0.5/. The format has scale and translation but no rotation.
The full affine of an oblique scan is in the case's record.
"""

from __future__ import annotations

import colorsys
from typing import Any

from segresmamba.data.store import layout
from segresmamba.data.store.manifest import CaseRecord

VERSION = "0.5"
IMAGE_AXES = ("c", "z", "y", "x")
LABEL_AXES = ("z", "y", "x")


def image_attributes(case_id: str, record: CaseRecord) -> dict[str, Any]:
    """Attributes of the case's group, whose array `0` is the image."""
    return {"version": VERSION, "multiscales": [_multiscale(case_id, IMAGE_AXES, record)]}


def label_attributes(record: CaseRecord, labels: dict[str, int]) -> dict[str, Any]:
    """Attributes of the label's group, whose array `0` is the label."""
    return {
        "version": VERSION,
        "multiscales": [_multiscale(layout.LABEL_NAME, LABEL_AXES, record)],
        "image-label": {
            "source": {"image": "../../"},
            "colors": [{"label-value": value, "rgba": _rgba(value)} for value in labels.values()],
            "properties": [{"label-value": value, "name": key} for key, value in labels.items()],
        },
    }


def _rgba(value: int) -> list[int]:
    """A colour for a label value. Neighbouring values get distant hues; 0 is transparent."""
    hue = value * 0.618 % 1  # steps of the golden ratio do not come back to an earlier hue
    return [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 1)] + [255 * bool(value)]


def _multiscale(name: str, axes: tuple[str, ...], record: CaseRecord) -> dict[str, Any]:
    origin_mm = [record.affine[axis][3] for axis in (2, 1, 0)]
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
                    {"type": "scale", "scale": [1.0] * channels + list(record.spacing_mm)},
                    {"type": "translation", "translation": [0.0] * channels + origin_mm},
                ],
            }
        ],
    }
