"""Highest memory of a whole prediction with many classes, from a file to a label file.

    python -m benchmarks.inference_memory                # the volumes of docs/performance.md

The network is one 1x1x1 convolution: what it takes itself is the logits of a window and little
more. All windows are computed, and the label is written. Voxels are int16, as in a CT.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

CASES = ("735x512x512:25:64", "735x512x512:25:128", "384x384x384:100:96")
RESULT = Path(__file__).parent / "results" / "inference_memory.csv"
_GIB = 1 << 20  # in KiB, the unit of ru_maxrss


def nnunet_gib(shape: tuple[int, ...], classes: int) -> float:
    """What nnU-Net 2.8.1 holds of logits when it looks for infinities among them, computed.

    They are half precision; `torch.isinf` makes their absolute values, and a byte for each.
    """
    return float(np.prod(shape)) * classes * (2 + 2 + 1) / (1 << 30)


def write_image(path: Path, shape_DHW: tuple[int, ...]) -> None:
    """Noise as in a CT, repeated along the slices so that it is written soon."""
    depth, height, width = shape_DHW
    slab = np.random.default_rng(0).integers(-1000, 1000, (width, height, 16), np.int16)
    volume = np.tile(slab, (1, 1, -(-depth // 16)))[..., :depth]
    nib.Nifti1Image(volume, np.eye(4)).to_filename(path)


def write_model(folder: Path, classes: int, patch: int) -> None:
    """A run's folder with a network of one convolution."""
    from segresmamba.config import Config
    from segresmamba.data.preprocessing import Normalisation, Preprocessing
    from segresmamba.storage.run_folder import RunFolder, write_config
    from segresmamba.task.task import build_network
    from segresmamba.task.weights import WeightsFacts, save_weights

    network = {"name": "plugin", "target": "benchmarks.inference_memory:network", "stride": 1}
    data = {"store": "none", "patch": (patch,) * 3}
    config = Config.model_validate({"model": network, "data": data})
    run = RunFolder(folder)
    run.path.mkdir()
    write_config(config, run.config)
    labels = {"background": 0} | {f"class{number}": number for number in range(1, classes)}
    normalisation = Normalisation(kind="ct", low=-1000, high=1000, std=500)
    facts = WeightsFacts(0, None, labels, ("CT",), Preprocessing(normalisation=(normalisation,)))
    save_weights(run.best, build_network(config, 1, classes).state_dict(), facts)


def network(in_channels: int, out_channels: int) -> Any:
    """One 1x1x1 convolution."""
    from torch import nn

    return nn.Conv3d(in_channels, out_channels, 1)


def worker(model: Path, image: Path, label: Path) -> None:
    """Segment once in this process, and print its highest memory."""
    from segresmamba.inference.model import load_model

    loaded = load_model(model, device="cpu")
    loaded.segment(image).save(label)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {"peak_gib": used.ru_maxrss / _GIB, "cpu_s": used.ru_utime}
    print(json.dumps(found))


def measure(case: str) -> dict[str, Any]:
    """A row of the result."""
    size, classes, patch = case.split(":")
    shape_DHW = tuple(map(int, size.split("x")))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_image(work / "image.nii", shape_DHW)
        write_model(work / "model", int(classes), int(patch))
        command = [sys.executable, "-m", "benchmarks.inference_memory", "--worker"]
        paths = [work / "model", work / "image.nii", work / "label.nii"]
        done = subprocess.run([*command, *paths], check=True, text=True, stdout=subprocess.PIPE)
        shape = nib.load(work / "label.nii").shape
    found = json.loads(done.stdout.splitlines()[-1])
    assert shape == shape_DHW[::-1]
    theirs = nnunet_gib(shape_DHW, int(classes))
    return {
        "shape": size,
        "classes": int(classes),
        "patch": int(patch),
        "peak_gib": round(found["peak_gib"], 2),
        "cpu_s": round(found["cpu_s"]),
        "all_logits_fp32_gib": round(np.prod(shape_DHW) * int(classes) * 4 / (1 << 30), 1),
        "nnunet_computed_gib": round(theirs, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", nargs="+", default=CASES, help="DxHxW:CLASSES:PATCH")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--worker", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    rows = []
    for case in options.case:
        rows.append(measure(case))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
