"""Pictures of a case: its image, the contours of the reference and the areas of the prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from segresmamba.storage.atomic import atomic_path

# Okabe and Ito's palette, which colour-blind readers can distinguish; first those that stand out
# most from grey.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_INK = "#E8E8E8"
_DPI = 130
_WIDTH, _GAP, _TITLE, _LEGEND_ROW = 10.5, 0.12, 0.4, 0.28  # inches
_LEGEND_COLUMNS = 4
_FILL_OPACITY = 0.4
_AIR = 0.05  # fraction of the grey window that is as dark as air
_MARGIN_MM = 10.0
_OUTLINE = withStroke(linewidth=2.0, foreground="black")

Volume = NDArray[Any]
Size = tuple[float, float]


@dataclass(frozen=True)
class _View:
    """A plane in the orientation that radiologists use: seen from feet, front or left."""

    axis: int
    """Axis of a volume in RAS order that the plane cuts."""
    sides: tuple[str, str, str, str]
    """What lies at the left, the right, the top and the bottom of the picture."""

    def cut(self, volume_RAS: Volume, index: int) -> Volume:
        """The plane as rows from top to bottom and columns from left to right."""
        plane: Volume = volume_RAS.take(index, self.axis).T[::-1, ::-1]
        return plane

    def size_mm(self, extent_mm: NDArray[np.float64]) -> Size:
        """Width and height of the plane."""
        width, height = np.delete(extent_mm, self.axis)
        return float(width), float(height)

    def label_sides(self, panel: Axes) -> None:
        """Write the letters of the sides at the edges of a panel."""
        places = (
            (0.02, 0.5, "left", "center"),
            (0.98, 0.5, "right", "center"),
            (0.5, 0.985, "center", "top"),
            (0.5, 0.015, "center", "bottom"),
        )
        for side, (x, y, horizontal, vertical) in zip(self.sides, places, strict=True):
            panel.text(
                x,
                y,
                side,
                transform=panel.transAxes,
                color=_INK,
                size=9,
                ha=horizontal,
                va=vertical,
                path_effects=[_OUTLINE],
            )


_VIEWS = (  # axial, coronal, sagittal
    _View(2, ("R", "L", "A", "P")),
    _View(1, ("R", "L", "S", "I")),
    _View(0, ("A", "P", "S", "I")),
)


def draw_overlay(
    path: Path,
    image_DHW: Volume,
    reference_DHW: Volume,
    prediction_DHW: Volume,
    *,
    spacing_mm: Sequence[float],
    members: Mapping[str, Sequence[int]],
    dice: Mapping[str, float],
    title: str,
) -> None:
    """Write a PNG of the three orthogonal planes that show most of the reference.

    The top row is the bare image. Below it each class has one colour: an area where it is
    predicted, a line around it in the reference. Planes follow the radiological convention (the
    patient's right on the left). They have one scale and the true aspect of the voxels.

    Args:
        path: The PNG to write.
        image_DHW: One channel of the image, on a RAS grid, as all stored cases are.
        reference_DHW: Label values of the reference.
        prediction_DHW: Label values of the prediction.
        spacing_mm: Size of a voxel along D, H and W.
        members: Label values of each class; classes may overlap.
        dice: Dice of each class over the whole volume, for the legend.
        title: Line above the picture.
    """
    image, reference, prediction = (
        volume.transpose() for volume in (image_DHW, reference_DHW, prediction_DHW)
    )
    # From black to white: nearly the whole range of the voxels that are not empty air.
    body = image[image != 0]
    low, high = np.percentile(body, (0.5, 99.5)) if body.size else (0.0, 1.0)
    size_xyz_mm = np.array(spacing_mm[::-1])
    box = _box((image > low + _AIR * (high - low)) | (reference != 0), size_xyz_mm)
    image, reference, prediction = image[box], reference[box], prediction[box]

    sizes_mm = [view.size_mm(size_xyz_mm * image.shape) for view in _VIEWS]
    figure, axes = _layout(sizes_mm, title, _legend(dice))
    fullest = _fullest_planes(reference if reference.any() else prediction, members)
    for view, size_mm, (bare, overlay) in zip(_VIEWS, sizes_mm, axes, strict=True):
        index = fullest[view.axis]
        grey, expected, found = (
            view.cut(volume, index) for volume in (image, reference, prediction)
        )
        for panel in (bare, overlay):
            extent = (0, size_mm[0], 0, size_mm[1])
            panel.imshow(
                grey, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear"
            )
            panel.set_axis_off()
        view.label_sides(bare)
        masks = [(np.isin(expected, values), np.isin(found, values)) for values in members.values()]
        _show_classes(overlay, masks, size_mm)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor=figure.get_facecolor())


def _box(shown: Volume, spacing_mm: NDArray[np.float64]) -> tuple[slice, ...]:
    """The box around a mask, with a margin; everything if the mask is empty."""
    if not shown.any():
        return (slice(None),) * 3
    (box,) = ndimage.find_objects(shown.astype(np.uint8))
    margins = np.ceil(_MARGIN_MM / spacing_mm).astype(int)
    return tuple(
        slice(max(side.start - margin, 0), side.stop + margin)
        for side, margin in zip(box, margins, strict=True)
    )


def _fullest_planes(label: Volume, members: Mapping[str, Sequence[int]]) -> list[int]:
    """Across each axis, the plane with most of the classes; all classes weigh the same."""
    shares = [np.zeros(size) for size in label.shape]
    for values in members.values():
        mask = np.isin(label, values)
        for axis in range(3):
            others = tuple({0, 1, 2} - {axis})
            shares[axis] += mask.sum(axis=others) / max(np.count_nonzero(mask), 1)
    return [int(share.argmax()) if share.any() else share.size // 2 for share in shares]


def _layout(
    sizes_mm: Sequence[Size], title: str, legend: Sequence[Artist]
) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Make a figure with two panels, one above the other, for each plane; all at one scale."""
    inches_per_mm = (_WIDTH - _GAP * (len(sizes_mm) + 1)) / sum(width for width, _ in sizes_mm)
    height = max(height for _, height in sizes_mm) * inches_per_mm
    legend_height = _LEGEND_ROW * (ceil(len(legend) / _LEGEND_COLUMNS) + 0.5)
    total_height = _TITLE + 2 * height + _GAP + legend_height
    figure = Figure(figsize=(_WIDTH, total_height), facecolor="black")
    FigureCanvasAgg(figure)
    figure.suptitle(title, y=1 - 0.25 * _TITLE / total_height, color=_INK, size=11, weight="bold")
    figure.legend(
        handles=legend,
        loc="lower center",
        ncols=min(len(legend), _LEGEND_COLUMNS),
        frameon=False,
        labelcolor=_INK,
        fontsize=9,
        handlelength=1.4,
    )
    columns, left = [], _GAP
    for width_mm, _ in sizes_mm:
        width = width_mm * inches_per_mm
        upper, lower = (
            figure.add_axes(
                (left / _WIDTH, bottom / total_height, width / _WIDTH, height / total_height)
            )
            for bottom in (legend_height + height + _GAP, legend_height)
        )
        columns.append((upper, lower))
        left += width + _GAP
    return figure, columns


def _legend(dice: Mapping[str, float]) -> list[Artist]:
    areas = [
        Patch(color=to_rgba(colour, 2 * _FILL_OPACITY), label=f"{name}  Dice {value:.3f}")
        for (name, value), colour in zip(dice.items(), _colours(len(dice)), strict=True)
    ]
    return [
        *areas,
        Patch(color=to_rgba(_INK, _FILL_OPACITY), label="area: prediction"),
        Line2D([], [], color=_INK, linewidth=1.2, label="line: reference"),
    ]


def _show_classes(panel: Axes, masks: Sequence[tuple[Volume, Volume]], size_mm: Size) -> None:
    """Draw areas first, the largest class below the others, then all lines."""
    extent = (0, size_mm[0], 0, size_mm[1])
    coloured = [(colour, *pair) for colour, pair in zip(_colours(len(masks)), masks, strict=True)]
    for colour, _, found in sorted(coloured, key=lambda entry: -np.count_nonzero(entry[2])):
        fill = np.zeros((*found.shape, 4))
        fill[found] = to_rgba(colour, _FILL_OPACITY)
        panel.imshow(fill, extent=extent, interpolation="nearest")
    for colour, expected, _ in coloured:
        if expected.any() and not expected.all():  # a contour needs an inside and an outside
            panel.contour(
                expected.astype(float),
                levels=[0.5],
                colors=[colour],
                linewidths=1.0,
                extent=extent,
                origin="upper",
            ).set_path_effects([_OUTLINE])


def _colours(count: int) -> Sequence[Any]:
    """A colour for each class, the same in every picture of a dataset."""
    if count <= len(_COLOURS):
        return _COLOURS[:count]
    many = colormaps["tab20"]
    return [many(index % many.N) for index in range(count)]
