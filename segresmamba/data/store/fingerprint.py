"""Write a dataset's fingerprint, its summary statistics: a JSON file and a picture.

`manifest.dataset_fingerprint` computes the part that sums up all cases. It is stored in the
manifest, so no voxel is read here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segresmamba.data.store.locations import files_at
from segresmamba.data.store.manifest import CaseRecord, Manifest, read_manifest
from segresmamba.errors import DataError
from segresmamba.storage.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = ("D", "H", "W")
_COLUMNS = 8
"""The most columns whose names fit side by side."""
_PANEL_POINTS = 280
"""Width of a panel in points."""


def write_fingerprint(store: str | Path, out: Path) -> tuple[Path, Path]:
    """Write fingerprint.json and fingerprint.png.

    Args:
        store: Folder, zip file or URL of a converted dataset.
        out: Folder to write to. It is made if needed.

    Returns:
        The two files.

    Raises:
        DataError: If there is no manifest, or `out` cannot be written.
    """
    manifest = read_manifest(files_at(store))
    numbers, picture = out / "fingerprint.json", out / "fingerprint.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Both are renamed at the end, so that a picture never stands beside other numbers.
        with atomic_path(numbers) as new_numbers, atomic_path(picture) as new_picture:
            new_numbers.write_text(json.dumps(_content(manifest), indent=1))
            _draw(manifest, new_picture)
    except OSError as error:
        raise DataError(
            "the fingerprint cannot be written",
            where=error.filename or out,
            got=error.strerror,
            remedy="choose another folder with --out",
        ) from error
    return numbers, picture


def _content(manifest: Manifest) -> dict[str, Any]:
    """The dataset's fingerprint, and the same quantities of each case."""
    cases = {
        case_id: {
            "shape_DHW": record.shape_DHW,
            "spacing_mm": record.spacing_mm,
            "intensities": {
                name: one.model_dump()
                for name, one in zip(manifest.channel_names, record.statistics, strict=True)
            },
            "class_volume_ml": _volumes_ml(record, manifest.labels),
        }
        for case_id, record in manifest.cases.items()
    }
    return {"name": manifest.name, "dataset": manifest.fingerprint, "by_case": cases}


def _volumes_ml(record: CaseRecord, labels: dict[str, int]) -> dict[str, float]:
    voxel_ml = float(np.prod(record.spacing_mm)) / 1000
    classes = {name: value for name, value in labels.items() if value}
    return {name: record.class_voxels.get(value, 0) * voxel_ml for name, value in classes.items()}


def _draw(manifest: Manifest, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    records = list(manifest.cases.values())
    figure = Figure(figsize=(11, 7), layout="constrained")
    spacing, shape, intensity, volume = figure.subplots(2, 2).ravel()
    _dots(spacing, {axis: [r.spacing_mm[n] for r in records] for n, axis in enumerate(_AXES)})
    spacing.set(title="voxel size", ylabel="mm")
    _dots(shape, {axis: [r.shape_DHW[n] for r in records] for n, axis in enumerate(_AXES)})
    shape.set(title="shape", ylabel="voxels")
    _intensities(intensity, manifest.channel_names, records)
    volumes = [_volumes_ml(record, manifest.labels) for record in records]
    present = {name: [v[name] for v in volumes if v[name]] for name in volumes[0]}
    gap = " " if len(present) > _COLUMNS else "\n"
    _dots(volume, {f"{name}{gap}{len(v)} cases": v for name, v in present.items()})
    volume.set(title="class volume where present", ylabel="ml", yscale="log")
    # Labels at 1, 2 and 5: all volumes may lie between two powers of ten.
    found = [value for values in present.values() for value in values]
    volume.set_ylim(min(found, default=1) / 2, max(found, default=1) * 2)
    volume.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    volume.yaxis.set_major_formatter("{x:g}")
    volume.yaxis.set_minor_locator(NullLocator())
    figure.suptitle(f"{manifest.name}: {len(records)} cases")
    figure.savefig(path, format="png", dpi=120)


def _dots(axes: Axes, columns: dict[str, list[float]]) -> None:
    """Draw a column of points, one for each case, spread sideways, and a bar at the median."""
    for number, values in enumerate(columns.values()):
        sideways = number + np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else number
        size = float(np.clip(6 * _PANEL_POINTS / len(columns) / max(len(values), 1), 4, 16))
        axes.scatter(np.broadcast_to(sideways, len(values)), values, s=size, alpha=0.6, linewidth=0)
        if values:  # a class may occur in no case
            middle = np.median(values)
            axes.hlines(middle, number - 0.35, number + 0.35, colors="black", linewidth=1)
    crowded = len(columns) > _COLUMNS
    axes.set_xticks(range(len(columns)), list(columns), rotation=90 if crowded else 0)
    axes.tick_params(axis="x", labelsize=6 if crowded else 10)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.grid(axis="y", alpha=0.3)


def _intensities(axes: Axes, names: tuple[str, ...], records: list[CaseRecord]) -> None:
    """Draw for each case a line from the 0.5th to the 99.5th percentile and a dot at the mean."""
    spread = np.linspace(-0.3, 0.3, len(records)) if len(records) > 1 else np.zeros(1)
    points = _PANEL_POINTS / len(names) / len(records)  # width that one case can take
    for number in range(len(names)):
        statistics = [record.statistics[number] for record in records]
        low, high, mean = (
            [getattr(one, name) for one in statistics]
            for name in ("percentile_00_5", "percentile_99_5", "mean")
        )
        places = number + spread
        axes.vlines(
            places, low, high, colors="C0", alpha=0.4, linewidth=np.clip(points / 2, 0.4, 3)
        )
        axes.scatter(places, mean, color="black", s=np.clip(points, 1, 12), linewidth=0, zorder=3)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set(title="intensity of non-zero voxels: 0.5 to 99.5 %, mean", ylabel="intensity")
    axes.grid(axis="y", alpha=0.3)
