"""Pictures of a case: its image, the prediction over it with the reference, and the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isnan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from segresmamba.storage.atomic import atomic_path

# Okabe and Ito's palette, which colour-blind readers can distinguish; first those that stand out
# most from grey.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
# The viewer's colours of errors.
_MISSED, _EXTRA, _CONFUSED = "#FF3B30", "#2F7BFF", "#D64DFF"
_INK = "#E8E8E8"
_DPI = 130
_WIDTH, _MARGIN, _TITLE, _LEGEND_ROW = 10.5, 0.2, 0.85, 0.26  # inches
_GAP_X, _GAP_Y = 0.4, 0.24  # inches between panels, with room for the letters of two of them
_LEGEND_COLUMNS = 4
_LEGEND_HANDLE, _LEGEND_LETTER = 0.6, 0.08  # inches of a column besides its text, and of a letter
_TALLEST = 12.0  # inches of a panel; a plane that would be taller makes all smaller
_FILL_OPACITY, _ERROR_OPACITY = 0.3, 0.8
_AIR = 0.05  # fraction of the grey window that is as dark as air
_AIR_HU = -500.0
_MARGIN_MM = 5.0
_OUTLINE = withStroke(linewidth=1.6, foreground="black")
_ROWS = ("image", "prediction: area, reference: line", "errors")

Volume = NDArray[Any]
Size = tuple[float, float]


@dataclass(frozen=True)
class _Window:
    """The intensities that are shown as black and as white."""

    name: str
    low: float
    high: float


# The usual windows of CT in HU, by the least median of what is labelled.
_CT_WINDOWS = (
    (250.0, _Window("CT, bone window", -500, 1300)),
    (-300.0, _Window("CT, soft tissue window", -160, 240)),
    (-np.inf, _Window("CT, lung window", -1350, 150)),
)


@dataclass(frozen=True)
class _View:
    """A plane in the orientation that radiologists use: seen from feet, front or left."""

    name: str
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
        """Write the letters of the sides around a panel, off the anatomy."""
        places = (
            (-0.01, 0.5, "right", "center"),
            (1.01, 0.5, "left", "center"),
            (0.5, 1.01, "center", "bottom"),
            (0.5, -0.01, "center", "top"),
        )
        for side, (x, y, horizontal, vertical) in zip(self.sides, places, strict=True):
            panel.text(
                x, y, side, transform=panel.transAxes, color=_INK, size=9, ha=horizontal,
                va=vertical,
            )  # fmt: skip


_VIEWS = (
    _View("axial", 2, ("R", "L", "A", "P")),
    _View("coronal", 1, ("R", "L", "S", "I")),
    _View("sagittal", 0, ("A", "P", "S", "I")),
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
    predicted, a thin line around it in the reference. The last row has the errors: voxels of the
    reference that the prediction missed, voxels that it has beyond the reference, and voxels that
    it gave to another class. Planes follow the radiological convention (the patient's right on the
    left). They have one scale and the true aspect of the voxels.

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
    window = _window(image, reference)
    size_xyz_mm = np.array(spacing_mm[::-1])
    air = _AIR_HU if window.name else window.low + _AIR * (window.high - window.low)
    box = _box((image > air) | (reference != 0), size_xyz_mm)
    whole = image.shape
    image, reference, prediction = image[box], reference[box], prediction[box]

    sizes_mm = [view.size_mm(size_xyz_mm * image.shape) for view in _VIEWS]
    subtitle = f"planes in which the classes are largest{window.name and f'; {window.name}'}"
    figure, axes = _layout(sizes_mm, title, subtitle, _legend(dice))
    fullest = _fullest_planes(reference if reference.any() else prediction, members)
    for view, size_mm, panels in zip(_VIEWS, sizes_mm, axes, strict=True):
        index = fullest[view.axis]
        grey, expected, found = (
            view.cut(volume, index) for volume in (image, reference, prediction)
        )
        extent = (0, size_mm[0], 0, size_mm[1])
        for panel in panels:
            panel.imshow(
                grey, cmap="gray", vmin=window.low, vmax=window.high, extent=extent,
                interpolation="bilinear",
            )  # fmt: skip
            panel.set_axis_off()
        bare, overlay, errors = panels
        view.label_sides(bare)
        number = (box[view.axis].start or 0) + index + 1
        bare.set_title(f"{view.name}, {number} of {whole[view.axis]}", color=_INK, size=9, pad=15)
        masks = [(np.isin(expected, values), np.isin(found, values)) for values in members.values()]
        _show_classes(overlay, masks, extent)
        _show_errors(errors, masks, extent)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor=figure.get_facecolor())


def _window(image: Volume, reference: Volume) -> _Window:
    """A usual window where the image holds HU, else nearly the whole range inside the body.

    Of several windows for CT it is the one for the tissue that is labelled.
    """
    body = image[(image != 0) & (image > image.min())]
    if not body.size:
        return _Window("", 0.0, 1.0)
    if image.min() < _AIR_HU:  # air: no other modality has such values
        labelled = image[reference != 0]
        median = np.median(labelled if labelled.size else image[image > _AIR_HU])
        return next(window for least, window in _CT_WINDOWS if median >= least)
    low, high = np.percentile(body, (0.5, 99.5))
    return _Window("", float(low), float(high))


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
    sizes_mm: Sequence[Size], title: str, subtitle: str, legend: Sequence[Artist]
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with the panels of a plane one above the other; all at one scale."""
    widths_mm, heights_mm = zip(*sizes_mm, strict=True)
    free = _WIDTH - _MARGIN - _GAP_X * (len(sizes_mm) + 1)
    inches_per_mm = min(free / sum(widths_mm), _TALLEST / max(heights_mm))
    height = max(heights_mm) * inches_per_mm
    gap = (_WIDTH - _MARGIN - sum(widths_mm) * inches_per_mm) / (len(sizes_mm) + 1)
    # Long names need wide columns, or they would be cut off at the edges.
    longest = max(len(str(entry.get_label())) for entry in legend)
    fitting = int(_WIDTH / (_LEGEND_HANDLE + _LEGEND_LETTER * longest))
    legend_columns = min(len(legend), max(1, min(_LEGEND_COLUMNS, fitting)))
    legend_height = _LEGEND_ROW * (ceil(len(legend) / legend_columns) + 0.5)
    total_height = _TITLE + len(_ROWS) * (height + _GAP_Y) + legend_height
    figure = Figure(figsize=(_WIDTH, total_height), facecolor="black")
    FigureCanvasAgg(figure)
    for text, inches, size in ((title, 0.14, 11), (subtitle, 0.36, 9)):
        figure.text(
            0.5, 1 - inches / total_height, text, color=_INK, size=size, ha="center", va="center"
        )
    figure.legend(
        handles=legend,
        loc="lower center",
        ncols=legend_columns,
        frameon=False,
        labelcolor=_INK,
        fontsize=9,
        handlelength=1.4,
    )
    bottoms = [
        total_height - _TITLE - (row + 1) * height - row * _GAP_Y for row in range(len(_ROWS))
    ]
    for name, bottom in zip(_ROWS, bottoms, strict=True):
        figure.text(
            0.5 * _MARGIN / _WIDTH, (bottom + height / 2) / total_height, name,
            color=_INK, size=9, rotation=90, ha="center", va="center",
        )  # fmt: skip
    columns, left = [], _MARGIN + gap
    for width_mm in widths_mm:
        width = width_mm * inches_per_mm
        place = (left / _WIDTH, width / _WIDTH, height / total_height)
        columns.append(
            [figure.add_axes((place[0], bottom / total_height, *place[1:])) for bottom in bottoms]
        )
        left += width + gap
    return figure, columns


def _legend(dice: Mapping[str, float]) -> list[Artist]:
    areas = [
        Patch(
            color=to_rgba(colour, 2 * _FILL_OPACITY),
            label=f"{name}  " + ("absent" if isnan(value) else f"Dice {value:.3f}"),
        )
        for (name, value), colour in zip(dice.items(), _colours(len(dice)), strict=True)
    ]
    errors = {"missed (false negative)": _MISSED, "too much (false positive)": _EXTRA}
    if len(dice) > 1:
        errors["another class"] = _CONFUSED
    return [*areas, *(Patch(color=colour, label=name) for name, colour in errors.items())]


def _show_classes(
    panel: Axes, masks: Sequence[tuple[Volume, Volume]], extent: tuple[float, float, float, float]
) -> None:
    """Draw areas first, the largest class below the others, then all lines."""
    coloured = [(colour, *pair) for colour, pair in zip(_colours(len(masks)), masks, strict=True)]
    for colour, _, found in sorted(coloured, key=lambda entry: -np.count_nonzero(entry[2])):
        _fill(panel, found, to_rgba(colour, _FILL_OPACITY), extent)
    for colour, expected, _ in coloured:
        if expected.any() and not expected.all():  # a contour needs an inside and an outside
            panel.contour(
                _at_least_two(expected).astype(float),
                levels=[0.5],
                colors=[colour],
                linewidths=0.7,
                extent=extent,
                origin="upper",
            ).set_path_effects([_OUTLINE])


def _at_least_two(plane: Volume) -> Volume:
    """A plane with two rows and two columns or more, as a contour needs: a single one twice."""
    for axis in (0, 1):
        if plane.shape[axis] == 1:
            plane = plane.repeat(2, axis)
    return plane


def _show_errors(
    panel: Axes, masks: Sequence[tuple[Volume, Volume]], extent: tuple[float, float, float, float]
) -> None:
    """Colour the voxels that differ."""
    expected = np.any([mask for mask, _ in masks], axis=0)
    found = np.any([mask for _, mask in masks], axis=0)
    differs = np.any([one != other for one, other in masks], axis=0)
    for colour, mask in (
        (_MISSED, expected & ~found),
        (_EXTRA, found & ~expected),
        (_CONFUSED, expected & found & differs),
    ):
        _fill(panel, mask, to_rgba(colour, _ERROR_OPACITY), extent)


def _fill(
    panel: Axes,
    mask: Volume,
    colour: tuple[float, float, float, float],
    extent: tuple[float, float, float, float],
) -> None:
    fill = np.zeros((*mask.shape, 4))
    fill[mask] = colour
    panel.imshow(fill, extent=extent, interpolation="nearest")


def _colours(count: int) -> Sequence[Any]:
    """A colour for each class, the same in every picture of a dataset."""
    if count <= len(_COLOURS):
        return _COLOURS[:count]
    many = colormaps["tab20"]
    return [many(index % many.N) for index in range(count)]
