"""Pictures of a case: its image, the reference's contours and the prediction's areas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

# Okabe and Ito's palette, which colour-blind readers tell apart; the brightest against grey first.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_INK = "#E8E8E8"
_DPI = 130
_MM_PER_INCH = 50.0
_GAP, _TITLE, _LEGEND = 0.12, 0.4, 0.45  # inches
_FILL_OPACITY = 0.4

Volume = NDArray[Any]
Size = tuple[float, float]


@dataclass(frozen=True)
class _View:
    """A plane as radiologists hang it: seen from the feet, from the front, from the left."""

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
    predicted, a line around it in the reference. Planes hang in radiological convention (the
    patient's right on the left), at one scale, with the true aspect of the voxels.

    Args:
        path: The PNG to write.
        image_DHW: One channel of the image, on a RAS grid as every stored case.
        reference_DHW: Label values of the reference.
        prediction_DHW: Label values of the prediction.
        spacing_mm: Size of a voxel along D, H and W.
        members: Label values of each class; classes may overlap.
        dice: Dice of each class over the whole volume, for the legend.
        title: What the picture is of.
    """
    image, reference, prediction = (
        volume.transpose() for volume in (image_DHW, reference_DHW, prediction_DHW)
    )
    window = _grey_window(image)
    box = _body(image, reference != 0, window)
    image, reference, prediction = image[box], reference[box], prediction[box]

    sizes_mm = [view.size_mm(np.multiply(image.shape, spacing_mm[::-1])) for view in _VIEWS]
    figure, axes = _layout(sizes_mm, title)
    shown = reference if reference.any() else prediction
    for view, size_mm, (bare, overlay) in zip(_VIEWS, sizes_mm, axes, strict=True):
        index = _fullest_plane(shown, members, view.axis)
        grey, expected, found = (
            view.cut(volume, index) for volume in (image, reference, prediction)
        )
        for panel in (bare, overlay):
            _show_image(panel, grey, size_mm, window)
        _label_sides(bare, view)
        masks = [(np.isin(expected, values), np.isin(found, values)) for values in members.values()]
        _show_classes(overlay, masks, size_mm)
    _add_legend(figure, dice)
    figure.savefig(path, dpi=_DPI, facecolor=figure.get_facecolor())


def _body(
    image: Volume, labelled: Volume, window: tuple[float, float], margin: int = 2
) -> tuple[slice, ...]:
    """The box around all that is not dark air, with a margin in voxels."""
    low, high = window
    shown = (image > low + 0.05 * (high - low)) | labelled
    if not shown.any():
        return (slice(None),) * 3
    corners = np.argwhere(shown)
    starts, stops = corners.min(0) - margin, corners.max(0) + 1 + margin
    return tuple(slice(max(start, 0), stop) for start, stop in zip(starts, stops, strict=True))


def _fullest_plane(label_RAS: Volume, members: Mapping[str, Sequence[int]], axis: int) -> int:
    """The plane that shows most of the classes, each weighing alike however small it is."""
    others = tuple(other for other in range(3) if other != axis)
    shares = np.zeros(label_RAS.shape[axis])
    for values in members.values():
        area = np.isin(label_RAS, values).sum(axis=others)
        shares += area / max(area.sum(), 1)
    return int(shares.argmax()) if shares.any() else label_RAS.shape[axis] // 2


def _grey_window(image: Volume) -> tuple[float, float]:
    """Black and white of the display: nearly the whole range of what is not empty air."""
    body = image[image != 0]
    if not body.size:
        return 0.0, 1.0
    low, high = np.percentile(body, (0.5, 99.5))
    return float(low), float(high)


def _layout(sizes_mm: Sequence[Size], title: str) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A pair of panels, one above the other, for each plane; all at one scale."""
    widths = [width / _MM_PER_INCH for width, _ in sizes_mm]
    height = max(height for _, height in sizes_mm) / _MM_PER_INCH
    total = (sum(widths) + _GAP * (len(widths) + 1), _TITLE + 2 * height + _GAP + _LEGEND)
    figure = Figure(figsize=total, facecolor="black")
    FigureCanvasAgg(figure)
    figure.suptitle(title, y=1 - 0.25 * _TITLE / total[1], color=_INK, size=11, weight="bold")
    columns, left = [], _GAP
    for width in widths:
        upper, lower = (
            figure.add_axes(
                (left / total[0], bottom / total[1], width / total[0], height / total[1])
            )
            for bottom in (_LEGEND + height + _GAP, _LEGEND)
        )
        columns.append((upper, lower))
        left += width + _GAP
    return figure, columns


def _show_image(panel: Axes, plane: Volume, size_mm: Size, window: tuple[float, float]) -> None:
    panel.imshow(
        plane,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=(0, size_mm[0], 0, size_mm[1]),
        interpolation="bilinear",
    )
    panel.set_axis_off()


def _show_classes(panel: Axes, masks: Sequence[tuple[Volume, Volume]], size_mm: Size) -> None:
    """Areas first, the largest class lowest, then all the lines."""
    extent = (0, size_mm[0], 0, size_mm[1])
    coloured = [(_colour(place), *pair) for place, pair in enumerate(masks)]
    for colour, _, found in sorted(coloured, key=lambda entry: -np.count_nonzero(entry[2])):
        fill = np.zeros((*found.shape, 4))
        fill[found] = to_rgba(colour, _FILL_OPACITY)
        panel.imshow(fill, extent=extent, interpolation="nearest")
    for colour, expected, _ in coloured:
        if expected.any() and not expected.all():
            panel.contour(
                expected.astype(float),
                levels=[0.5],
                colors=[colour],
                linewidths=1.0,
                extent=extent,
                origin="upper",
            ).set_path_effects([withStroke(linewidth=2.0, foreground="black")])


def _label_sides(panel: Axes, view: _View) -> None:
    places = (
        (0.02, 0.5, "left"),
        (0.98, 0.5, "right"),
        (0.5, 0.985, "center"),
        (0.5, 0.015, "center"),
    )
    verticals = ("center", "center", "top", "bottom")
    for side, (x, y, horizontal), vertical in zip(view.sides, places, verticals, strict=True):
        panel.text(
            x, y, side, transform=panel.transAxes, color=_INK, size=9, ha=horizontal, va=vertical
        )


def _add_legend(figure: Figure, dice: Mapping[str, float]) -> None:
    classes = [
        Patch(
            facecolor=to_rgba(_colour(place), 2 * _FILL_OPACITY), label=f"{name}  Dice {value:.3f}"
        )
        for place, (name, value) in enumerate(dice.items())
    ]
    meaning = [
        Patch(facecolor=to_rgba(_INK, _FILL_OPACITY), label="area: prediction"),
        Line2D([], [], color=_INK, linewidth=1.2, label="line: reference"),
    ]
    figure.legend(
        handles=[*classes, *meaning],
        loc="lower center",
        ncols=len(classes) + 2,
        frameon=False,
        labelcolor=_INK,
        fontsize=9,
        handlelength=1.4,
    )


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]
