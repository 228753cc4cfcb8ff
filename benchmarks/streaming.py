"""Random 128^3 crops: the project's store and loader against other ways to read them.

    python benchmarks/streaming.py [--part mr ct workers remote sweep] [--work FOLDER]

It needs the extra `bench` (blosc2, moto). Volumes are written once to --work. Every part prints a
table and writes CSV. Each reader is one thread that gives the same crops as torch tensors; readers
take turns, crop files are in the page cache, and of all rounds the smallest and the median time of
a crop are given. The ratio is of the smallest times.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming_readers import (
    PATCH,
    READERS,
    Mapped,
    NnUNet,
    NnUNetCropOnly,
    Ours,
    PlainZarr,
    Reader,
    RustZarr,
    Start,
)
from streaming_volumes import CT_SHAPE_DHW, MR_SHAPE_DHW, Volume, ct, mr

Row = dict[str, Any]
CROPS, SLOW_CROPS, ROUNDS = 12, 2, 5


class NnUNetCT(NnUNet):
    """Its layout of a 512^3 volume, which it keeps as float32."""

    blocks, chunks = (1, 32, 32, 32), (1, 128, 128, 96)


class NnUNetCTCropOnly(NnUNetCropOnly):
    """Likewise."""

    blocks, chunks = NnUNetCT.blocks, NnUNetCT.chunks


def starts(shape: tuple[int, int, int], cases: int, count: int) -> list[tuple[int, Start]]:
    rng = np.random.default_rng(0)
    return [
        (
            number % cases,
            tuple(
                int(rng.integers(size - step + 1)) for size, step in zip(shape, PATCH, strict=True)
            ),
        )
        for number in range(count)
    ]


def compare(readers: Iterable[Reader], crops: list[tuple[int, Start]]) -> list[Row]:
    """Milliseconds of a crop for each reader, the readers taking turns."""
    readers = list(readers)
    expected = [tensor.clone() for tensor in readers[0].read(*crops[0])]
    times: dict[str, list[tuple[float, float]]] = {reader.name: [] for reader in readers}
    for _ in range(ROUNDS):
        for reader in readers:
            chosen = crops[:SLOW_CROPS] if reader.slow else crops
            wall, busy = time.perf_counter(), time.process_time()
            for place in chosen:
                crop = reader.read(*place)
            spent = time.perf_counter() - wall, time.process_time() - busy
            times[reader.name].append(tuple(1e3 * part / len(chosen) for part in spent))
            if not reader.slow:
                assert crop[0].shape == expected[0].shape, reader.name
    for reader in readers:
        if not reader.slow:  # MONAI's axes are the other way round
            for one, other in zip(reader.read(*crops[0]), expected, strict=True):
                torch.testing.assert_close(one.to(other.dtype), other, rtol=0, atol=0)
    best = min(wall for wall, _ in times[readers[0].name])
    return [
        {
            "reader": reader.name,
            "ms": min(wall for wall, _ in times[reader.name]),
            "ms_median": statistics.median(wall for wall, _ in times[reader.name]),
            "cpu_ms": min(busy for _, busy in times[reader.name]),
            "of_ours": min(wall for wall, _ in times[reader.name]) / best,
            "mb_on_disk": reader.bytes / 1e6,
        }
        for reader in readers
    ]


def part_mr(work: Path) -> list[Row]:
    """float32, 4 channels, 240 x 240 x 155."""
    volumes = _Lazy(lambda: [mr(seed) for seed in range(2)])
    readers = [kind(_folder(work / "mr", kind), volumes) for kind in READERS]
    return compare(readers, starts(MR_SHAPE_DHW, 2, CROPS))


def part_ct(work: Path) -> list[Row]:
    """int16, 1 channel, 512^3."""
    volumes = _Lazy(lambda: [ct(0)])
    kinds = (Ours, NnUNetCT, NnUNetCTCropOnly, Mapped, PlainZarr, RustZarr)
    readers = [kind(_folder(work / "ct", kind), volumes) for kind in kinds]
    return compare(readers, starts(CT_SHAPE_DHW, 1, CROPS))


def _folder(work: Path, kind: type[Reader]) -> Path:
    """Readers of one layout share what was written."""
    shared = next(
        base for base in reversed(kind.__mro__) if "write" in vars(base) and base is not Reader
    )
    return work / (kind if kind.__name__ == "Persistent" else shared).__name__.lower()


class _Lazy(list[Volume]):
    """Volumes that are made when they are first asked for."""

    def __init__(self, make: Callable[[], list[Volume]]) -> None:
        super().__init__()
        self._make = make

    def __iter__(self) -> Any:
        if not len(self):
            self.extend(self._make())
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        iter(self)
        return super().__getitem__(index)


PARTS: dict[str, Callable[[Path], list[Row]]] = {"mr": part_mr, "ct": part_ct}


def show(title: str, rows: list[Row]) -> None:
    columns = list(rows[0])
    cells = [
        [f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in columns]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(f"\n{title}")
    for line in (columns, *cells):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "streaming")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.part:
        rows = PARTS[name](arguments.work)
        show(f"{name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", rows)
        with (arguments.out / f"streaming_{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
