"""What an exponential moving average of the weights is worth, beside the last weights.

    python benchmarks/weight_averaging.py --network segresmamba_fine --seed 0

One run of `benchmarks/accuracy.py`'s plan for each of its two tasks, with the same settings and the
learning rate that was best for the network. Beside the training, which they do not change, two
averages follow the weights, and at the end all are scored on the same held-out volumes. So a
difference between them is not that of two trainings. Results go to
`results/weight_averaging.csv`.

As is usual, an average forgets faster at first: in step n its decay is at most n / (n + 9).
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.accuracy import (
    FOLD,
    NETWORKS,
    RESULTS,
    SHORT,
    TASKS,
    Run,
    best_rate,
    overrides_of,
    prepare,
    read,
)
from segresmamba.config import Config, load_config
from segresmamba.engine import train
from segresmamba.engine.zero import ZeroEngine
from segresmamba.evaluation.score_cases import Summary, evaluate_cases
from segresmamba.task.task import Task

DECAYS = (0.95, 0.99)
OUT = RESULTS.with_name("weight_averaging.csv")
COLUMNS = ("task", "network", "seed", "decay", "dice", "hd95_mm")


class Averages:
    """Moving averages of an engine's weights, one for each decay; decay 0 is the last weights."""

    def __init__(self) -> None:
        self.of_decay: dict[float, dict[str, Tensor]] = {}
        self._steps = 0

    @torch.no_grad()
    def add(self, network: nn.Module) -> None:
        """Let all averages follow the weights of one more step."""
        self._steps += 1
        for decay in (0.0, *DECAYS):
            average = self.of_decay.setdefault(decay, {})
            kept = min(decay, self._steps / (self._steps + 9))
            for name, value in network.state_dict().items():
                if name in average and value.is_floating_point():
                    average[name].lerp_(value, 1 - kept)
                else:
                    average[name] = value.clone()


def averaged_training(config: Config) -> Averages:
    """Train as configured, and return the averages that followed the weights."""
    averages = Averages()
    step: Callable[[ZeroEngine, Tensor, float], None] = ZeroEngine.backward

    def step_and_average(engine: ZeroEngine, loss: Tensor, lr: float) -> None:
        step(engine, loss, lr)
        averages.add(engine.network)

    ZeroEngine.backward = step_and_average  # type: ignore[method-assign]
    try:
        train(config)
    finally:
        ZeroEngine.backward = step  # type: ignore[method-assign]
    return averages


def main() -> None:
    """Train on both tasks, score, and add the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--network", default="segresmamba_fine", choices=NETWORKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=SHORT)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the stores")
    parser.add_argument("--root", type=Path, default=Path("runs/averaging"), help="of the runs")
    arguments = parser.parse_args()
    lr = best_rate(arguments.network, read(RESULTS))
    for task_name in TASKS:
        store = prepare(task_name, arguments.data)
        run = Run(task_name, arguments.network, FOLD, arguments.steps, lr, arguments.seed)
        # The averages of a training that goes on would lack its first steps.
        shutil.rmtree(arguments.root / run.name, ignore_errors=True)
        config = load_config(overrides_of(run, store, arguments.root))
        averages = averaged_training(config)
        task = Task.from_config(config)
        network, cpu = task.network(), torch.device("cpu")
        for decay, weights in averages.of_decay.items():
            network.load_state_dict(weights)
            results = evaluate_cases(network, task.dataset, task.split["val"], config, cpu)
            mean = Summary.from_results(results).mean
            line = (task_name, arguments.network, arguments.seed, decay)
            scores = (round(mean.dice, 5), round(mean.hd95_mm, 4))
            print(*line, *scores, flush=True)
            with OUT.open("a", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                if not file.tell():
                    table.writerow(COLUMNS)
                table.writerow([*line, *scores])


if __name__ == "__main__":
    main()
