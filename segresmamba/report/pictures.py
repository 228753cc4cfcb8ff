"""The pictures of a report: training curves, Dice against memory, and small overlays."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from segresmamba.report.groups import Group, have_same_meters
from segresmamba.report.tables import number

# Okabe and Ito's palette without its yellow, which is too bright on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DPI = 150
_INK, _GRID, _FRONT = "#222222", "#DDDDDD", "#777777"
_LARGEST_AREA, _SMALLEST_AREA = 900.0, 40.0  # square points
_LOGARITHMIC_FROM = 4.0  # ratio of the largest to the smallest
_LEGEND_ROW = 0.24  # inches
_JPEG_SIZE = (1000, 2000)  # largest width and height in pixels
_JPEG_QUALITY = 85


def colours(count: int) -> list[str]:
    """A colour for each group; up to seven are distinguishable for colour-blind readers."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    many = colormaps["turbo"]
    return [to_hex(many(0.05 + 0.9 * index / (count - 1))) for index in range(count)]


def draw_curves(groups: Sequence[Group]) -> bytes | None:
    """A PNG of loss and validation Dice by step; None if neither was recorded.

    The line is the mean over the runs of a group; the band goes from the lowest to the highest.
    """
    shown = [
        (key, title)
        for key, title in (
            ("train/loss", "Training loss"),
            ("validation/dice/mean", "Dice in validation"),
        )
        if any(key in run.history.curves for group in groups for run in group.runs)
    ]
    if not shown:
        return None
    figure = _figure(4.6 * len(shown), 3.4, len(groups))
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (key, title) in zip(panels, shown, strict=True):
        for index, (group, colour) in enumerate(zip(groups, colours(len(groups)), strict=True)):
            _curve(panel, group, key, colour, index)
        panel.set(xlabel="step", title=title)
        panel.set_xlim(left=0)
        _plain_panel(panel)
    lines = [
        Line2D([], [], color=colour, linestyle=_STYLES[index % len(_STYLES)], label=group.label)
        for index, (group, colour) in enumerate(zip(groups, colours(len(groups)), strict=True))
    ]
    return _png(figure, lines)


def draw_tradeoff(groups: Sequence[Group], front: Sequence[Group]) -> bytes | None:
    """A PNG of Dice against memory; None if no group has both.

    The area of a bubble is the measured energy, where there is any.

    Args:
        groups: All groups.
        front: The groups on the Pareto front, from the least memory to the most.
    """
    placed = [
        (index, group)
        for index, group in enumerate(groups)
        if group.mean("memory_gib") is not None and group.mean("dice") is not None
    ]
    if not placed:
        return None
    comparable = have_same_meters(run for group in groups for run in group.runs)
    most_wh = max(group.mean("measured_wh") or 0.0 for group in groups) if comparable else 0.0
    figure = _figure(7.2, 4.2, len(placed) + 2)
    axes = figure.subplots()
    ends = [(group.mean("memory_gib") or 0.0, group.mean("dice") or 0.0) for group in front]
    line = Line2D(
        *zip(*ends, strict=True), color=_FRONT, linestyle=(0, (4, 3)), linewidth=1, zorder=1,
        label="Pareto front",
    )  # fmt: skip
    axes.add_line(line)
    handles = []
    for index, group in placed:
        colour = colours(len(groups))[index]
        marker = "o" if most_wh else _MARKERS[index % len(_MARKERS)]
        _bubble(axes, group, colour, marker, most_wh)
        filled = not most_wh or bool(group.mean("measured_wh"))
        handles.append(_handle(marker, group.label, colour, filled=filled))
    if len(front) > 1:
        handles.append(line)
    if most_wh:
        text = f"area: measured energy, the largest {number(most_wh)} Wh; white: not measured"
        handles.append(_handle("o", text, _INK, filled=False))
    axes.set(xlabel="peak memory (GiB)", ylabel="Dice")
    memories = [group.mean("memory_gib") or 0.0 for _, group in placed]
    if max(memories) >= _LOGARITHMIC_FROM * min(memories):
        axes.set_xscale("log")
        # Matplotlib's own labels of such an axis are powers of ten.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.2, y=0.25)
    _plain_panel(axes)
    return _png(figure, handles)


def small_jpeg(picture: Path) -> bytes:
    """The picture as a JPEG that is small enough to be embedded in the page.

    Raises:
        OSError: If the file is not a picture.
    """
    buffer = BytesIO()
    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail(_JPEG_SIZE)
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _curve(panel: Axes, group: Group, key: str, colour: str, index: int) -> None:
    by_step: dict[int, list[float]] = defaultdict(list)
    for run in group.runs:
        for point in run.history.curves.get(key, ()):
            if math.isfinite(point.value):
                by_step[point.step].append(point.value)
    steps = sorted(by_step)
    panel.plot(
        steps,
        [fmean(by_step[step]) for step in steps],
        color=colour,
        linestyle=_STYLES[index % len(_STYLES)],
        marker=_MARKERS[index % len(_MARKERS)] if len(steps) < 8 else "",
        markersize=4,
        linewidth=1.6,
    )
    panel.fill_between(
        steps,
        [min(by_step[step]) for step in steps],
        [max(by_step[step]) for step in steps],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )


def _bubble(axes: Axes, group: Group, colour: str, marker: str, most_wh: float) -> None:
    memory, dice = group.spread("memory_gib"), group.spread("dice")
    assert memory is not None and dice is not None  # noqa: PT018
    share = (group.mean("measured_wh") or 0.0) / most_wh if most_wh else 0.0
    filled = not most_wh or share > 0
    axes.errorbar(
        memory.mean,
        dice.mean,
        xerr=memory.deviation,
        yerr=dice.deviation,
        color=colour,
        linewidth=1,
        zorder=2,
    )
    axes.scatter(
        memory.mean,
        dice.mean,
        s=max(_LARGEST_AREA * share, _SMALLEST_AREA),
        marker=marker,
        facecolor=colour if filled else "white",
        edgecolor=_INK if filled else colour,
        alpha=0.75,
        linewidth=0.8,
        zorder=3,
    )


def _handle(marker: str, label: str, colour: str, *, filled: bool) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="",
        marker=marker,
        markersize=8,
        markerfacecolor=colour if filled else "white",
        markeredgecolor=_INK if filled else colour,
        markeredgewidth=0.8,
        label=label,
    )


def _plain_panel(panel: Axes) -> None:
    panel.grid(visible=True, color=_GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(colors=_INK, labelsize=9)
    panel.title.set_fontsize(10)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _figure(width: float, height: float, legend_rows: int) -> Figure:
    # Without pyplot, which keeps every figure in memory until it is closed.
    figure = Figure(
        figsize=(width, height + _LEGEND_ROW * legend_rows), dpi=_DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure, handles: Sequence[Line2D]) -> bytes:
    """Draw the figure with its legend."""
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
