"""A dataset's fingerprint for people and programs: one JSON and one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segresmamba.data.store.locations import files_of
from segresmamba.data.store.manifest import CaseRecord, Manifest, read_manifest
from segresmamba.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = ("D", "H", "W")
_COLUMNS = 8  # whose names have room side by side
_WIDTH_POINTS = 280  # of a panel


def write_fingerprint(store: str | Path, out: Path) -> tuple[Path, Path]:
    """Write fingerprint.json and fingerprint.png. No voxel is read.

    Args:
        store: A converted dataset: its folder, zip file or URL.
        out: Folder to write to; made if it is not there.

    Returns:
        The two files.

    Raises:
        DataError: If there is no manifest, or `out` cannot be written.
    """
    manifest = read_manifest(files_of(store))
    files = out / "fingerprint.json", out / "fingerprint.png"
    parts = [path.with_name(f".part-{path.name}") for path in files]
    try:
        out.mkdir(parents=True, exist_ok=True)
        parts[0].write_text(json.dumps(_content(manifest), indent=1))
        _draw(manifest, parts[1])
        for part, path in zip(parts, files, strict=True):
            part.replace(path)
    except OSError as error:
        raise DataError(
            "the fingerprint cannot be written",
            where=error.filename or out,
            got=error.strerror,
            remedy="choose another folder with --out",
        ) from error
    finally:
        for part in parts:
            if part.parent.is_dir():
                part.unlink(missing_ok=True)
    return files


def _content(manifest: Manifest) -> dict[str, Any]:
    """The dataset's medians and means, and what each case has."""
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
    # Plain numbers; some lie within a factor of four.
    found = [value for values in present.values() for value in values]
    volume.set_ylim(min(found) / 2, max(found) * 2)
    volume.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    volume.yaxis.set_major_formatter("{x:g}")
    volume.yaxis.set_minor_locator(NullLocator())
    figure.suptitle(f"{manifest.name}: {len(records)} cases")
    figure.savefig(path, format="png", dpi=120)


def _dots(axes: Axes, columns: dict[str, list[float]]) -> None:
    """A column of points, one per case, spread sideways; the bar is the median."""
    for number, values in enumerate(columns.values()):
        sideways = number + np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else number
        size = float(np.clip(6 * _WIDTH_POINTS / len(columns) / max(len(values), 1), 4, 16))
        axes.scatter(np.broadcast_to(sideways, len(values)), values, s=size, alpha=0.6, linewidth=0)
        axes.hlines(np.median(values), number - 0.35, number + 0.35, colors="black", linewidth=1)
    crowded = len(columns) > _COLUMNS
    axes.set_xticks(range(len(columns)), list(columns), rotation=90 if crowded else 0)
    axes.tick_params(axis="x", labelsize=6 if crowded else 10)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.grid(axis="y", alpha=0.3)


def _intensities(axes: Axes, names: tuple[str, ...], records: list[CaseRecord]) -> None:
    """A line per case from the 0.5th to the 99.5th percentile, a dot at the mean."""
    spread = np.linspace(-0.3, 0.3, len(records)) if len(records) > 1 else np.zeros(1)
    points = _WIDTH_POINTS / len(names) / len(records)  # what one case has of the width
    for number in range(len(names)):
        of_cases = [record.statistics[number] for record in records]
        low, high, mean = (
            [getattr(one, name) for one in of_cases]
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
