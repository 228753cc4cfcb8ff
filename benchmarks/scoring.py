"""Measures how long a case of many classes takes to score, beside MONAI's functions.

    python benchmarks/scoring.py [--size 512] [--classes 25] [--threads 1] [--monai] [--out FILE]

The label has ellipsoids of 30 to 180 voxels at 512^3; each lies a few voxels elsewhere in the
prediction. Processor time depends less than seconds on what else the machine does. MONAI computes
Dice, HD95, ASSD and NSD, one class after the other, and so do we in the row beside it.
"""

from __future__ import annotations

import argparse
import csv
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segresmamba.evaluation.measures import METRICS, USUAL, Scoring, measure
from segresmamba.evaluation.metrics import score

SPACING_MM = (1.0, 0.8, 0.8)
SHARED = ("dice", "hd95_mm", "nsd", "assd_mm")


def labels(size: int, classes: int, shift: int) -> NDArray[np.uint8]:
    """Ellipsoids of the values 1, 2, ..., the later ones over the earlier ones."""
    places, moves = np.random.default_rng(0), np.random.default_rng(1)
    volume = np.zeros((size,) * 3, np.uint8)
    for value in range(1, classes + 1):
        radii = places.integers(max(size // 34, 1), size // 6, 3)
        centre = places.integers(size // 6, 5 * size // 6, 3) + moves.integers(-1, 2, 3) * shift
        box = tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(centre, radii, strict=True))
        grid = np.ogrid[tuple(slice(side.start, min(side.stop, size)) for side in box)]
        distance = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True))
        volume[box][distance <= 1] = value
    return volume


def by_monai(prediction: NDArray[Any], reference: NDArray[Any], classes: int) -> None:
    import torch
    from monai import metrics

    for value in range(1, classes + 1):
        y_pred, y = (
            torch.from_numpy(volume == value)[None, None] for volume in (prediction, reference)
        )
        both: dict[str, Any] = {"y_pred": y_pred, "y": y, "include_background": True}
        metrics.compute_dice(**both)
        metrics.compute_hausdorff_distance(**both, percentile=95, spacing=SPACING_MM)
        metrics.compute_average_surface_distance(**both, symmetric=True, spacing=SPACING_MM)
        metrics.compute_surface_dice(**both, class_thresholds=[1.0], spacing=SPACING_MM)


def timed(what: str, call: Callable[[], object]) -> dict[str, str]:
    started = time.process_time()
    call()
    processor_s = time.process_time() - started
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{what:32} {processor_s:8.1f} s {peak_gib:6.2f} GiB", flush=True)
    return {
        "what": what,
        "processor_seconds": f"{processor_s:.1f}",
        "peak_gib_so_far": f"{peak_gib:.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--monai", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    reference, prediction = (labels(arguments.size, arguments.classes, shift) for shift in (0, 3))
    members = {f"class {value}": (value,) for value in range(1, arguments.classes + 1)}
    maps = (prediction, reference, members, SPACING_MM)

    def ours(metrics: tuple[str, ...]) -> Callable[[], object]:
        return lambda: measure(*maps, Scoring(metrics=metrics), threads=arguments.threads)

    print(f"{'':32} {'processor':>10} {'peak':>10}")
    rows = [
        timed("Dice, HD95 (as training)", lambda: score(*maps)),
        timed("Dice, HD95, ASSD, NSD", ours(SHARED)),
        timed(f"usual: {len(USUAL)} metrics", ours(USUAL)),
        timed(f"all: {len(METRICS)} metrics", ours(tuple(METRICS))),
    ]
    if arguments.monai:
        import monai.metrics  # noqa: F401  # its import is not measured

        rows.append(
            timed(
                "MONAI: Dice, HD95, ASSD, NSD",
                lambda: by_monai(prediction, reference, arguments.classes),
            )
        )
    if arguments.out:
        is_new = not arguments.out.exists()
        with arguments.out.open("a", newline="") as file:
            table = csv.DictWriter(file, ["size", *rows[0]], lineterminator="\n")
            if is_new:
                table.writeheader()
            table.writerows({"size": arguments.size, **row} for row in rows)


if __name__ == "__main__":
    main()
