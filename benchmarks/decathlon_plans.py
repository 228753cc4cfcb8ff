"""What `segresmamba configure` proposes for the ten Decathlon tasks, beside nnU-Net's plans.

    python benchmarks/decathlon_plans.py

Shapes, spacings, patches and batches of nnU-Net are those that its paper published for
3d_fullres within about 8 GiB; docs/configure.md has the table and its sources.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from segresmamba.configure.proposal import Request, largest_step
from segresmamba.configure.rules import Size


@dataclass(frozen=True)
class Decathlon:
    """One task: what is published of its training cases, and nnU-Net's plan for it."""

    name: str
    cases: int
    channels: int
    classes: int
    shape: Size
    spacing_mm: tuple[float, float, float]
    patch: Size
    batch: int = 2


TASKS = (
    Decathlon("BrainTumour", 484, 4, 3, (138, 169, 138), (1, 1, 1), (128, 128, 128)),
    Decathlon("Heart", 20, 1, 1, (115, 320, 232), (1.37, 1.25, 1.25), (80, 192, 160)),
    Decathlon("Liver", 131, 1, 2, (482, 512, 512), (1, 0.77, 0.77), (128, 128, 128)),
    Decathlon("Hippocampus", 260, 1, 2, (36, 50, 35), (1, 1, 1), (40, 56, 40), 9),
    Decathlon("Prostate", 32, 2, 2, (20, 320, 319), (3.6, 0.62, 0.62), (20, 320, 256)),
    Decathlon("Lung", 63, 1, 1, (252, 512, 512), (1.24, 0.79, 0.79), (80, 192, 160)),
    Decathlon("Pancreas", 281, 1, 2, (96, 512, 512), (2.5, 0.8, 0.8), (40, 224, 224)),
    Decathlon("HepaticVessel", 303, 1, 2, (150, 512, 512), (1.5, 0.8, 0.8), (64, 192, 192)),
    Decathlon("Spleen", 41, 1, 1, (187, 512, 512), (1.6, 0.79, 0.79), (64, 192, 160)),
    Decathlon("Colon", 126, 1, 1, (150, 512, 512), (3, 0.78, 0.78), (56, 192, 160)),
)

MEMORY_GIB = (8, 24, 80)


def main() -> None:
    """Print one row per task."""
    logging.disable(logging.WARNING)
    titles = ["task", "median case", "spacing (mm)", "nnU-Net, about 8 GiB"]
    titles += [f"ours, {memory_gib} GiB" for memory_gib in MEMORY_GIB]
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for task in TASKS:
        labels = {f"class {value}": value for value in range(task.classes + 1)}
        cells = [_times(task.shape), _times(task.spacing_mm), f"{_times(task.patch)}, {task.batch}"]
        for memory_gib in MEMORY_GIB:
            found = largest_step(
                Request("", gpu_memory_gib=memory_gib),
                np.array(task.shape, dtype=np.float64),
                task.cases,
                task.channels,
                labels,
            )
            config = found.config
            cells.append(
                f"{_times(config.data.patch)}, {config.train.batch_size} "
                f"({found.needed_gib:.1f} GiB)"
            )
        print("| " + " | ".join([task.name, *cells]) + " |", flush=True)


def _times(sizes: tuple[float, ...]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)


if __name__ == "__main__":
    main()
