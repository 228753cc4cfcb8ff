"""Logits of a coarse grid to labels on the grid of the file: scipy, torch, and this project's way.

    python -m benchmarks.resampling_back                  # the table of docs/performance.md

The case is drawn: each class has a ball, and the logits fall with the distance to its surface. The
first two ways interpolate all logits of all classes, as nnU-Net does (scipy) or can be told to do
(torch), and take the best class. Each way runs in a process of its own, on one thread; seconds are
those of the processor.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from segresmamba.data.volumes.resampling import grid_transform
from segresmamba.inference.way_back import WayBack
from segresmamba.task.classes import Classes

SHAPE, FULL = (120, 120, 120), (192, 192, 192)
CLASSES = (3, 25)
WAYS = ("scipy", "torch", "ours", "ours, logits")
SLAB = 16
RESULT = Path(__file__).parent / "results" / "resampling_back.csv"
_GIB = 1 << 20  # in KiB, the unit of ru_maxrss
Array = np.ndarray[Any, Any]


def logits_of(classes: int) -> Array:
    """Logits (K, D, H, W): of a ball for each class but the background."""
    rng = np.random.default_rng(0)
    places_3DHW = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(np.float32)
    logits_KDHW = np.zeros((classes, *SHAPE), np.float32)
    for logit_DHW in logits_KDHW[1:]:
        centre, radius = rng.uniform(20, 100, 3), rng.uniform(8, 25)
        distance_DHW = np.sqrt(sum((places_3DHW - centre[:, None, None, None]) ** 2))
        logit_DHW[...] = (radius - distance_DHW) + rng.normal(0, 0.5, SHAPE)
    return logits_KDHW


def by_scipy(logits_KDHW: Array) -> Array:
    """nnU-Net's default: class by class, in double precision."""
    zoom = np.divide(FULL, SHAPE)
    full_KDHW = np.zeros((len(logits_KDHW), *FULL), np.float32)
    for full_DHW, logit_DHW in zip(full_KDHW, logits_KDHW.astype(np.float64), strict=True):
        full_DHW[...] = ndimage.zoom(logit_DHW, zoom, order=1, mode="nearest", grid_mode=True)
    found: Array = full_KDHW.argmax(0)
    return found


def by_torch(logits_KDHW: Array) -> Array:
    """All classes at once."""
    x_1KDHW = torch.from_numpy(logits_KDHW)[None]
    full_1KDHW = torch.nn.functional.interpolate(x_1KDHW, FULL, mode="trilinear")
    return full_1KDHW[0].argmax(0).numpy()


def by_us(logits_KDHW: Array, *, as_logits: bool) -> Array:
    """Slab by slab, and only where the labels around a voxel differ."""
    count = len(logits_KDHW)
    members = {f"class{value}": (value,) for value in range(1, count)}
    classes = Classes(members=members, values=tuple(range(count)), exclusive=True)
    size_mm = FULL[0] / SHAPE[0]
    channel_DHW = np.broadcast_to(np.uint8(1), FULL)
    transform = grid_transform([channel_DHW], (1.0,) * 3, (size_mm,) * 3, crop=False)
    full_DHW = np.zeros(FULL, np.uint8)
    box = ((0, SHAPE[0]), (0, SHAPE[1]), (0, SHAPE[2]))
    back = WayBack(transform, SHAPE, box, classes, full_DHW, logits=as_logits)
    for first in range(0, SHAPE[0], SLAB):
        slab_KDHW = torch.from_numpy(logits_KDHW[:, first : first + SLAB])
        labels_DHW = classes.decode(slab_KDHW).numpy().astype(np.uint8)
        back.add(first, slab_KDHW if as_logits else classes.probabilities(slab_KDHW), labels_DHW)
    return full_DHW


def worker(way: str, logits: Path, out: Path) -> None:
    """Compute once in this process, and print what it took."""
    torch.set_num_threads(1)
    logits_KDHW = np.load(logits)
    way_of = {
        "scipy": by_scipy,
        "torch": by_torch,
        "ours": lambda x: by_us(x, as_logits=False),
        "ours, logits": lambda x: by_us(x, as_logits=True),
    }
    before, begin_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, process_time()
    labels_DHW = way_of[way](logits_KDHW)
    seconds = process_time() - begin_s
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / _GIB
    np.save(out, labels_DHW.astype(np.uint8))
    print(json.dumps({"seconds": round(seconds, 2), "more_gib": round(more, 3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        way, *paths = options.worker
        worker(way, *map(Path, paths))
        return
    rows = []
    for classes in CLASSES:
        with tempfile.TemporaryDirectory() as name:
            logits = Path(name) / "logits.npy"
            np.save(logits, logits_of(classes))
            labels = {}
            for number, way in enumerate(WAYS):
                out = Path(name) / f"{number}.npy"
                command = [sys.executable, "-m", "benchmarks.resampling_back", "--worker", way]
                done = subprocess.run(
                    [*command, str(logits), str(out)],
                    check=True,
                    text=True,
                    stdout=subprocess.PIPE,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                labels[way] = np.load(out)
                same = float((labels[way] == labels["scipy"]).mean())
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append({"classes": classes, "way": way, **found, "as_scipy": round(same, 6)})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
