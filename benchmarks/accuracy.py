"""Accuracy on the sample dataset: SegResMamba, its ablation and SegResNet, three seeds each.

    segresmamba sample data/raw && segresmamba convert data/raw data/sample.zarr
    python benchmarks/accuracy.py

Runs use the ordinary commands (`python -m launch train`, `segresmamba evaluate`) with the same
number of steps, crop size, augmentation and learning rate. The seed sets weights, crops and
augmentation. Finished runs are not repeated: after an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from segresmamba.models import build

RESULTS = Path(__file__).parent / "results"
NETWORKS: dict[str, dict[str, Any]] = {
    "segresmamba": {"dims": [8, 16, 32, 64]},
    "segresmamba_nomamba": {"dims": [8, 16, 32, 64]},
    "segresnet": {"init_filters": 8},
}
SEEDS = (0, 1, 2)
LEARNING_RATE = 2e-3


def score(name: str, seed: int, *, steps: int, store: Path, root: Path) -> dict[str, float]:
    """Train and evaluate one network; return mean Dice and HD95 over classes and held-out cases."""
    run = root / f"{name}_{seed}"
    if not (run / "results.json").exists():
        widths = [f"model.{key}={json.dumps(value)}" for key, value in NETWORKS[name].items()]
        overrides = [
            "data=custom", f"data.store={store}", "data.patch=[64,64,64]", "train=sample",
            f"train.max_steps={steps}", f"train.lr={LEARNING_RATE}", "tracking=none",
            f"model={name}", *widths, f"seed={seed}", f"run.root={root}", f"run.name={run.name}",
        ]  # fmt: skip
        subprocess.run([sys.executable, "-m", "launch", "train", *overrides], check=True)
        subprocess.run(
            [sys.executable, "-m", "segresmamba.cli.main", "evaluate", str(run)], check=True
        )
    mean: dict[str, float] = json.loads((run / "results.json").read_text())["mean"]
    return mean


def parameters(name: str) -> int:
    """Number of parameters for the sample dataset's one channel and three classes."""
    network: torch.nn.Module = build(name, in_channels=1, out_channels=3, **NETWORKS[name])
    return sum(parameter.numel() for parameter in network.parameters())


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}"


def main() -> None:
    """Train all networks, print and write their scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=250, help="optimizer steps of two crops")
    parser.add_argument("--store", type=Path, default=Path("data/sample.zarr"))
    parser.add_argument(
        "--root", type=Path, default=Path("runs/accuracy"), help="folder of the runs"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy_sample.csv")
    arguments = parser.parse_args()
    scores = {
        (name, seed): score(
            name, seed, steps=arguments.steps, store=arguments.store, root=arguments.root
        )
        for seed in SEEDS  # the outer loop: what an interrupted benchmark has are whole seeds
        for name in NETWORKS
    }
    with arguments.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["network", "parameters", "steps", "seed", "dice", "hd95_mm"])
        for (name, seed), mean in scores.items():
            table.writerow(
                [name, parameters(name), arguments.steps, seed]
                + [round(mean[key], 5) for key in ("dice", "hd95_mm")]
            )
    for name in NETWORKS:
        dice, hd95_mm = (
            spread([scores[name, seed][key] for seed in SEEDS]) for key in ("dice", "hd95_mm")
        )
        print(f"{name:22} {parameters(name):9,}   Dice {dice}   HD95 {hd95_mm} mm")


if __name__ == "__main__":
    main()
