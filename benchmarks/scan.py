"""Measures times and memory of the scans; prints a table and writes a CSV file.

    python benchmarks/scan.py                 CPU: compiled kernels against two PyTorch scans
    python benchmarks/scan.py --device cuda   GPU: Triton against mamba-ssm, PyTorch and the floor
    python benchmarks/scan.py --dry           the steps of the GPU with tiny sizes on the CPU

On a GPU, --lengths, --channels and --batches choose the shapes, and --limit-s says after how many
seconds nothing more is started.

Times are the smallest of several runs. On a machine that also does other work, repeat the script
and keep the smallest numbers.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import itertools
import math
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from scan_methods import STATES, chunked_scan, scan_operands, three_scans, tri_operands
from torch import Tensor

from segresmamba.ops import available_backends, selective_scan, selective_scan_ref, tri_scan

RESULTS = Path(__file__).parent / "results"


class Row(NamedTuple):
    """One number of the table."""

    case: str
    batch: int
    channels: int
    length: int
    method: str
    quantity: str
    value: float
    unit: str


def gradients(y: Tensor, operands: dict[str, Tensor]) -> None:
    torch.autograd.grad(y, list(operands.values()), torch.ones_like(y))


def best_ms(run: Callable[[], object], repeats: int) -> float:
    """Smallest wall-clock time of several runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def saved_bytes(run: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage counted once."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in storages.values())


def resident_bytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS, the memory in use, or VmHWM, its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_bytes(channels: int, length: int) -> int:
    """Peak memory of a forward and backward pass above the operands; needs its own process."""
    warm = scan_operands(1, channels, 128)
    gradients(selective_scan(**warm, delta_softplus=True), warm)
    operands = scan_operands(1, channels, length)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_bytes("VmRSS")
    gradients(selective_scan(**operands, delta_softplus=True), operands)
    return resident_bytes("VmHWM") - before


def floor_ms(
    batch: int, channels: int, length: int, itemsize: int, arrays: int, exponentials: int,
    rates: tuple[float, float],
) -> float:  # fmt: skip
    """The larger of bytes over bandwidth and exponentials over their rate.

    Args:
        batch, channels, length: Sizes of the scan.
        itemsize: Bytes of a number.
        arrays: How many (batch, channels, length) tensors must be read or written.
        exponentials: How often each state's decay must be computed.
        rates: Bytes per second and exponentials per second.
    """
    tokens = batch * length
    memory_s = itemsize * tokens * (arrays * channels + 2 * STATES) / rates[0]
    compute_s = exponentials * tokens * channels * STATES / rates[1]
    return max(memory_s, compute_s) * 1e3


def rate_rows(rates: tuple[float, float]) -> Iterator[Row]:
    """The two rates from which the floor is computed."""
    yield Row("machine", 0, 0, 0, "copy", "bandwidth", rates[0] / 1e9, "GB/s")
    yield Row("machine", 0, 0, 0, "exp2", "rate", rates[1] / 1e9, "G/s")


def floor_rows(
    shape: tuple[int, int, int], itemsize: int, rates: tuple[float, float]
) -> Iterator[Row]:
    """The floor: forward moves u, delta and y; backward also u, delta, dy and two gradients."""
    for quantity, arrays, times in (("forward", 3, 1), ("forward + backward", 8, 2)):
        best = floor_ms(*shape, itemsize, arrays, times, rates)
        yield Row("selective_scan", *shape, "floor", quantity, best, "ms")


def cpu_rows() -> Iterator[Row]:
    """The compiled kernels against PyTorch, their memory, and tri_scan against three scans."""
    from scan_floor_cpu import copy_bytes_per_s, exponentials_per_s

    def milliseconds(run: Callable[[], object]) -> float:
        return best_ms(run, 10)

    rates = copy_bytes_per_s(milliseconds), exponentials_per_s(milliseconds)
    yield from rate_rows(rates)
    shape = (1, 96, 32768)
    o = scan_operands(*shape)
    yield from floor_rows(shape, o["u"].element_size(), rates)
    methods: dict[str, tuple[Callable[[], Tensor], int]] = {
        "step by step": (lambda: selective_scan_ref(**o, delta_softplus=True), 3),
        "chunked PyTorch": (lambda: chunked_scan(**o), 5),
        "cpu backend": (lambda: selective_scan(**o, delta_softplus=True, backend="cpu"), 30),
    }
    for name, (run, repeats) in methods.items():
        with torch.no_grad():
            yield Row("selective_scan", *shape, name, "forward", best_ms(run, repeats), "ms")
        both_ms = best_ms(lambda run=run: gradients(run(), o), repeats)
        yield Row("selective_scan", *shape, name, "forward + backward", both_ms, "ms")
    long = (1, 96, 262144)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(peak_bytes, long[1:]) / (4 * math.prod(long))
    yield Row("selective_scan", *long, "cpu backend", "peak memory", peak, "bytes of u")
    yield from tri_rows((1, 32, 32**3), 32, "cpu", torch.float32, milliseconds)
    yield from saved_rows((1, 96, 64**3), 64, "cpu", torch.float32)


def tri_methods(o: dict[str, Tensor], num_slices: int) -> dict[str, Callable[[], Tensor]]:
    return {
        "tri_scan": lambda: tri_scan(**o, num_slices=num_slices),
        "three scans": lambda: three_scans(o, num_slices),
    }


def saved_rows(
    shape: tuple[int, int, int], num_slices: int, device: str, dtype: torch.dtype
) -> Iterator[Row]:
    """Memory that tri_scan and three scans with materialised orders keep for the backward pass."""
    for name, run in tri_methods(tri_operands(*shape, device, dtype), num_slices).items():
        yield Row("tri_scan", *shape, name, "saved for backward", saved_bytes(run) / 2**20, "MiB")


def tri_rows(
    shape: tuple[int, int, int], num_slices: int, device: str, dtype: torch.dtype,
    milliseconds: Callable[[Callable[[], object]], float],
) -> Iterator[Row]:  # fmt: skip
    """tri_scan against three scans of the same backend with materialised orders."""
    o = tri_operands(*shape, device, dtype)
    for name, run in tri_methods(o, num_slices).items():
        with torch.no_grad():
            yield Row("tri_scan", *shape, name, "forward", milliseconds(run), "ms")
        both_ms = milliseconds(lambda run=run: gradients(run(), o))
        yield Row("tri_scan", *shape, name, "forward + backward", both_ms, "ms")


class Bench(NamedTuple):
    """Where and how the scans of several shapes are compared."""

    device: str
    dtype: torch.dtype
    backends: Sequence[str]
    milliseconds: Callable[[Callable[[], object]], float]
    rates: tuple[float, float]


def gpu_bench() -> Bench:
    """This machine's GPU, with the backends that it has."""
    from scan_floor import copy_bytes_per_s, exponentials_per_s, milliseconds

    names = [name for name in ("triton", "mamba_ssm") if available_backends()[name] == "ok"]
    rates = copy_bytes_per_s(), exponentials_per_s()
    return Bench("cuda", torch.bfloat16, names, milliseconds, rates)


def dry_bench() -> Bench:
    """The processor in the GPU's place: shows that the script runs, and no figure worth keeping."""
    from scan_floor_cpu import copy_bytes_per_s, exponentials_per_s

    def milliseconds(run: Callable[[], object]) -> float:
        return best_ms(run, 1)

    rates = copy_bytes_per_s(milliseconds), exponentials_per_s(milliseconds)
    return Bench("cpu", torch.bfloat16, ["cpu"], milliseconds, rates)


def comparison_rows(
    bench: Bench, shapes: Sequence[tuple[int, int, int]], tri_side: int, deadline_s: float
) -> Iterator[Row]:
    """Backends and a plain PyTorch scan against the floor, then tri_scan against three scans.

    Args:
        bench: The device.
        shapes: (batch, channels, length), the most important first.
        tri_side: Side of the cube of tokens for tri_scan.
        deadline_s: Time of the monotonic clock after which nothing more is started.
    """
    yield from rate_rows(bench.rates)
    for shape in shapes:
        o = scan_operands(*shape, bench.device, bench.dtype)
        yield from floor_rows(shape, o["u"].element_size(), bench.rates)
        methods: dict[str, Callable[[], Tensor]] = {
            name: partial(selective_scan, **o, delta_softplus=True, backend=name)
            for name in bench.backends
        }
        methods["PyTorch"] = partial(pytorch_scan, o)
        for name, run in methods.items():
            if time.monotonic() > deadline_s:
                print(f"out of time before {name} at {shape}", flush=True)
                return
            yield from method_rows(name, run, o, shape, bench)
    shape = (1, 96, tri_side**3)
    if time.monotonic() > deadline_s:
        print("out of time before tri_scan", flush=True)
        return
    yield from saved_rows(shape, tri_side, bench.device, bench.dtype)
    yield from tri_rows(shape, tri_side, bench.device, bench.dtype, bench.milliseconds)


def pytorch_scan(o: dict[str, Tensor]) -> Tensor:
    """The associative scan in PyTorch, in float32, chunk by chunk."""
    return chunked_scan(**{name: operand.float() for name, operand in o.items()}, chunk=1024)


def method_rows(
    name: str, run: Callable[[], Tensor], o: dict[str, Tensor], shape: tuple[int, int, int],
    bench: Bench,
) -> Iterator[Row]:  # fmt: skip
    """Times of one method; nan where its memory does not suffice."""

    def measured(what: Callable[[], object]) -> float:
        try:
            return bench.milliseconds(what)
        except torch.OutOfMemoryError:
            return math.nan

    with torch.no_grad():
        yield Row("selective_scan", *shape, name, "forward", measured(run), "ms")
    both_ms = measured(lambda: gradients(run(), o))
    yield Row("selective_scan", *shape, name, "forward + backward", both_ms, "ms")


def machine(device: str) -> str:
    """The processor and the versions that the numbers belong to."""
    if device == "cuda":
        name, packages = torch.cuda.get_device_name(), ("torch", "triton", "mamba-ssm")
    else:
        info = Path("/proc/cpuinfo").read_text()
        model = next(line for line in info.splitlines() if line.startswith("model name"))
        name = f"{model.partition(':')[2].strip()}, {torch.get_num_threads()} threads"
        packages = ("torch", "numba")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return ", ".join([name, f"Python {platform.python_version()}", *versions])


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dry", action="store_true", help="the GPU's steps, tiny, on the CPU")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 32768, 262144])
    parser.add_argument("--channels", type=int, nargs="+", default=[96, 192, 384, 768])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--limit-s", type=float, default=math.inf, help="start nothing after this")
    parser.add_argument("--out", type=Path, help="CSV file (default: in benchmarks/results)")
    return parser.parse_args(words)


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    deadline_s = time.monotonic() + arguments.limit_s
    if arguments.dry:
        yield from comparison_rows(dry_bench(), [(1, 8, 256), (2, 8, 100)], 4, deadline_s)
    elif arguments.device == "cpu":
        yield from cpu_rows()
    else:
        sizes = itertools.product(arguments.batches, arguments.channels, arguments.lengths)
        yield from comparison_rows(gpu_bench(), list(sizes), 64, deadline_s)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and write every row, each as soon as it is there."""
    arguments = parse(words)
    torch.manual_seed(0)
    device = "cpu" if arguments.dry else arguments.device
    name = "scan_dry.csv" if arguments.dry else f"scan_{device}.csv"
    with (arguments.out or RESULTS / name).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*Row._fields, "machine"])
        for row in rows(arguments):
            table.writerow([*row._replace(value=float(f"{row.value:.4g}")), machine(device)])
            file.flush()
            size = f"B {row.batch} D {row.channels} L {row.length}"
            print(f"{row.case:15} {size:20} {row.method:16} {row.quantity:19}", end="")
            print(f"{row.value:10.4g} {row.unit}", flush=True)


if __name__ == "__main__":
    main()
