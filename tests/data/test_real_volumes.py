"""Real volumes that Debian ships: a person's T1, a macaque's with 724 regions, a CT of a head.

SEGRESMAMBA_VOLUMES=install installs the packages; otherwise it is the folder where they were
unpacked. Where they are not, these tests are skipped.
"""

from __future__ import annotations

import os
import plistlib
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from segresmamba.data import Policy, convert, normalise, open_dataset, verify
from tests import debian
from tests.data.raw import describe, image_path, label_path, write_nifti

BRAINS, CT = "mricron-data", "invesalius-examples"


def shipped(package: str, path: str) -> Path:
    """A file or folder of a package."""
    asked = os.environ.get("SEGRESMAMBA_VOLUMES", "/")
    found = Path("/" if asked == "install" else asked) / path
    if not found.exists() and asked == "install" and debian.may_install():
        debian.install(package)
    if not found.exists():
        pytest.skip(f"no {found} (apt-get install {package})")
    return found


def dataset(folder: Path, labels: dict[str, int], channel: str) -> Path:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    describe(
        folder,
        channel_names={"0": channel},
        labels={"background": 0} | labels,
        numTraining=1,
        file_ending=".nii.gz",
    )
    return folder


@pytest.mark.parametrize(
    ("image", "atlas", "regions", "highest"),
    [("ch2bet", "aal", 116, 116), ("inia19-t1-brain", "inia19-NeuroMaps", 724, 1605)],
)
def test_an_atlas_with_many_regions_comes_back_as_it_was(
    tmp_path: Path, image: str, atlas: str, regions: int, highest: int
) -> None:
    templates = shipped(BRAINS, "usr/share/mricron/templates")
    file = nib.load(templates / f"{atlas}.nii.gz")
    label_XYZ = np.asarray(file.dataobj)
    values, counts = np.unique(label_XYZ[label_XYZ > 0], return_counts=True)
    assert (len(values), values[-1]) == (regions, highest)
    raw = dataset(tmp_path / "raw", {f"region {value}": int(value) for value in values}, "T1")
    image_path(raw, "brain").symlink_to(templates / f"{image}.nii.gz")
    label_path(raw, "brain").symlink_to(templates / f"{atlas}.nii.gz")
    convert(raw, tmp_path / "store")
    assert verify(tmp_path / "store") == []
    case = open_dataset(tmp_path / "store")["brain"]
    assert case.record.class_voxels == dict(zip(values.tolist(), counts.tolist(), strict=True))
    image_CDHW, label_DHW = case.read()
    back = case.restore_label(label_DHW)
    np.testing.assert_array_equal(np.asarray(back.dataobj), label_XYZ)
    np.testing.assert_allclose(back.affine, file.affine)
    # All three atlases and templates have axes right, anterior, superior.
    expected = np.asarray(nib.load(templates / f"{image}.nii.gz").dataobj).T
    np.testing.assert_array_equal(image_CDHW[0], expected)


def test_a_head_is_stored_in_fewer_bytes_and_seen_the_same(tmp_path: Path) -> None:
    project = shipped(CT, "usr/share/doc/invesalius-examples/examples/Cranium.inv3")
    with tarfile.open(project) as archive:
        members = {Path(name).name: name for name in archive.getnames()}
        described = archive.extractfile(members["main.plist"])
        voxels = archive.extractfile(members["matrix.dat"])
        assert described is not None
        assert voxels is not None
        content = plistlib.load(described)
        shape_DHW = content["matrix"]["shape"]
        image_DHW = np.frombuffer(voxels.read(), np.int16).reshape(shape_DHW)
    raw = dataset(tmp_path / "raw", {"bone": 1}, "CT")
    affine = np.diag([*content["spacing"], 1.0])
    write_nifti(image_path(raw, "head"), image_DHW.T, affine)
    write_nifti(label_path(raw, "head"), (image_DHW.T > 300).astype(np.uint8), affine)
    seen, sizes = [], []
    for kind in ("ct", "ct-clipped"):
        store = tmp_path / kind
        convert(raw, store, policy=Policy(intensity=(kind,)))
        case = open_dataset(store)["head"]
        image = torch.from_numpy(case.read()[0]).float()
        seen.append(normalise(image[None], torch.from_numpy(case.normalisation_C4)[None]))
        sizes.append(sum(path.stat().st_size for path in store.rglob("*") if path.is_file()))
    assert torch.equal(*seen)
    assert sizes[1] < 0.7 * sizes[0]
