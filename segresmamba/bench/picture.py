"""A picture of peak memory against step time, with a bubble for each network.

Names are placed so that they cover neither bubbles nor each other: networks of similar cost would
otherwise have unreadable labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from segresmamba.bench.result import Result, Setting
from segresmamba.storage.atomic import atomic_path

_DPI = 150
_POINTS_PER_INCH = 72
_AREA_PER_MILLION = 6.0  # square points
_OURS, _OTHERS = "#D55E00", "#0072B2"  # Okabe and Ito's palette
_LEGEND_M = (10, 50, 100)
# Places for a name, the nearest first: distance from the bubble's edge in points, and direction.
_PLACES = [
    (distance, math.radians(degrees))
    for distance in (3.0, 12.0, 24.0, 40.0, 60.0)
    for degrees in (0, 90, 270, 180, 45, 315, 135, 225)
]


class _Bubble(NamedTuple):
    name: str
    step_s: float
    peak_gib: float
    parameters_m: float

    @property
    def area(self) -> float:
        """Area in square points."""
        return _AREA_PER_MILLION * self.parameters_m

    @property
    def radius(self) -> float:
        """Radius in points."""
        return math.sqrt(self.area / math.pi)

    def box(self, axes: Axes) -> Bbox:
        """The square around the bubble, in pixels."""
        x, y = axes.transData.transform((self.step_s, self.peak_gib))
        half = self.radius * _DPI / _POINTS_PER_INCH
        return Bbox.from_extents(x - half, y - half, x + half, y + half)


def draw(path: Path, results: Sequence[Result], setting: Setting) -> bool:
    """Write a PNG, atomically.

    Returns:
        Whether there was anything to draw.
    """
    figure = picture(results, setting)
    if figure is None:
        return False
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return True


def picture(results: Sequence[Result], setting: Setting) -> Figure | None:
    """The figure of all networks that were timed; None if there is no such network."""
    bubbles = [
        _Bubble(row.model, row.step_s, row.peak_gib, row.trained_parameters / 1e6)
        for row in results
        if row.step_s and row.peak_gib and row.trained_parameters
    ]
    if not bubbles:
        return None
    figure = Figure(figsize=(8.5, 6), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(
        [bubble.step_s for bubble in bubbles],
        [bubble.peak_gib for bubble in bubbles],
        s=[bubble.area for bubble in bubbles],
        c=[_OURS if bubble.name.startswith("segresmamba") else _OTHERS for bubble in bubbles],
        alpha=0.55,
        edgecolors="black",
        linewidths=0.6,
    )
    _draw_axes(axes, bubbles)
    axes.set_title(
        f"One training step, {' x '.join(map(str, setting.patch))} voxels, "
        f"batch {setting.batch_size}, {setting.precision}\n{setting.device}",
        fontsize=10,
    )
    _draw_size_legend(figure, axes)
    canvas.draw()  # type: ignore[no-untyped-call]  # labels are placed in the final layout
    _draw_names(axes, bubbles)
    return figure


def _draw_axes(axes: Axes, bubbles: Sequence[_Bubble]) -> None:
    """Logarithmic axes, labelled with plain numbers, with margins around the bubbles."""
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("step time on synthetic data (s)")
    axes.set_ylabel("peak memory of training (GiB)")
    axes.grid(visible=True, which="both", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    times = [bubble.step_s for bubble in bubbles]
    peaks = [bubble.peak_gib for bubble in bubbles]
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    axes.set_ylim(min(peaks) / 1.5, max(peaks) * 1.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _draw_size_legend(figure: Figure, axes: Axes) -> None:
    handles = [
        axes.scatter([], [], s=_AREA_PER_MILLION * size, c="none", edgecolors="black")
        for size in _LEGEND_M
    ]
    figure.legend(
        handles,
        [f"{size} M" for size in _LEGEND_M],
        title="parameters",
        loc="outside right upper",
        labelspacing=1.8,
        borderpad=1.0,
        handletextpad=1.2,
    )


def _draw_names(axes: Axes, bubbles: Sequence[_Bubble]) -> None:
    """Put each name as near to its bubble as it can be without covering something."""
    taken = [bubble.box(axes) for bubble in bubbles]
    frame = axes.get_window_extent()
    for bubble in bubbles:
        extents, clashes = [], []
        for distance, angle in _PLACES:
            text = _annotate(axes, bubble, distance, angle, line=False)
            extent = text.get_window_extent()
            text.remove()
            is_inside = extent.min[0] >= frame.x0 and extent.max[0] <= frame.x1
            is_inside &= extent.min[1] >= frame.y0 and extent.max[1] <= frame.y1
            extents.append(extent)
            clashes.append(sum(extent.overlaps(other) for other in taken) + 10 * (not is_inside))
        best = clashes.index(min(clashes))
        taken.append(extents[best])
        _annotate(axes, bubble, *_PLACES[best])


def _annotate(
    axes: Axes, bubble: _Bubble, distance: float, angle: float, *, line: bool = True
) -> Annotation:
    """Write a name at a distance from its bubble, with a line between them unless they touch."""
    across, up = math.cos(angle), math.sin(angle)
    reach = bubble.radius + distance
    return axes.annotate(
        bubble.name,
        (bubble.step_s, bubble.peak_gib),
        xytext=(reach * across, reach * up),
        textcoords="offset points",
        fontsize=8.5,
        ha="left" if across > 0.1 else "right" if across < -0.1 else "center",
        va="bottom" if up > 0.1 else "top" if up < -0.1 else "center",
        arrowprops={"arrowstyle": "-", "linewidth": 0.6} if line and distance > 3 else None,
    )
