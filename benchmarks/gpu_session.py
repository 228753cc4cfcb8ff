"""All that only a GPU can tell, in twelve minutes: one command on one GPU, without a network.

    python benchmarks/gpu_session.py          writes benchmarks/results/gpu_<step>_<device>.csv
    python benchmarks/gpu_session.py --dry    tiny sizes, also on a CPU: does every step run at all?

`benchmarks/gpu_wheels.sh` collects what it needs beside Python 3.12, torch and Triton. The steps
come in order of worth. Each is a process of its own with a time limit, and writes each number as
soon as it has it: a step that fails, hangs or is cut off loses only what it had not measured. The
last file, gpu_targets_<device>.csv, compares the numbers with the aims of docs/performance.md.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
FIELDS = ("step", "case", "quantity", "value", "unit")
GIB = 1 << 30
# Test files with GPU tests. Those of CodeCarbon and MLflow are not among them: their packages are
# larger than all others together.
GPU_TESTS = (
    "ops/test_gpu.py", "planner/test_plan.py", "tracking/test_memory.py", "cli/test_doctor.py",
)  # fmt: skip
# No step goes on after this, whatever its own limit is.
TOTAL_S = 720
# DeepSpeed takes seconds to import, and so one process does it for all steps of a dry session.
PRELOADED = ["deepspeed", "segresmamba.engine.trainer", "segresmamba.bench.worker"]
_ON_ONE_CORE = ("train.device=cpu", "train.threads=1")


@dataclass(frozen=True)
class Session:
    """Sizes and places; the defaults are those of a GPU."""

    work: Path
    """Scratch folder: data, runs, caches."""
    out: Path
    """Folder of the CSV files."""
    device: str = "cuda"
    name: str = ""
    """Name of the GPU, in the names of the files."""
    patch: int = 128
    case: int = 160
    """Sides of a crop and of a case in voxels."""
    channels: int = 4
    steps: int = 20
    volume: int = 512
    stages: tuple[int, ...] = (0, 1, 2, 3)
    """ZeRO stages of the launches with compiled kernels, after one without."""
    planned: tuple[tuple[int, int], ...] = ((0, 1), (1, 1), (4, 1), (0, 4), (1, 4), (4, 4))
    """Checkpointed stages of the network, and the batch."""
    scans: tuple[tuple[int, int], ...] = ((262144, 96), (32768, 96), (32768, 384), (262144, 384))
    """Tokens and channels."""
    scan_side: int = 64
    """Side of the cube of tokens for `tri_scan`."""
    network: tuple[str, ...] = ("train.precision=bf16",)
    networks: tuple[str, ...] = ("segresmamba", "segmamba", "segresnet", "swinunetr", "resenc_unet")
    workers: int = 4

    @classmethod
    def dry(cls, work: Path, out: Path) -> Session:
        """The smallest sizes that all steps take; without numba, a CPU scans token by token."""
        return cls(
            work, out, "cpu", "dry", patch=16, case=18, channels=1, steps=3, volume=18, stages=(),
            planned=((1, 1), (0, 2)), scans=((64, 8),), scan_side=4, networks=("segresmamba",),
            workers=1, network=("model=segresmamba_nomamba", "model.dims=[8,8]", *_ON_ONE_CORE),
        )  # fmt: skip

    @property
    def store(self) -> Path:
        return self.work / "store"

    @property
    def words(self) -> list[str]:
        """The overrides of all runs."""
        return [
            "data=custom",
            f"data.store={self.store}",
            f"data.patch=[{self.patch},{self.patch},{self.patch}]",
            f"data.workers={self.workers}",
            f"run.root={self.work / 'runs'}",
            "tracking=none",
            "train.batch_size=1",
            "train.warmup_steps=0",
            "train.log_every=1",
            f"train.max_steps={self.steps}",
            "validation.overlap=0",
            "validation.overlays=0",
            *self.network,
        ]

    def files(self) -> list[Path]:
        """The files that there are, in the order of their names."""
        return sorted(self.out.glob(f"gpu_*_{self.name}.csv"))

    def write(self, step: str, case: str, quantity: str, value: object, unit: str = "") -> None:
        """Add one number to the step's file, and show it."""
        value = f"{value:.5g}" if isinstance(value, float) else str(value)
        path = self.out / f"gpu_{step}_{self.name}.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            table = csv.writer(file)
            table.writerows([FIELDS] if is_new else [])
            table.writerow([step, case, quantity, value, unit])
        print(f"{step:10} {case:32} {quantity:24} {value:>12} {unit}", flush=True)


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python module to its end; its output goes to this process's."""
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=os.environ | variables, text=True, check=True
    )


def records(run: Path) -> list[dict[str, float]]:
    """The metrics of the steps that a run has recorded."""
    path = run / "journal.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last may be half there
    values = [json.loads(line).get("values", {}) for line in lines]
    return [value for value in values if "time/step_s" in value]


def make_data(s: Session) -> None:
    """Write cases of noise with a ball in each, and convert them."""
    import nibabel
    import numpy as np

    from segresmamba.data import convert

    raw = s.work / "raw"
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    centred = np.stack(np.meshgrid(*[np.arange(s.case) - s.case / 2] * 3, indexing="ij"))
    label = ((centred**2).sum(0) < (s.case / 4) ** 2).astype(np.uint8)
    for case in range(5):
        nibabel.Nifti1Image(label, np.eye(4)).to_filename(raw / f"labelsTr/case{case}.nii")
        for channel in range(s.channels):
            image = rng.normal(100 + 50 * label, 10).astype(np.float32)
            path = raw / f"imagesTr/case{case}_{channel:04d}.nii"
            nibabel.Nifti1Image(image, np.eye(4)).to_filename(path)
    manifest = {
        "channel_names": {str(channel): f"channel{channel}" for channel in range(s.channels)},
        "labels": {"background": 0, "ball": 1},
        "numTraining": 5,
        "file_ending": ".nii",
    }
    (raw / "dataset.json").write_text(json.dumps(manifest))
    convert(raw, s.store)


def doctor(s: Session) -> None:
    """0: what this machine is."""
    command("segresmamba.cli.main", "doctor")
    s.write("doctor", "", "exit code", 0)


def gpu_tests(s: Session) -> None:
    """1: the tests that need a GPU."""
    files = [str(ROOT / "tests" / name) for name in GPU_TESTS]
    words = ["-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *files]
    with subprocess.Popen(
        [sys.executable, "-u", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as tests:
        for line in tests.stdout or ():
            print(line, end="")
            if found := re.match(r"\S+::(.+) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
                s.write("gpu_tests", found[1], "outcome", found[2].lower())
    s.write("gpu_tests", "", "exit code", tests.returncode)
    if tests.returncode:
        raise RuntimeError("tests have failed")


def memory(s: Session) -> None:
    """2: the planner's prediction against what the allocator gave out."""
    from segresmamba.config import load_config
    from segresmamba.planner import Planner
    from segresmamba.task.task import Task

    for stages, batch in s.planned:
        case = f"{s.patch}^3, checkpoint_stages {stages}, batch {batch}"
        words = [f"model.checkpoint_stages={stages}", f"train.batch_size={batch}"]
        config = load_config([*s.words, *words])
        predicted = Planner(Task.from_config(config)).predict(config)
        s.write("memory", case, "predicted", predicted.peak_bytes / GIB, "GiB")
        s.write("memory", case, "with workspaces and context", predicted.needed_gib, "GiB")
        with training(s, *words) as (steps, step):
            step()
            steps.memory.forget()
            step()
            s.write("memory", case, "measured", steps.memory.gib() or 0.0, "GiB")


@contextmanager
def training(s: Session, *words: str) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A network that trains on noise as in `segresmamba bench`, and a function that makes a step.

    Afterwards its memory is free for the next one, whoever still knows it.
    """
    import torch

    from segresmamba.bench.synthetic import synthetic_batches
    from segresmamba.bench.worker import Measurement, Training
    from segresmamba.config import load_config
    from segresmamba.engine.distributed import join
    from segresmamba.task.ranks import Ranks

    config = load_config([*s.words, *words])
    ranks = Ranks.from_environment(config.train.device)
    join(ranks, config.train.threads)
    made = Training(config, ranks, Measurement("", s.steps, None, with_store=True))
    batches = synthetic_batches(config, made.channels, len(made.labels))
    try:
        yield made, lambda: made.step(next(batches))
    finally:
        vars(made).clear()
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU


def train(s: Session) -> None:
    """3: `launch train` at each ZeRO stage; the first step without and with compiled kernels."""
    cache = {"TRITON_CACHE_DIR": str(s.work / "triton")}
    for kernels, stage in [("cold", 0), *[("warm", stage) for stage in s.stages]]:
        name = f"{kernels}-{stage}"
        started = time.monotonic()
        command(
            "launch", "train", *s.words, f"run.name={name}", f"train.zero_stage={stage}", **cache
        )
        case = f"{kernels}, ZeRO {stage}"
        found = records(s.work / "runs" / name)
        s.write("train", case, "command", time.monotonic() - started, "s")
        (log,) = (s.work / "runs" / name).glob("logs/*/*_0_log.out")
        if ready := re.search(r"kernels of the scans are ready after ([\d.]+) s", log.read_text()):
            s.write("train", case, "kernels", float(ready[1]), "s")
        s.write("train", case, "first step", found[0]["time/step_s"], "s")
        s.write("train", case, "last step", found[-1]["time/step_s"], "s")
        if peak := found[-1].get("memory/device_peak_allocated_gib"):
            s.write("train", case, "peak memory", peak, "GiB")


def launches(s: Session) -> None:
    """3: kernels and waits of one step, and its time."""
    with training(s) as (_, step):
        for _ in range(3):
            step()
        started = time.perf_counter()
        for _ in range(s.steps):
            step()
        s.write("launches", "", "step", (time.perf_counter() - started) / s.steps, "s")
        counts = calls(step, s)
    counts.subtract(calls(lambda: None, s))  # the profiler waits for the device too
    for quantity, parts in {
        "kernel launches": ("LaunchKernel",),
        "waits": ("StreamSynchronize", "EventSynchronize", "DeviceSynchronize"),
        "copies": ("MemcpyAsync",),
        "fills": ("MemsetAsync",),
    }.items():
        found = sum(n for key, n in counts.items() if any(part in key for part in parts))
        s.write("launches", "one step, loss read", quantity, found)


def calls(run: Callable[[], None], s: Session) -> Counter[str]:
    """How often a function calls what a profiler sees, by name."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = [ProfilerActivity.CUDA] if s.device == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiled:
        run()
    return Counter({event.key: event.count for event in profiled.key_averages()})


def preemption(s: Session) -> None:
    """4: preempt a run, let it go on, and segment a case with it."""
    run = s.work / "runs" / "preempted"
    steps = 5 * s.steps
    words = [*s.words, "run.name=preempted", f"train.max_steps={steps}"]
    launched = subprocess.Popen([sys.executable, "-m", "launch", "train", *words], cwd=ROOT)
    while len(records(run)) < 2:
        if launched.poll() is not None:
            raise RuntimeError("the run ended before it could be preempted")
        time.sleep(0.05)
    (pickle,) = run.glob("logs/*/*_submitted.pkl")
    os.kill(int(pickle.name.split("_")[0]), signal.SIGUSR2)
    code = launched.wait()
    log = "".join(path.read_text() for path in run.glob("logs/*/*_0_log.out"))
    s.write("preemption", "USR2", "exit code", code)
    s.write("preemption", "USR2", "continued", "continuing from step" in log)
    s.write("preemption", "USR2", "steps recorded", f"{len(records(run))} of {steps}")
    images = sorted(str(path) for path in (s.work / "raw/imagesTr").glob("case0_*"))
    started = time.monotonic()
    label = s.work / "label.nii.gz"
    command("segresmamba.cli.main", "predict", str(run), *images, "--out", str(label),
            "--device", s.device)  # fmt: skip
    s.write("preemption", "predict", "command", time.monotonic() - started, "s")


def bench(s: Session, network: str) -> None:
    """5: memory, time and energy of one network's step."""
    model = [] if network == "segresmamba" else [f"model={network}"]
    with training(s, *model) as (steps, step):
        for _ in range(5 if s.device == "cuda" else 1):
            step()
        steps.memory.forget()
        started, before_j = time.perf_counter(), energy_j(s)
        for _ in range(s.steps):
            step()
        s.write("bench", network, "step", (time.perf_counter() - started) / s.steps, "s")
        if before_j is not None:
            used_j = ((energy_j(s) or 0.0) - before_j) / s.steps
            s.write("bench", network, "energy of a step", used_j, "J")
        s.write("bench", network, "peak memory", steps.memory.gib() or 0.0, "GiB")


def energy_j(s: Session) -> float | None:
    """What the GPU has used since its driver was loaded; None where it has no such meter."""
    if s.device != "cuda":
        return None
    import pynvml
    import torch

    from segresmamba.tracking import gpu_uuid

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_uuid(torch.device("cuda", 0)))
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except pynvml.NVMLError:
        return None


def scan(s: Session) -> None:
    """6: the selective scan against its floor, mamba-ssm and a scan in plain PyTorch."""
    import math

    import torch
    from scan import Bench, best_ms, comparison_rows, gpu_bench

    def milliseconds(run: Callable[[], object]) -> float:
        return best_ms(run, 1)

    here = Bench("cpu", torch.float32, ["reference"], milliseconds, (1e9, 1e9))
    shapes = [(1, channels, length) for length, channels in s.scans]
    for row in comparison_rows(
        gpu_bench() if s.device == "cuda" else here, shapes, s.scan_side, math.inf
    ):
        size = f"{row.case} L {row.length} D {row.channels} {row.method}"
        s.write("scan", size, row.quantity, row.value, row.unit)


def inference(s: Session) -> None:
    """7: a whole volume, in windows."""
    import numpy as np
    import torch

    from segresmamba.config import load_config
    from segresmamba.inference.segmentation import segment_volume
    from segresmamba.inference.sliding_window import Member, SlidingWindow
    from segresmamba.task.task import Task

    config = load_config(s.words)
    task, device = Task.from_config(config), torch.device(s.device)
    member = Member.from_config(task.network().to(device), config)
    sliding = SlidingWindow([member], device=device, overlap=0.5, window_batch=1)
    image_CDHW = np.random.default_rng(0).integers(1, 99, (s.channels, *[s.volume] * 3), np.int16)
    bounds_C4 = np.tile(np.array([0, 99, 50, 25], np.float32), (s.channels, 1))
    case = f"{s.volume}^3, windows of {s.patch}^3"
    for number in ("first", "second"):
        started = time.perf_counter()
        segment_volume(sliding, task.classes, image_CDHW, bounds_C4)
        s.write("inference", case, f"{number} volume", time.perf_counter() - started, "s")
    if s.device == "cuda":
        s.write("inference", case, "peak memory", torch.cuda.max_memory_allocated() / GIB, "GiB")


def loading(s: Session) -> None:
    """8: training that waits for its readers, without a wait for each step's outcome."""
    from segresmamba.config import load_config
    from segresmamba.engine import train as run

    every = max(1, s.steps // 2)
    words = ["run.name=loading", "train.fold=none", f"train.log_every={every}"]
    run(load_config([*s.words, *words]))
    last = records(s.work / "runs" / "loading")[-1]
    s.write("loading", f"{s.workers} readers", "step", last["time/step_s"], "s")
    s.write("loading", f"{s.workers} readers", "wait for data", last["time/data_wait_s"], "s")


def plan_of(s: Session) -> Iterator[tuple[Callable[..., None], tuple[str, ...], float]]:
    """The steps, their arguments, and their limits in seconds: less than twelve minutes in all."""
    yield doctor, (), 15
    yield make_data, (), 30
    yield gpu_tests, (), 150
    yield memory, (), 70
    yield train, (), 130
    yield launches, (), 25
    yield preemption, (), 60
    for network in s.networks:
        yield bench, (network,), 28
    yield scan, (), 40
    yield inference, (), 30
    yield loading, (), 25


Plan = Iterable[tuple[Callable[..., None], tuple[Any, ...], float]]


def with_benchmarks(step: Callable[..., None], s: Session, arguments: tuple[Any, ...]) -> None:
    """What a step's process does."""
    # A new process has the path of the one that started it, whatever PYTHONPATH says.
    sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]
    try:
        step(s, *arguments)
    except BaseException:
        end(psutil.Process().children(recursive=True))
        raise


def end(processes: list[psutil.Process]) -> None:
    """Kill processes, and give them time to leave the GPU."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def run_all(s: Session, plan: Plan, *, limited: bool) -> list[str]:
    """Run the steps, within their limits or without; returns those that failed or were cut off."""
    # On a GPU each step starts afresh: CUDA does not survive a fork, and DeepSpeed looks for it.
    context = multiprocessing.get_context("spawn" if s.device == "cuda" else "forkserver")
    context.set_forkserver_preload(PRELOADED)
    failed, began = [], time.monotonic()
    for step, arguments, most_s in plan:
        title = " ".join([step.__name__, *map(str, arguments)])
        started = time.monotonic()
        limit_s = min(most_s, began + TOTAL_S - started)
        if limited and limit_s <= 0:
            failed.append(f"{title}: no time is left")
            continue
        process = context.Process(target=with_benchmarks, args=(step, s, arguments))
        process.start()
        process.join(limit_s if limited else None)
        if process.is_alive():
            # `launch` starts the ranks in a session of their own: they do not end with it.
            started_by_it = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.join()
            end(started_by_it)
            failed.append(f"{title}: cut off after {limit_s:.0f} s")
        elif process.exitcode:
            failed.append(f"{title}: exit code {process.exitcode}")
        print(f"-- {title}: {time.monotonic() - started:.1f} s of {most_s:.0f}", flush=True)
    return failed


@dataclass(frozen=True)
class Target:
    """A number of a session, or the quotient of two, and what it is to be."""

    name: str
    of: tuple[str, str, str]
    """Step, case and quantity."""
    over: tuple[str, str, str] | None
    aim: float
    at_most: bool = True
    factor: float = 1.0

    def measured(self, found: Mapping[tuple[str, str, str], float]) -> float | None:
        """The number; None if it was not measured."""
        if self.of not in found or (self.over and self.over not in found):
            return None
        return self.factor * found[self.of] / (found[self.over] if self.over else 1.0)

    def verdict(self, value: float | None) -> str:
        """Whether a measured number is as it is to be."""
        if value is None:
            return "not measured"
        return "met" if (value <= self.aim if self.at_most else value >= self.aim) else "missed"


def _targets(s: Session) -> Iterator[Target]:
    """The aims of docs/performance.md, "GPU"."""
    ours = ("bench", "segresmamba")
    yield Target("peak memory, GB", (*ours, "peak memory"), None, 4.78, factor=GIB / 1e9)
    for rival in ("swinunetr", "segmamba"):
        for quantity, aim in (("peak memory", 0.5), ("step", 0.8)):
            name = f"{quantity} over that of {rival}"
            yield Target(name, (*ours, quantity), ("bench", rival, quantity), aim)
    for size, quantity, aim in (
        ("L 262144 D 96", "forward", 3.0),
        ("L 262144 D 96", "forward + backward", 2.0),
        ("L 32768 D 96", "forward + backward", 2.42),
    ):
        scan_, triton = f"selective_scan {size}", f"selective_scan {size} triton"
        of = ("scan", f"{scan_} mamba_ssm", quantity)
        name = f"mamba-ssm over triton, {size}, {quantity}"
        yield Target(name, of, ("scan", triton, quantity), aim, at_most=False)
    for length, channels in s.scans:
        for quantity in ("forward", "forward + backward"):
            size = f"L {length} D {channels}"
            scan_ = f"selective_scan {size}"
            of, over = ("scan", f"{scan_} floor", quantity), ("scan", f"{scan_} triton", quantity)
            yield Target(f"floor over triton, {size}, {quantity}", of, over, 0.4, at_most=False)
    for stages, batch in s.planned:
        case = f"{s.patch}^3, checkpoint_stages {stages}, batch {batch}"
        of, over = ("memory", case, "measured"), ("memory", case, "predicted")
        yield Target(f"measured over predicted memory, {case}", of, over, 1.15)
    step = ("launches", "one step, loss read")
    yield Target("waits of a step", (*step, "waits"), None, 1)
    yield Target("kernel launches of a step", (*step, "kernel launches"), None, 2000)


def compare(s: Session) -> None:
    """Write the aims with what was measured, from the files of the steps."""
    found = {}
    for path in s.files():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                with suppress(ValueError):  # not a number
                    found[row["step"], row["case"], row["quantity"]] = float(row["value"])
    for target in _targets(s):
        value = target.measured(found)
        aim = f"{'<=' if target.at_most else '>='} {target.aim:g}"
        s.write("targets", target.name, aim, "" if value is None else value, target.verdict(value))


def main() -> None:
    """Run the session, and print its one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    with tempfile.TemporaryDirectory(prefix="gpu-session-") as work:
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        if arguments.dry:
            session = Session.dry(Path(work), out)
        else:
            ask = "import torch; print(torch.cuda.get_device_name())"
            found = subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True,
                                   check=True)  # fmt: skip
            name = "_".join(found.stdout.lower().split())
            session = replace(Session(Path(work), out), name=name)
        for old in session.files():
            old.unlink()
        failed = run_all(session, plan_of(session), limited=not arguments.dry)
    compare(session)
    print("\n" + ",".join(FIELDS))
    for path in session.files():
        print("\n".join(path.read_text().splitlines()[1:]))
    print(*(f"FAILED {text}" for text in failed), sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
