"""Weak scaling of real training jobs: the same crops per rank on more and more ranks.

    python benchmarks/weak_scaling.py --nodes 1 2 4 8 --tasks 8 -- cluster=slurm \\
        cluster.partition=gpu cluster.gpus_per_node=8 data=brats data.store=brats.zarr
    python benchmarks/weak_scaling.py --tasks 1 2 -- data=sample model=segresmamba_small

Everything after -- goes to `python -m launch train`, which the script calls once per size. Step
times come from the runs' journals, without the first records. A size that is finished is not run
again.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_WARM_UP_RECORDS = 2


def job(nodes: int, tasks: int, arguments: argparse.Namespace) -> Path:
    """Train at one size; return the run's folder."""
    run: Path = arguments.root / f"{nodes}x{tasks}"
    overrides = [
        *arguments.overrides, f"cluster.nodes={nodes}", f"cluster.tasks_per_node={tasks}",
        f"train.batch_size={arguments.crops * nodes * tasks}", "train.log_every=5",
        f"train.max_steps={arguments.steps}", f"train.checkpoint_every={arguments.steps}",
        "train.warmup_steps=0", "validation.overlap=0", f"run.root={run.parent}",
        f"run.name={run.name}",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "launch", "train", "--follow", *overrides], check=True)
    return run


def step_s(run: Path) -> tuple[float, float]:
    """Median step time and median wait for data, in seconds."""
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    steps = [values for r in records if "time/step_s" in (values := r.get("values", {}))]
    measured = steps[_WARM_UP_RECORDS:]
    if not measured:
        raise SystemExit(f"{run}: too few steps to time; give more with --steps")
    return (
        statistics.median(values["time/step_s"] for values in measured),
        statistics.median(values["time/data_wait_s"] for values in measured),
    )


def main() -> None:
    """Train at every size, print and write the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[1])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1], help="ranks per node")
    parser.add_argument("--crops", type=int, default=1, help="crops per rank and step")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--root", type=Path, default=Path("runs/weak_scaling"))
    parser.add_argument("--out", type=Path, default=RESULTS / "weak_scaling.csv")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the runs")
    arguments = parser.parse_args()
    sizes = [(nodes, tasks) for nodes in arguments.nodes for tasks in arguments.tasks]
    first_s = None
    print("nodes  ranks  step_s  data_wait_s  efficiency")
    with arguments.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["nodes", "ranks", "step_s", "data_wait_s", "efficiency"])
        for nodes, tasks in sizes:
            total_s, wait_s = step_s(job(nodes, tasks, arguments))
            first_s = first_s or total_s
            row = [nodes, nodes * tasks, total_s, wait_s, first_s / total_s]
            table.writerow([round(value, 4) for value in row])
            print("{:5} {:6} {:7.3f} {:12.3f} {:11.3f}".format(*row), flush=True)


if __name__ == "__main__":
    main()
