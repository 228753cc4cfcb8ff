"""Accuracy of the networks on two small tasks, each with its own learning rate.

    python benchmarks/accuracy.py                  # goes on with the plan; Ctrl-C at any time
    python benchmarks/accuracy.py --minutes 170    # begins no run after that time
    python benchmarks/accuracy.py --show           # the tables and the picture of docs/accuracy.md

The tasks are two samples, `segresmamba sample --kind brain` and `--kind hemispheres`. In the first
outlines decide, in the second also the place, as left and right look alike. Runs use the ordinary
commands (`python -m launch train`, `segresmamba evaluate`) with the same crops, batch,
augmentation, loss and optimizer; the seed sets weights, crops and augmentation. The plan, in its
order:

    1. main    the networks in question, both tasks, three seeds, 250 steps
    2. long    the same, one seed, 1000 steps
    3. others  the other networks, both tasks, one seed, 250 steps

Before the first runs of a network come those that choose its learning rate: three values, one seed,
on the brain, with another fold held out.

A run that ended adds a line to `results/accuracy.csv` at once and is not repeated. A run that was
interrupted goes on from its checkpoint, if its folder is still there. The same command may run more
than once at a time on one machine: each then takes runs that no other has.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from segresmamba.config import load_config
from segresmamba.planner.footprint import fake_footprint
from segresmamba.task.task import build_network

RESULTS = Path(__file__).parent / "results" / "accuracy.csv"
METRICS = ("dice", "hd95_mm", "nsd")
COLUMNS = ("task", "network", "fold", "steps", "lr", "seed", *METRICS)
SEEDS = (0, 1, 2)
RATES = (1e-3, 2e-3, 4e-3)
SHORT, LONG = 250, 1000
FOLD, TUNING_FOLD = 0, 1

# A quarter of the full widths, and for the family, whose stages need multiples of 8, a third. Half
# of them is segresmamba_fine_24.
_DIMS = "model.dims=[16,32,64,128]"
_LEVEL = "model.fine_channels=8"
_FINE = ("model=segresmamba_fine", _DIMS, _LEVEL)
_LEVELS = "[8,16,32,64,80,80]"


@dataclass(frozen=True)
class Network:
    """What is compared: overrides that choose a network and its settings."""

    overrides: tuple[str, ...]
    lr: float = 2e-3
    """Learning rate until the three have been tried."""


CORE = {
    "segresmamba": Network(("model=segresmamba", _DIMS), lr=4e-3),
    "segresmamba_fine": Network(_FINE, lr=4e-3),
    "segresmamba_fine_24": Network(
        ("model=segresmamba_fine", "model.dims=[24,48,96,192]", _LEVEL), lr=4e-3
    ),
    "segresmamba_fine_nomamba": Network((*_FINE, "model.inner_tom=false"), lr=4e-3),
    "segresmamba_fine_outer": Network((*_FINE, "model.outer_toms=1"), lr=4e-3),
    "segresnet": Network(("model=segresnet", "model.init_filters=8"), lr=4e-3),
    "dynunet": Network(("model=dynunet", f"model.filters={_LEVELS}"), lr=4e-3),
    "resenc_unet": Network(
        ("model=resenc_unet", f"model.features={_LEVELS}", "model.blocks=[1,2,2,2,2,2]")
    ),
}
OTHERS = {
    "segresmamba_nomamba": Network(("model=segresmamba_nomamba", _DIMS), lr=4e-3),
    "umamba_bot": Network(("model=umamba_bot", f"model.features={_LEVELS}")),
    "umamba_bot_nomamba": Network(
        ("model=resenc_unet", f"model.features={_LEVELS}", "model.blocks=[2,2,2,1,1,1]")
    ),
    "mednext": Network(
        (
            "model.target=monai.networks.nets.mednext:MedNeXt",
            "model.kwargs={spatial_dims: 3, init_filters: 8}",
        )
    ),
    "segmamba": Network(("model=segmamba", _DIMS, "model.hidden_size=256")),
    "swinunetr": Network(("model=swinunetr", "model.feature_size=12")),
    "unetr": Network(
        ("model=unetr", "model.feature_size=4", "model.hidden_size=192", "model.mlp_dim=768")
    ),
}
NETWORKS = CORE | OTHERS
TASKS: Mapping[str, tuple[str, ...]] = {
    "brain": (),
    "hemispheres": ("augment.flip_axes=[D,H]",),  # mirrored, a left half would be a right one
}
"""By sample, what its training needs beyond the overrides of all runs."""


@dataclass(frozen=True)
class Run:
    """One training, and the key of its line in the table."""

    task: str
    network: str
    fold: int
    steps: int
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.task}-{self.network}-fold{self.fold}-{self.steps}-lr{self.lr}-s{self.seed}"


Scores = Mapping[str, float]
"""By metric, the mean over classes and held-out cases; nan where it is not known."""
Seeds = Mapping[int, Scores]
Table = Mapping[Run, Scores]


def read(path: Path) -> Table:
    """The lines of a results file; none if there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            Run(
                row["task"], row["network"], int(row["fold"]), int(row["steps"]),
                float(row["lr"]), int(row["seed"]),
            ): {metric: float(row[metric] or "nan") for metric in METRICS}
            for row in csv.DictReader(file)
        }  # fmt: skip


def append(path: Path, run: Run, scores: Scores) -> None:
    """Add a run's line; two programs may do so at the same time."""
    with path.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        table = csv.writer(file, lineterminator="\n")
        if not file.tell():
            table.writerow(COLUMNS)
        values = [round(scores[metric], 5) for metric in METRICS]
        table.writerow([run.task, run.network, run.fold, run.steps, run.lr, run.seed, *values])


def best_rate(network: str, table: Table) -> float:
    """The learning rate of the best tuning run, once all are there; else the provisional one."""
    tried = {rate: table.get(_tuning(network, rate)) for rate in RATES}
    scores = {rate: found["dice"] for rate, found in tried.items() if found}
    if len(scores) < len(RATES):
        return NETWORKS[network].lr
    return max(scores, key=scores.__getitem__)


def is_tuned(network: str, table: Table) -> bool:
    """Whether all its learning rates have been tried."""
    return all(_tuning(network, rate) in table for rate in RATES)


def _tuning(network: str, rate: float) -> Run:
    return Run("brain", network, TUNING_FOLD, SHORT, rate, SEEDS[0])


def plan(table: Table) -> Iterator[Run]:
    """The runs in their order, as far as the learning rates are known; one may be there twice."""
    stages = (
        (CORE, SHORT, SEEDS),
        (CORE, LONG, SEEDS[:1]),
        (OTHERS, SHORT, SEEDS[:1]),
    )
    for networks, steps, seeds in stages:
        for network in networks:
            for rate in RATES:
                yield _tuning(network, rate)
        for seed in seeds:  # an interrupted stage has whole seeds
            for task in TASKS:
                for network in networks:
                    if is_tuned(network, table):
                        yield Run(task, network, FOLD, steps, best_rate(network, table), seed)


@contextmanager
def claimed(runs: Iterable[Run], root: Path) -> Iterator[Run | None]:
    """The first of the runs that no other program is at, for as long as this is entered."""
    for run in runs:
        with (root / f"{run.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield run
            return
    yield None


def prepare(task: str, data: Path) -> Path:
    """The store of a task, made if it is not there."""
    store, raw = data / f"accuracy_{task}.zarr", data / f"accuracy_{task}"
    if not store.exists():
        subprocess.run([*_segresmamba("sample"), str(raw), "--kind", task], check=True)
        subprocess.run([*_segresmamba("convert"), str(raw), str(store)], check=True)
    return store


def overrides_of(run: Run, store: Path, root: Path) -> list[str]:
    """The settings of one training, whose folder is in `root`."""
    return [
        "data=custom", f"data.store={store}", "data.patch=[64,64,64]", "train=sample",
        f"train.max_steps={run.steps}", f"train.lr={run.lr}", f"train.fold={run.fold}",
        "train.threads=1", "train.checkpoint_every=50", "tracking=none", f"seed={run.seed}",
        f"run.root={root}", f"run.name={run.name}", *TASKS[run.task],
        *NETWORKS[run.network].overrides,
    ]  # fmt: skip


def perform(run: Run, store: Path, root: Path) -> Scores:
    """Train and evaluate; return the means over classes and held-out cases."""
    folder = root / run.name
    if not (folder / "results.json").exists():
        overrides = overrides_of(run, store, root)
        subprocess.run([sys.executable, "-m", "launch", "train", *overrides], check=True)
        measures = ["--metrics", ",".join(METRICS)]
        subprocess.run([*_segresmamba("evaluate"), str(folder), *measures], check=True)
    mean: Scores = json.loads((folder / "results.json").read_text())["mean"]
    return mean


def _segresmamba(command: str) -> list[str]:
    return [sys.executable, "-m", "segresmamba.cli.main", command]


def scores_of(table: Table, task: str, steps: int) -> dict[str, Seeds]:
    """By network, what has run at its learning rate."""
    return {
        network: {
            run.seed: found
            for run, found in table.items()
            if (run.task, run.network, run.fold, run.steps) == (task, network, FOLD, steps)
            and run.lr == best_rate(network, table)
        }
        for network in NETWORKS
    }


def lines(table: Table, task: str, steps: int) -> list[str]:
    """A Markdown table of one task: mean and spread of what has run, and the paired test."""
    scores = scores_of(table, task, steps)
    rows = [
        "| network | saved (MiB) | lr | seeds | Dice | HD95 (mm) | NSD | vs SegResNet | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, seeds in scores.items():
        if not seeds:
            continue
        cells = [
            *(_spread([seeds[seed][metric] for seed in sorted(seeds)]) for metric in METRICS),
            *_paired(seeds, scores["segresnet"]),
        ]
        tuned = "" if is_tuned(network, table) else " (not tuned)"
        rows.append(
            f"| {network} | {saved_mib(network):.0f} | {best_rate(network, table):g}{tuned} | "
            f"{len(seeds)} | {' | '.join(cells)} |"
        )
    return rows


@cache
def saved_mib(network: str) -> float:
    """What a forward pass of one crop keeps for the backward pass, in fp32."""
    words = ["data=custom", "data.store=none", "data.patch=[64,64,64]"]
    config = load_config([*words, *NETWORKS[network].overrides])
    shape_BCDHW = (1, 1, *config.data.patch)
    return fake_footprint(build_network(config, 1, 3), shape_BCDHW, "fp32").saved_bytes / 2**20


def draw(table: Table, path: Path) -> None:
    """Dice against saved memory after the short training, a panel for each task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(TASKS))
    for number, network in enumerate(NETWORKS):
        for panel, task in zip(panels, TASKS, strict=True):
            seeds = scores_of(table, task, SHORT)[network]
            if seeds:
                dice = [found["dice"] for found in seeds.values()]
                y, x = statistics.mean(dice), saved_mib(network)
                spread = [[y - min(dice)], [max(dice) - y]]
                mark, colour = "os^D"[number // 10], f"C{number % 10}"
                panel.errorbar(x, y, spread, fmt=mark, color=colour, capsize=3, label=network)
    for panel, task in zip(panels, TASKS, strict=True):
        panel.set(title=f"{task}, {SHORT} steps", xlabel="saved memory (MiB)", ylabel="Dice")
        panel.margins(0.15)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)


def _spread(values: Sequence[float]) -> str:
    """Mean and, of two values or more, sample standard deviation."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ""
    deviation = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{deviation}"


def _paired(ours: Seeds, theirs: Seeds) -> tuple[str, str]:
    """Mean difference in Dice over the seeds that both have, and p of a paired t test."""
    from scipy.stats import ttest_rel

    common = sorted(ours.keys() & theirs.keys())
    if not common or ours == theirs:
        return "", ""
    pairs = [[group[seed]["dice"] for seed in common] for group in (ours, theirs)]
    difference = statistics.mean(pairs[0]) - statistics.mean(pairs[1])
    p = f"{ttest_rel(*pairs).pvalue:.3f}" if len(common) > 2 else ""
    return f"{difference:+.3f}", p


def main() -> None:
    """Go on with the plan, or show what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--show", action="store_true", help="print the tables and end")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then begin no run")
    parser.add_argument("--only", default="", help="runs whose name has this, such as brain-segres")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the stores")
    parser.add_argument("--root", type=Path, default=Path("runs/accuracy"), help="of the runs")
    arguments = parser.parse_args()
    begin = time.monotonic()
    if arguments.show:
        for task in TASKS:
            for steps in (SHORT, LONG):
                print(f"\n{task}, {steps} steps\n", *lines(read(RESULTS), task, steps), sep="\n")
        draw(read(RESULTS), RESULTS.with_suffix(".png"))
        return
    stores = {task: prepare(task, arguments.data) for task in TASKS}
    arguments.root.mkdir(parents=True, exist_ok=True)
    while time.monotonic() - begin < 60 * arguments.minutes:
        # The plan is made anew after each run: learning rates may be known by now.
        table = read(RESULTS)
        planned = dict.fromkeys(plan(table))
        left = [run for run in planned if arguments.only in run.name and run not in table]
        with claimed(left, arguments.root) as run:
            if run is None:
                break
            print(f"{len(left)} runs known to be left; next: {run.name}", flush=True)
            append(RESULTS, run, perform(run, stores[run.task], arguments.root))


if __name__ == "__main__":
    main()
