"""All that only a GPU can tell, in twelve minutes: one command on one GPU, without a network.

    python benchmarks/gpu_session.py          writes benchmarks/results/gpu_<step>_<device>.csv
    python benchmarks/gpu_session.py --dry    tiny sizes, also on a CPU: does every step run at all?

`benchmarks/gpu_wheels.sh` collects what it needs beside Python 3.12, torch and Triton. The steps
come in order of worth. Each is a process of its own with a time limit, and writes each number as
soon as it has it: a step that fails, hangs or is cut off loses only what it had not measured.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIELDS = ("step", "case", "quantity", "value", "unit")
GIB = 1 << 30
# Test files with GPU tests. Those of CodeCarbon and MLflow are not among them: their packages are
# larger than all others together.
GPU_TESTS = ("ops/test_gpu.py", "planner/test_plan.py", "tracking/test_memory.py")
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
    planned: tuple[tuple[int, int], ...] = ((0, 1), (1, 1), (4, 1), (0, 4), (1, 4), (4, 4))
    """Checkpointed stages of the network, and the batch."""
    scans: tuple[tuple[int, int], ...] = ((32768, 96), (262144, 96), (32768, 384), (262144, 384))
    """Tokens and channels."""
    network: tuple[str, ...] = ("train.precision=bf16",)
    networks: tuple[str, ...] = ("segresmamba", "segmamba", "segresnet", "swinunetr", "resenc_unet")
    workers: int = 4

    @classmethod
    def dry(cls, work: Path, out: Path) -> Session:
        """The smallest sizes that all steps take; without numba, a CPU scans token by token."""
        return cls(
            work, out, "cpu", "dry", patch=16, case=18, channels=1, steps=3, volume=18, stages=(0,),
            planned=((1, 1),), scans=((64, 8),), networks=("segresmamba",), workers=1,
            network=("model=segresmamba_nomamba", "model.dims=[8,8]", *_ON_ONE_CORE),
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
    lines = path.read_text().splitlines() if path.exists() else []
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
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    print(done.stdout)
    s.write("gpu_tests", done.stdout.splitlines()[-1].strip("= "), "exit code", done.returncode)


def memory(s: Session) -> None:
    """2: the planner's prediction against what the allocator gave out."""
    from segresmamba.config import load_config
    from segresmamba.planner import Planner
    from segresmamba.task.task import Task

    for stages, batch in s.planned:
        case = f"{s.patch}^3, checkpoint_stages {stages}, batch {batch}"
        words = [f"model.checkpoint_stages={stages}", f"train.batch_size={batch}"]
        config = load_config([*s.words, *words])
        predicted = Planner(Task.from_config(config)).predict(config).needed_gib
        s.write("memory", case, "predicted", predicted, "GiB")
        with training(s, *words) as (steps, step):
            step()
            steps.memory.forget()
            step()
            s.write("memory", case, "measured", steps.memory.gib() or 0.0, "GiB")


@contextmanager
def training(s: Session, *words: str) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A network that trains on noise as in `segresmamba bench`, and a function that makes a step.

    What the network before it has left on the GPU is freed first.
    """
    import torch

    from segresmamba.bench.synthetic import synthetic_batches
    from segresmamba.bench.worker import Measurement, Training
    from segresmamba.config import load_config
    from segresmamba.engine.distributed import join
    from segresmamba.task.ranks import Ranks

    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU
    config = load_config([*s.words, *words])
    ranks = Ranks.from_environment(config.train.device)
    join(ranks, config.train.threads)
    made = Training(config, ranks, Measurement("", s.steps, None, with_store=True))
    batches = synthetic_batches(config, made.channels, len(made.labels))
    yield made, lambda: made.step(next(batches))


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
        s.write("train", case, "first step", found[0]["time/step_s"], "s")
        s.write("train", case, "last step", found[-1]["time/step_s"], "s")
        if peak := found[-1].get("memory/device_peak_allocated_gib"):
            s.write("train", case, "peak memory", peak, "GiB")


def launches(s: Session) -> None:
    """3: kernels and waits of one step, and its time."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = s.device == "cuda"
    with training(s) as (_, step):
        for _ in range(3):
            step()
        started = time.perf_counter()
        for _ in range(s.steps):
            step()
        s.write("launches", "", "step", (time.perf_counter() - started) / s.steps, "s")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as profiled:
            step()
    counts = {event.key: event.count for event in profiled.key_averages()}
    for quantity, parts in {
        "kernel launches": ("LaunchKernel",),
        "waits": ("StreamSynchronize", "EventSynchronize", "DeviceSynchronize"),
        "copies": ("MemcpyAsync",),
    }.items():
        found = sum(n for key, n in counts.items() if any(part in key for part in parts))
        s.write("launches", "one step, loss read", quantity, found)


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
    import torch
    from scan import best_ms, floor_rows, gradients, rate_rows
    from scan_methods import chunked_scan, scan_operands

    from segresmamba.ops import available_backends, selective_scan

    on_gpu = s.device == "cuda"

    def milliseconds(run: Callable[[], object]) -> float:
        def finished() -> None:
            run()
            if on_gpu:
                torch.cuda.synchronize()

        return best_ms(finished, 10 if on_gpu else 1)

    rates = None
    if on_gpu:
        from scan_floor import copy_bytes_per_s, exponentials_per_s

        rates = copy_bytes_per_s(), exponentials_per_s()
        for row in rate_rows(rates):
            s.write("scan", row.method, row.quantity, row.value, row.unit)
    backends = [b for b in ("triton", "mamba_ssm") if available_backends()[b] == "ok"]
    for length, channels in s.scans:
        shape = (1, channels, length)
        o = scan_operands(*shape, s.device, torch.bfloat16 if on_gpu else torch.float32)
        size = f"L {length} D {channels}"
        for row in floor_rows(shape, o["u"].element_size(), rates) if rates else ():
            s.write("scan", f"{size} {row.method}", row.quantity, row.value, row.unit)
        for method in [*(backends if on_gpu else ["reference"]), "PyTorch, chunks"]:

            def run(method: str = method, o: dict[str, Any] = o) -> Any:
                if method == "PyTorch, chunks":
                    return chunked_scan(**o)
                return selective_scan(**o, delta_softplus=True, backend=method)

            def both(run: Callable[[], Any] = run, o: dict[str, Any] = o) -> None:
                gradients(run(), o)

            with torch.no_grad():
                s.write("scan", f"{size} {method}", "forward", milliseconds(run), "ms")
            # With all states of a long sequence, plain PyTorch would fill any GPU.
            if method in backends or length * channels <= 1 << 22:
                s.write("scan", f"{size} {method}", "forward + backward", milliseconds(both), "ms")


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


def in_its_own_group(step: Callable[..., None], s: Session, arguments: tuple[str, ...]) -> None:
    """What a step's process does: with a group of its own, its children can be ended with it."""
    os.setsid()
    sys.path.insert(0, str(Path(__file__).parent))
    step(s, *arguments)


def run_all(s: Session) -> list[str]:
    """Run the steps; returns those that failed or were cut off."""
    # On a GPU each step starts afresh: CUDA does not survive a fork, and DeepSpeed looks for it.
    context = multiprocessing.get_context("spawn" if s.device == "cuda" else "forkserver")
    context.set_forkserver_preload(PRELOADED)
    failed = []
    for step, arguments, limit_s in plan_of(s):
        title = " ".join([step.__name__, *arguments])
        started = time.monotonic()
        process = context.Process(target=in_its_own_group, args=(step, s, arguments))
        process.start()
        process.join(limit_s if s.device == "cuda" else None)
        if process.is_alive():
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        if process.exitcode:
            failed.append(f"{title}: exit code {process.exitcode}")
        print(f"-- {title}: {time.monotonic() - started:.1f} s of {limit_s:.0f}", flush=True)
    return failed


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
        for old in out.glob(f"gpu_*_{session.name}.csv"):
            old.unlink()
        failed = run_all(session)
    print("\n" + ",".join(FIELDS))
    for path in sorted(out.glob(f"gpu_*_{session.name}.csv")):
        print("\n".join(path.read_text().splitlines()[1:]))
    print(*(f"FAILED {text}" for text in failed), sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
