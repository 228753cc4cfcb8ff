"""Whole cases from a file to a label file: this project, nnU-Net's predictor, MONAI's windows.

    python -m benchmarks.inference                       # the volumes of docs/performance.md
    python -m benchmarks.inference --volume 96:empty:3 --patch 48 --repeats 1

All three get the same network with the same random weights, the same patch, overlap 0.5, fp32, no
mirroring. Intensities are used as they are stored, so that all compute the same logits. Each run is
a process of its own: the time is from the image's file to the label's, without imports and the
building of the network, and the memory is the process's highest. `windows_s` is the part of the
time that the network takes; with OMP_NUM_THREADS=1 the rest may use a second core.

nnU-Net is not a dependency: pip install nnunetv2==2.8.1 beside this project, or name an interpreter
that has both with --python. Without it its column is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import nibabel as nib
import numpy as np

TOOLS = ("ours", "nnunet", "monai")
VOLUMES = ("192:full:3", "192:empty:3", "320:full:3", "320:empty:3", "256:full:25")
OVERLAP = 0.5
FILLED = 0.6
"""Side of the object in an "empty" volume, as a share of that of the volume."""
RESULT = Path(__file__).parent / "results" / "inference_cpu.csv"
_GIB = 1 << 20  # in KiB, the unit of ru_maxrss


def write_volume(path: Path, size: int, kind: str) -> None:
    """Smooth noise everywhere, or in a box with zeros around."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 1, (-(-size // 8),) * 3).astype(np.float32)
    volume = np.kron(coarse, np.ones((8, 8, 8), np.float32))[:size, :size, :size]
    volume += rng.normal(0, 0.3, volume.shape).astype(np.float32)
    if kind == "empty":
        margin = round(size * (1 - FILLED) / 2)
        inside = np.zeros_like(volume)
        box = (slice(margin, size - margin),) * 3
        inside[box] = volume[box]
        volume = inside
    nib.Nifti1Image(volume, np.eye(4)).to_filename(path)


def write_model(folder: Path, classes: int, patch: int) -> None:
    """A run's folder with random weights of a small residual U-Net of nnU-Net."""
    from segresmamba.config import Config
    from segresmamba.data.preprocessing import Normalisation, Preprocessing
    from segresmamba.storage.run_folder import RunFolder, write_config
    from segresmamba.task.task import build_network
    from segresmamba.task.weights import WeightsFacts, save_weights

    config = Config.model_validate(
        {
            "model": {"name": "resenc_unet", "features": (8, 16, 32), "blocks": (1, 1, 1)},
            "data": {"store": "none", "patch": (patch,) * 3},
            "validation": {"overlap": OVERLAP},
        }
    )
    run = RunFolder(folder)
    run.path.mkdir()
    write_config(config, run.config)
    labels = {"background": 0} | {f"class{number}": number for number in range(1, classes)}
    preprocessing = Preprocessing(normalisation=(Normalisation(kind="stored"),))
    facts = WeightsFacts(0, None, labels, ("image",), preprocessing)
    save_weights(run.best, build_network(config, 1, classes).state_dict(), facts)


def ours(model: Path) -> Callable[[Path, Path], None]:
    """`segresmamba predict` without its command line."""
    from segresmamba.inference.model import load_model

    loaded = load_model(model, device="cpu")
    return lambda image, label: loaded.segment(image).save(label)  # type: ignore[return-value]


def monai(model: Path) -> Callable[[Path, Path], None]:
    """MONAI's sliding window as its documentation shows it, with nibabel around it."""
    import torch
    from monai.inferers.utils import sliding_window_inference

    from segresmamba.inference.trained import open_models
    from segresmamba.task.weights import load_network

    (trained,) = open_models(model)
    network = load_network(trained.weights, trained.config).network.eval()

    def segment(image: Path, label: Path) -> None:
        read = nib.load(image)
        x_BCDHW = torch.from_numpy(np.asarray(read.dataobj, np.float32).T.copy())[None, None]
        with torch.inference_mode():
            logits = sliding_window_inference(
                x_BCDHW, trained.config.data.patch, 1, network, OVERLAP, mode="gaussian"
            )
        values = logits[0].argmax(0).to(torch.uint8).numpy().T  # type: ignore[index]
        nib.Nifti1Image(values, read.affine).to_filename(label)

    return segment


def nnunet(model: Path) -> Callable[[Path, Path], None]:
    """nnU-Net's own predictor, with its reader and writer."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import (  # type: ignore[import-not-found]
        nnUNetPredictor,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import (  # type: ignore[import-not-found]
        PlansManager,
    )

    from segresmamba.inference.trained import open_models
    from segresmamba.task.weights import load_network

    (trained,) = open_models(model)
    network = load_network(trained.weights, trained.config).network
    plans = PlansManager(_plans(trained.config.data.patch))
    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        network,
        plans,
        plans.get_configuration("3d_fullres"),
        [network.state_dict()],
        {
            "labels": trained.facts.labels,
            "channel_names": {"0": "noNorm"},
            "file_ending": ".nii.gz",
        },
        "none",
        None,
    )
    reader = plans.image_reader_writer_class()

    def segment(image: Path, label: Path) -> None:
        data, properties = reader.read_images([str(image)])
        target = str(label).removesuffix(".nii.gz")
        predictor.predict_single_npy_array(data, properties, output_file_truncated=target)

    return segment


def _plans(patch: tuple[int, int, int]) -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    name = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "none",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 1,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "none",
            "arch_kwargs": {},
            "_kw_requires_import": [],
        },
        "batch_dice": False,
    }
    for what in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{what}"] = name
        configuration[f"resampling_fn_{what}_kwargs"] = resampling | {"is_seg": what == "seg"}
    return {
        "dataset_name": "none",
        "plans_name": "none",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(patch),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "none",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def timed_windows(model: Path) -> list[float]:
    """Have the network time its windows; each adds its seconds to the list."""
    from segresmamba.inference.trained import open_models
    from segresmamba.task.weights import load_network

    (trained,) = open_models(model)
    kind = type(load_network(trained.weights, trained.config).network)
    forward, seconds = kind.forward, list[float]()

    def timed(self: Any, x_BCDHW: Any) -> Any:
        begin_s = perf_counter()
        logits = forward(self, x_BCDHW)
        seconds.append(perf_counter() - begin_s)
        return logits

    kind.forward = timed  # type: ignore[method-assign]
    return seconds


def worker(tool: str, model: Path, image: Path, label: Path) -> None:
    """Segment once in this process, and print time and memory."""
    segment = {"ours": ours, "nnunet": nnunet, "monai": monai}[tool](model)
    windows = timed_windows(model)
    begin_s = perf_counter()
    segment(image, label)
    seconds = perf_counter() - begin_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _GIB
    print(json.dumps({"seconds": seconds, "windows_s": sum(windows), "peak_gib": peak}))


def run(python: str, tool: str, model: Path, image: Path, label: Path) -> dict[str, float]:
    """A worker in a process of its own."""
    command = [python, "-m", "benchmarks.inference", "--worker", tool]
    done = subprocess.run(
        [*command, str(model), str(image), str(label)],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        env=os.environ
        | {f"nnUNet_{name}": "/nowhere" for name in ("raw", "results", "preprocessed")},
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(volume: str, patch: int, repeats: int, python: str) -> list[dict[str, Any]]:
    """A row for each tool that is installed."""
    size, kind, classes = volume.split(":")
    tools = [
        tool for tool in TOOLS if tool != "nnunet" or python != sys.executable or _has_nnunet()
    ]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_volume(work / "image.nii.gz", int(size), kind)
        write_model(work / "model", int(classes), patch)
        labels = {tool: work / f"{tool}.nii.gz" for tool in tools}
        # Interleaved, so that what else the machine does meets all of them.
        found = [
            {
                tool: run(python, tool, work / "model", work / "image.nii.gz", labels[tool])
                for tool in tools
            }
            for _ in range(repeats)
        ]
        voxels = {tool: np.asarray(nib.load(path).dataobj) for tool, path in labels.items()}
    return [
        {
            "volume": volume,
            "patch": patch,
            "tool": tool,
            "seconds": round(median(one[tool]["seconds"] for one in found), 2),
            "windows_s": round(median(one[tool]["windows_s"] for one in found), 2),
            "peak_gib": round(max(one[tool]["peak_gib"] for one in found), 3),
            "same_labels": round(float((voxels[tool] == voxels["ours"]).mean()), 6),
        }
        for tool in tools
    ]


def _has_nnunet() -> bool:
    return find_spec("nnunetv2") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--volume", nargs="+", default=VOLUMES, help="SIZE:full|empty:CLASSES")
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with nnU-Net")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        tool, *paths = options.worker
        worker(tool, *map(Path, paths))
        return
    rows = []
    for volume in options.volume:
        for row in compare(volume, options.patch, options.repeats, options.python):
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
