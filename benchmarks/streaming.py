"""Random 128^3 crops: the project's store and loader against other ways to read them.

    python benchmarks/streaming.py [--part mr ct zarr workers remote gaps sweep] [--work FOLDER]

It needs the extra `bench`. Volumes are written once to --work. Every part prints a table and writes
CSV. Each reader is one thread that returns the same crops as torch tensors. Readers take turns, and
their files are in the page cache. The tables have the smallest and the median time of a crop over
all rounds; ratios are those of the smallest times. The part `zarr` counts processor time instead,
which depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numcodecs
import numpy as np
import psutil
import torch
import zarr
from streaming_readers import (
    PATCH,
    READERS,
    FusedZarr,
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
from zarr.codecs import BloscCodec, Crc32cCodec

from launch.ports import free_port
from segresmamba.config import DataConfig
from segresmamba.data import make_loader, open_dataset
from segresmamba.data.store import layout, remote_files
from segresmamba.data.store.local_files import LocalFiles
from segresmamba.data.store.shard import ShardedArray

Row = dict[str, Any]
CROPS, SLOW_CROPS, ROUNDS = 12, 2, 5
# Crops of a loader: first more than its readers keep ready, then those that are timed.
WARM_UP, COUNT = 20, 60


class NnUNetCT(NnUNet):
    """nnU-Net's layout of a 512^3 volume, which it keeps as float32."""

    blocks, chunks = (1, 32, 32, 32), (1, 128, 128, 96)


class NnUNetCTCropOnly(NnUNetCropOnly):
    """NnUNetCT without the copy to the batch."""

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
    """Milliseconds of a crop for each reader. The readers take turns."""
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
        if not reader.slow:  # MONAI's axes are in reverse order
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


def part_zarr(work: Path) -> list[Row]:
    """Processor time, user and system, of all threads: zarr-python's pipelines on the same stores.

    The fused one needs zarr-python 3.3, and that needs Python 3.12.
    """
    kinds = [Ours, PlainZarr]
    if hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
        kinds.append(FusedZarr)
    rows = []
    for name, make, cases, shape in (("mr", mr, 2, MR_SHAPE_DHW), ("ct", ct, 1, CT_SHAPE_DHW)):
        volumes = _Lazy(lambda make=make, cases=cases: [make(seed) for seed in range(cases)])
        readers = [kind(_folder(work / name, kind), volumes) for kind in kinds]
        found = compare(readers, starts(shape, cases, CROPS))
        rows += [
            {"volumes": name, "reader": row["reader"], "cpu_ms": row["cpu_ms"],
             "of_ours": row["cpu_ms"] / found[0]["cpu_ms"], "zarr": zarr.__version__,
             "numcodecs": numcodecs.__version__, "python": platform.python_version()}
            for row in found
        ]  # fmt: skip
    return rows


def _folder(work: Path, kind: type[Reader]) -> Path:
    """The folder of a reader; readers of one layout share it."""
    shared = next(
        base for base in reversed(kind.__mro__) if "write" in vars(base) and base is not Reader
    )
    return work / (kind if kind.__name__ == "Persistent" else shared).__name__.lower()


class _Lazy(list[Volume]):
    """Volumes that are made when they are first read."""

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


def part_workers(work: Path) -> list[Row]:
    """Crops a second from 1, 2 and 4 reader processes, batches of one; the mr volumes."""
    rows = []
    for workers in (1, 2, 4):
        for name, make in (("segresmamba", _our_loader), ("nnU-Net blosc2", _their_loader)):
            rates = [_rate(make(work / "mr", workers)) for _ in range(3)]
            rows.append({"workers": workers, "reader": name, "crops_per_s": max(rates),
                         "crops_per_s_median": statistics.median(rates)})  # fmt: skip
    return rows


def part_remote(work: Path) -> list[Row]:
    """The same store in a folder and behind S3's protocol with 20 ms added to every answer.

    The server runs on the readers' own cores, so its processor time is reported as well.
    """
    rows = []
    with _server(work, latency_ms=20) as (url, server):
        for workers in (4, 8):
            for step_s in (0.0, 0.025, 0.05, 0.15):
                rates: dict[str, list[float]] = {"folder": [], "s3": []}
                before_s = sum(server.cpu_times()[:2])
                for _ in range(3):
                    for kind, store in (("folder", work / "mr"), ("s3", f"{url}/mr")):
                        rates[kind].append(_rate(_our_loader(store, workers), step_s))
                served_s = (sum(server.cpu_times()[:2]) - before_s) / 3
                best = {kind: max(found) for kind, found in rates.items()}
                rows.append({"workers": workers, "step_ms": 1e3 * step_s,
                             "folder_crops_per_s": best["folder"], "s3_crops_per_s": best["s3"],
                             "of_folder": best["s3"] / best["folder"],
                             "server_cpu_ms": 1e3 * served_s / (WARM_UP + COUNT)})  # fmt: skip
    return rows


def part_gaps(work: Path) -> list[Row]:
    """Gaps in a shard up to which one request fetches both sides; one reader, same server."""
    Ours(_folder(work / "mr", Ours), _Lazy(lambda: [mr(seed) for seed in range(2)]))
    crops = starts(MR_SHAPE_DHW, 2, CROPS)
    rows = []
    with _server(work, latency_ms=20) as (url, server):
        dataset = open_dataset(f"{url}/mr/ours")
        cases = [dataset[case_id] for case_id in dataset.case_ids]
        image = np.zeros((cases[0].record.shape_CDHW[0], *PATCH), np.float32)
        label = np.zeros(PATCH, cases[0].record.label_dtype)
        for gap_kib in (1024, 512, 256, 128, 64):
            found = []
            with patch.object(remote_files, "_GAP_BYTES", gap_kib << 10):
                for _ in range(ROUNDS):
                    before = _spent(server)
                    for number, start in crops:
                        image.fill(0)
                        label.fill(0)
                        cases[number].crop_into(start, image, label)
                    after = _spent(server)
                    found.append([(now - then) / len(crops)
                                  for now, then in zip(after, before, strict=True)])  # fmt: skip
            wall_s, cpu_s, server_s, received = map(min, zip(*found, strict=True))
            rows.append({"gap_kib": gap_kib, "ms": 1e3 * wall_s, "reader_cpu_ms": 1e3 * cpu_s,
                         "server_cpu_ms": 1e3 * server_s, "mb": received / 1e6})  # fmt: skip
    return rows


def _spent(server: psutil.Process) -> tuple[float, float, float, int]:
    """The clock, processor time here and of the server, and bytes over the network so far."""
    received = psutil.net_io_counters(nowrap=True).bytes_recv
    return time.perf_counter(), time.process_time(), sum(server.cpu_times()[:2]), received


def part_sweep(work: Path) -> list[Row]:
    """Inner chunks and codecs, read as the loader does. The shard is always the whole array."""
    layouts = [
        ((1, 32, 32, 32), "lz4", 5), ((1, 32, 32, 32), "lz4hc", 5), ((1, 32, 32, 32), "lz4hc", 9),
        ((1, 32, 32, 32), "zstd", 1), ((4, 32, 32, 32), "lz4", 5), ((4, 16, 16, 16), "lz4hc", 5),
        ((1, 16, 16, 16), "lz4hc", 5), ((1, 16, 32, 32), "lz4hc", 5), ((1, 32, 32, 64), "lz4hc", 5),
        ((1, 64, 64, 64), "lz4hc", 5),
    ]  # fmt: skip
    volume, _ = mr(0)
    arrays = [_written(work / "sweep", volume, *layout) for layout in layouts]
    crops = [start for _, start in starts(MR_SHAPE_DHW, 1, CROPS)]
    times: list[list[float]] = [[] for _ in layouts]
    crop = np.zeros((4, *PATCH), np.float32)
    for _ in range(ROUNDS):
        for (array, _, _), found in zip(arrays, times, strict=True):
            started = time.perf_counter()
            for start in crops:
                crop.fill(0)
                array.read((0, *start), crop)
            found.append(1e3 * (time.perf_counter() - started) / len(crops))
    return [
        {"chunk": "x".join(map(str, chunk)), "codec": f"{codec} {level}", "ms": min(found),
         "ms_median": statistics.median(found), "of_raw_size": size / volume.nbytes,
         "write_s": write_s}
        for (chunk, codec, level), found, (_, size, write_s) in zip(
            layouts, times, arrays, strict=True
        )
    ]  # fmt: skip


def _written(
    folder: Path, volume: Any, chunk: tuple[int, ...], codec: str, level: int
) -> tuple[ShardedArray, int, float]:
    """An array in one layout, the bytes of its shard, and the seconds that writing took."""
    name = f"{'x'.join(map(str, chunk))}_{codec}_{level}"
    started = time.perf_counter()
    with layout.checking_pipeline():
        array = zarr.create_array(
            folder / name,
            shape=volume.shape,
            dtype=volume.dtype,
            chunks=chunk,
            shards=tuple(-(-size // step) * step
                         for size, step in zip(volume.shape, chunk, strict=True)),
            compressors=[BloscCodec(cname=codec, clevel=level, shuffle="shuffle"), Crc32cCodec()],
            overwrite=True,
        )  # fmt: skip
        array[...] = volume
    seconds = time.perf_counter() - started
    size = layout.shard_file(folder / name, 4).stat().st_size
    return ShardedArray(LocalFiles(folder), name), size, seconds


class _Crops(torch.utils.data.Dataset[Any]):
    """Random crops of a reader, for torch's DataLoader."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._crops = starts(MR_SHAPE_DHW, 2, 1000)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> Any:
        torch.set_num_threads(1)
        self._reader.open()
        return self._reader.read(*self._crops[index])


def _their_loader(folder: Path, workers: int) -> Iterator[Any]:
    reader = NnUNet(_folder(folder, NnUNet), [])
    loader = torch.utils.data.DataLoader(
        _Crops(reader), batch_size=None, num_workers=workers, prefetch_factor=2
    )
    return iter(loader)


def _our_loader(folder: Path | str, workers: int) -> Iterator[Any]:
    dataset = open_dataset(f"{folder}/ours")
    config = DataConfig(store=dataset.where, patch=PATCH, workers=workers, foreground_fraction=0)
    return make_loader(
        dataset, dataset.case_ids, config, 0, rank=0, world_size=1, micro_batch=1, start_index=0
    )


def _rate(batches: Iterator[Any], step_s: float = 0.0) -> float:
    """Crops a second in the steady state, for a trainer whose steps take `step_s`."""
    for _ in islice(batches, WARM_UP):
        time.sleep(step_s)
    started = time.perf_counter()
    for _ in islice(batches, COUNT):
        time.sleep(step_s)
    return COUNT / (time.perf_counter() - started)


@contextmanager
def _server(folder: Path, latency_ms: float) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port(f"streaming {os.getpid()}")
    words = [Path(__file__).with_name("streaming_server.py"), folder, port, latency_ms]
    process = subprocess.Popen([sys.executable, *map(str, words)])
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_SKIP_SIGNATURE": "true"}
    try:
        time.sleep(2)
        yield "s3:/", psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


PARTS: dict[str, Callable[[Path], list[Row]]] = {
    "mr": part_mr,
    "ct": part_ct,
    "zarr": part_zarr,
    "workers": part_workers,
    "remote": part_remote,
    "gaps": part_gaps,
    "sweep": part_sweep,
}


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
        sys.stdout.flush()
        with (arguments.out / f"streaming_{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
