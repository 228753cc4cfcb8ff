"""Measures times and memory of the scans; prints a table and writes a CSV file.

    python benchmarks/scan.py                 CPU: compiled kernels against two PyTorch scans
    python benchmarks/scan.py --device cuda   GPU: Triton against mamba-ssm and the floor

Times are the smallest of several runs. On a machine that also does other work, repeat the script
and keep the smallest numbers.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import math
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator
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


def gpu_rows() -> Iterator[Row]:
    """The Triton kernels against mamba-ssm in this process, and against the floor."""
    from scan_floor import copy_bytes_per_s, exponentials_per_s, milliseconds

    rates = copy_bytes_per_s(), exponentials_per_s()
    yield from rate_rows(rates)
    names = [name for name in ("triton", "mamba_ssm") if available_backends()[name] == "ok"]
    for length in (4096, 32768, 262144):
        for channels in (96, 192, 384, 768):
            for batch in (1, 2):
                shape = (batch, channels, length)
                o = scan_operands(*shape, "cuda", torch.bfloat16)
                yield from floor_rows(shape, o["u"].element_size(), rates)
                for name in names:
                    yield from gpu_scan_rows(name, o, shape, milliseconds)
    yield from saved_rows((1, 96, 64**3), 64, "cuda", torch.bfloat16)
    yield from tri_rows((1, 96, 64**3), 64, "cuda", torch.bfloat16, milliseconds)


def gpu_scan_rows(
    name: str, o: dict[str, Tensor], shape: tuple[int, int, int],
    milliseconds: Callable[[Callable[[], object]], float],
) -> Iterator[Row]:  # fmt: skip
    """Times of one backend."""

    def run() -> Tensor:
        return selective_scan(**o, delta_softplus=True, backend=name)

    with torch.no_grad():
        yield Row("selective_scan", *shape, name, "forward", milliseconds(run), "ms")
    both_ms = milliseconds(lambda: gradients(run(), o))
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


def main() -> None:
    """Measure, print and write every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, help="CSV file (default: in benchmarks/results)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    path = arguments.out or RESULTS / f"scan_{arguments.device}.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*Row._fields, "machine"])
        for row in cpu_rows() if arguments.device == "cpu" else gpu_rows():
            table.writerow(
                [*row._replace(value=float(f"{row.value:.4g}")), machine(arguments.device)]
            )
            size = f"B {row.batch} D {row.channels} L {row.length}"
            print(f"{row.case:15} {size:20} {row.method:16} {row.quantity:19}", end="")
            print(f"{row.value:10.4g} {row.unit}", flush=True)


if __name__ == "__main__":
    main()
