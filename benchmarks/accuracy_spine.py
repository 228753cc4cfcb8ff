"""A task where context decides: drawn spines whose vertebrae look alike.

    python benchmarks/accuracy_spine.py data/raw_spine

Each case is a column of equal vertebrae above a sacrum, the only part that looks different. The
labels are the sacrum and the first four vertebrae, by their count from it; the column goes on above
them without a label, until the edge of the image. So a voxel of a vertebra has its class from the
distance to the sacrum, counted in vertebrae: the spacing differs from case to case, the column is
bent and tilted, and its upper end says nothing. It is the labelling problem of spine CT without its
other difficulties. Mirroring changes no label.

The cases are small enough (64 x 64 x 64 voxels of 1 mm) to be seen whole in one crop.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from segresmamba.data.formats.sample_parts import Array, save_volume, smooth_field

CASES, SIDE, COUNTED = 20, 64, 4
_DESCRIPTION = {
    "name": "Spines",
    "description": "Drawn spines: vertebrae that differ only by their count from the sacrum",
    "reference": "made by this program; no patient is in it",
    "channel_names": {"0": "MR"},
    "labels": {
        "background": 0,
        "sacrum": 1,
        **{f"vertebra {count}": 1 + count for count in range(1, COUNTED + 1)},
    },
    "file_ending": ".nii.gz",
}


def draw(rng: np.random.Generator) -> tuple[Array, npt.NDArray[np.uint8]]:
    """One case: the image, and its label map (x, y, z)."""
    shape = (SIDE,) * 3
    turn = Rotation.from_euler("xyz", rng.uniform(-12, 12, 3), degrees=True).as_matrix()
    places = np.tensordot(turn, np.indices(shape, np.float32) - (SIDE - 1) / 2, axes=1)
    # The shift of a place depends on x, y and z, so the column bends and its vertebrae differ.
    x, y, z = (axis + 1.5 * smooth_field(shape, 5, rng) for axis in places)
    x, y = x - rng.uniform(-6, 6), y - rng.uniform(-6, 6)
    pitch, radius = rng.uniform(8.0, 11.0), rng.uniform(12.0, 16.0)
    above = z + rng.uniform(18, 22)  # from the upper end of the sacrum
    count = np.floor(above / pitch).astype(int) + 1
    # A flat cylinder in the lower 72 % of its share of the column.
    in_vertebra = (np.hypot(x, y) < radius) & (above >= 0) & (above / pitch % 1 < 0.72)
    # The sacrum is a wedge, wider than the vertebrae at its upper end.
    in_sacrum = (above < -1.5) & (np.hypot(x, y) < 1.4 * radius + 0.5 * above)
    label = np.where(in_vertebra & (count <= COUNTED), 1 + count, 0)
    label[in_sacrum] = 1
    signal = np.where(in_vertebra | in_sacrum, 1.0, 0.3 + 0.1 * smooth_field(shape, 6, rng))
    image = ndimage.gaussian_filter(signal, 0.8) * np.exp(0.15 * smooth_field(shape, 4, rng))
    noise = rng.normal(0, rng.uniform(0.05, 0.12), shape)
    return (1000 * (image + noise)).astype(np.float32), label.astype(np.uint8)


def main() -> None:
    """Write the dataset in nnU-Net's raw format; the same files each time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True)
    for number in range(CASES):
        image, label = draw(np.random.default_rng(number))
        case = f"spine_{number + 1:02d}"
        save_volume(image, np.eye(4), "RAS", out / "imagesTr" / f"{case}_0000.nii.gz")
        save_volume(label, np.eye(4), "RAS", out / "labelsTr" / f"{case}.nii.gz")
    (out / "dataset.json").write_text(json.dumps({**_DESCRIPTION, "numTraining": CASES}, indent=2))


if __name__ == "__main__":
    main()
