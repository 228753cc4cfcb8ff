"""Exported result folders in nnU-Net's own predictor: do its labels agree with ours?

    python -m benchmarks.nnunet_export --python PYTHON

PYTHON is an interpreter with nnunetv2 2.8.1 and this project. Each network has random weights. The
case is cut from the MNI152 head at 2 mm, which comes with nilearn: one window, and larger parts of
several windows, which the two weight a little differently. With random weights the windows differ
much more from each other than those of a trained network.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

NETWORKS: dict[str, dict[str, Any]] = {
    "resenc_unet": {"name": "resenc_unet", "features": (8, 16, 32), "blocks": (1, 2, 2)},
    "dynunet": {"name": "dynunet", "filters": (8, 16, 32), "deep_supervision": False},
    "nnunet": {
        "name": "nnunet",
        "features": (8, 16, 32),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "blocks": (2, 2, 2),
        "decoder_blocks": (2, 2),
    },
}
PATCH = (48, 64, 48)
REGIONS = {"core": (2, 3), "whole": (1, 2, 3), "tip": (3,)}
# nnU-Net's own command line would ask for the channels of a dataset that it knows.
NNUNET = """
import sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
model, image, label, mirroring = sys.argv[1:]
predictor = nnUNetPredictor(use_mirroring=mirroring == "1", device=torch.device("cpu"),
                            perform_everything_on_device=False, allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, (0,))
predictor.predict_from_files_sequential([[image]], [label], save_probabilities=False)
"""


def write_run(folder: Path, network: dict[str, Any], *, regions: bool) -> None:
    """A run with random weights, of a store that was cropped, resampled and normalised whole."""
    from segresmamba.config import Config
    from segresmamba.data.preprocessing import Normalisation, Preprocessing
    from segresmamba.storage.run_folder import RunFolder, write_config
    from segresmamba.task.classes import Classes
    from segresmamba.task.task import build_network
    from segresmamba.task.weights import WeightsFacts, save_weights

    data = {"store": "none", "patch": PATCH, "regions": REGIONS if regions else None}
    config = Config.model_validate({"model": network, "data": data})
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    write_config(config, run.config)
    labels = {"background": 0, "one": 1, "two": 2, "three": 3}
    built = build_network(config, 1, Classes.from_labels(config, labels).channels)
    with torch.no_grad():
        for value in built.parameters():  # or all voxels would be of one class
            value.mul_(3)
    treated = Preprocessing(
        spacing_mm=(2.0, 2.0, 2.0), crop=True, normalisation=(Normalisation(kind="zscore-whole"),)
    )
    save_weights(run.best, built.state_dict(), WeightsFacts(0, None, labels, ("t1",), treated))


def compare(
    python: str,
    name: str,
    *,
    size: tuple[int, int, int] = PATCH,
    regions: bool = False,
    mirrored: bool = False,
) -> None:
    """Print the share of the voxels with one label in both.

    Args:
        python: An interpreter with nnU-Net.
        name: The network.
        size: Of the middle of the head that is segmented, (D, H, W).
        regions: Whether its outputs are regions.
        mirrored: Whether outputs are averaged over mirrored windows.
    """
    from nilearn.datasets import load_mni152_template

    from segresmamba.inference.export import export_model
    from segresmamba.inference.model import load_model

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        image, label = work / "head_0000.nii.gz", work / "label"
        head = load_mni152_template(resolution=2)
        starts = [(all_ - part) // 2 for all_, part in zip(head.shape, size[::-1], strict=True)]
        places = [
            slice(start, start + part) for start, part in zip(starts, size[::-1], strict=True)
        ]
        head.slicer[*places].to_filename(image)
        write_run(work / "run", NETWORKS[name], regions=regions)
        model = export_model(work / "run", work / "model", form="nnunet")
        found = load_model(model, device="cpu", tta=mirrored).segment(image, probabilities=regions)
        ours = found.array
        if (
            regions
        ):  # painted as nnU-Net does, where regions of random weights contradict each other
            core, whole, tip = found.probabilities > 0.5
            ours = np.select([tip, core, whole], [3, 2, 1])
        subprocess.run(
            [python, "-c", NNUNET, model, image, label, str(int(mirrored))],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {f"nnUNet_{part}": "/none" for part in ("raw", "results")},
        )
        theirs = np.asarray(nib.load(work / "label.nii.gz").dataobj)
    kind = "regions" if regions else "labels"
    how = "mirrored" if mirrored else "plain"
    used = ", ".join(f"{share:.0%}" for share in np.bincount(ours.ravel()) / ours.size)
    print(f"{name} {kind} {size} {how}: {(ours == theirs).mean():.4%} alike; {used}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="an interpreter with nnU-Net")
    python = parser.parse_args().python
    for name in NETWORKS:
        compare(python, name)
    compare(python, "resenc_unet", regions=True)
    compare(python, "resenc_unet", mirrored=True)
    compare(python, "resenc_unet", size=(80, 96, 80))


if __name__ == "__main__":
    main()
