"""Volumes like those in training, made from nilearn's MNI152 template.

Functions import the libraries that they need, because reader processes import this module too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MR_SHAPE_DHW = (155, 240, 240)
CT_SHAPE_DHW = (512, 512, 512)

Volume = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Image (C, D, H, W) and label (D, H, W)."""


def mr(seed: int) -> Volume:
    """Four channels of float32: a brain on a background of zeros, smooth structure and noise.

    As after resampling and normalisation, values use all digits, which makes them hard to compress.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    template = _padded(np.asarray(load_mni152_template(resolution=1).dataobj, np.float32).T)
    brain = _padded(np.asarray(load_mni152_brain_mask(resolution=1).dataobj, np.float32).T) > 0
    contrasts = (template, template**1.7, 1.2 - template, (1.1 - template) ** 2 + 0.2)
    channels = []
    for contrast in contrasts:
        bias = gaussian_filter(rng.standard_normal(brain.shape, np.float32), 20)
        noise = gaussian_filter(rng.standard_normal(brain.shape, np.float32), 0.5)
        voxels = contrast * (1 + 0.1 * bias / bias.std()) + 0.03 * noise
        voxels = (voxels - voxels[brain].mean()) / voxels[brain].std()
        channels.append(np.where(brain, voxels, 0).astype(np.float32))
    label = np.zeros(brain.shape, np.uint8)
    label[brain & (template > 0.75)] = 1
    label[brain & (template < 0.4)] = 2
    return np.stack(channels), label


def ct(seed: int) -> Volume:
    """One channel of int16, 512^3: a head in air, noise everywhere."""
    from nilearn.datasets import load_mni152_template
    from scipy.ndimage import zoom

    rng = np.random.default_rng(seed)
    template = np.asarray(load_mni152_template(resolution=2).dataobj, np.float32).T
    factors = [size / old for size, old in zip(CT_SHAPE_DHW, template.shape, strict=True)]
    large = zoom(template, factors, order=1)
    noise = rng.standard_normal(large.shape, np.float32)
    image = np.round(1500 * large - 1000 + 15 * noise).astype(np.int16)
    return image[None], (large > 0.75).astype(np.uint8)


def write_raw(folder: Path, volumes: list[Volume]) -> None:
    """A dataset in nnU-Net's raw format."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(volumes):
        for channel, voxels in enumerate(image):
            _write(folder / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz", voxels)
        _write(folder / "labelsTr" / f"case_{number}.nii.gz", label)
    classes = range(1, int(volumes[0][1].max()) + 1)
    description = {
        "name": "Streaming",
        "channel_names": {str(channel): f"channel {channel}" for channel in range(len(image))},
        "labels": {"background": 0} | {f"class {value}": value for value in classes},
        "numTraining": len(volumes),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _padded(volume: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The volume cut or filled with zeros to `MR_SHAPE_DHW`, with the same centre."""
    for axis, size in enumerate(MR_SHAPE_DHW):
        missing = size - volume.shape[axis]
        if missing < 0:
            volume = np.take(volume, range(-missing // 2, -missing // 2 + size), axis)
        widths = [(max(missing, 0) // 2, -(-max(missing, 0) // 2)) if a == axis else (0, 0)
                  for a in range(3)]  # fmt: skip
        volume = np.pad(volume, widths)
    return volume


def _write(path: Path, voxels: npt.NDArray[Any]) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image(voxels.T, np.eye(4)), path)
