"""Bundles in the layout of MONAI's model zoo give the labels here that MONAI computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.utils import sliding_window_inference
from monai.networks import nets
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import NormalizeIntensityd, ScaleIntensityRanged
from monai.transforms.spatial.dictionary import Orientationd, Spacingd
from monai.transforms.utility.dictionary import EnsureTyped

from segresmamba.errors import CheckpointError, DataError, UserError
from segresmamba.inference.export import export_model
from segresmamba.inference.import_bundle import import_bundle
from segresmamba.inference.model import load_model
from segresmamba.inference.trained import open_models
from tests.cli.test_main import run
from tests.inference.conftest import noise

UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8, 8],
    "strides": [2, 2],
    "num_res_units": 1,
    "norm": "batch",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": UNET,
    "segresnet": {
        "_target_": "monai.networks.nets.SegResNet",
        "in_channels": 1,
        "out_channels": 3,
        "init_filters": 8,
        "blocks_down": [1, 1],
        "blocks_up": [1],
        "dropout_prob": 0.2,
    },
    "dynunet": {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "kernel_size": [3, [3, 3, 1], 3],
        "strides": [1, [2, 2, 1], 2],
        "upsample_kernel_size": [[2, 2, 1], 2],
        "filters": [4, 8, 8],
    },
    "unetr": {
        "_target_": "UNETR",
        "in_channels": 1,
        "out_channels": 3,
        "img_size": [32, 16, 16],
        "feature_size": 4,
        "hidden_size": 12,
        "mlp_dim": 16,
        "num_heads": 2,
    },
    "swinunetr": {
        "_target_": "SwinUNETR",
        "img_size": 32,
        "in_channels": 1,
        "out_channels": 3,
        "feature_size": 12,
    },
}
ROI = [32, 16, 16]
RANGE = {"a_min": -57, "a_max": 164, "b_min": 0.25, "b_max": 1.0, "clip": True}
TRANSFORMS: list[dict[str, Any]] = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.0, 2.0], "mode": "bilinear"},
    {"_target_": "ScaleIntensityRanged", "keys": "image", **RANGE},
    {"_target_": "EnsureTyped", "keys": "image"},
]


def write_bundle(folder: Path, network: dict[str, Any] = UNET, **changes: Any) -> Path:
    """A bundle with random weights."""
    roi = [64, 32, 32] if network["_target_"] == "SwinUNETR" else ROI
    inference = {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "roi": roi,
        "preprocessing": {"_target_": "Compose", "transforms": TRANSFORMS},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": "@roi",
            "sw_batch_size": 4,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
        },
        **changes.pop("inference", {}),
    }
    image = {"type": "image", "modality": "CT", "num_channels": 1, "channel_def": {"0": "image"}}
    names = {"0": "background", "1": "spleen", "2": "cyst"}
    metadata = {
        "version": "0.1.0",
        "license": "Apache-2.0",
        "network_data_format": {
            "inputs": {"image": image},
            "outputs": {"pred": {"type": "image", "num_channels": 3, "channel_def": names}},
        },
        **changes.pop("metadata", {}),
    }
    for name, content in (("inference", inference), ("metadata", metadata)):
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    (folder / "models").mkdir()
    torch.save(built(network).state_dict(), folder / "models" / "model.pt")
    return folder


def built(network: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(3)
    kind = network["_target_"].rpartition(".")[2]
    gone = {"_target_", "img_size"} if kind == "SwinUNETR" else {"_target_"}
    kwargs = {key: value for key, value in network.items() if key not in gone}
    made: torch.nn.Module = getattr(nets, kind)(**kwargs)
    with torch.no_grad():
        for value in made.parameters():
            value.mul_(2)
    return made


def monai_labels(image: Path, network: dict[str, Any], *transforms: Any) -> Any:
    """MONAI's own transforms and windows, the label on the axes that they give."""
    roi = [64, 32, 32] if network["_target_"] == "SwinUNETR" else ROI
    read = nib.load(image)
    voxels_1XYZ = MetaTensor(np.asarray(read.dataobj)[None], affine=read.affine)
    x_CXYZ = Compose(transforms)({"image": voxels_1XYZ})["image"]
    with torch.no_grad():
        logits = sliding_window_inference(
            x_CXYZ[None], roi, 4, built(network).eval(), 0.5, mode="gaussian"
        )
    return np.asarray(logits[0].argmax(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_those_of_monai(tmp_path: Path, name: str) -> None:
    network = NETWORKS[name]
    out = import_bundle(write_bundle(tmp_path / "bundle", network), tmp_path / "out")
    # One window of the network's voxel size, but stored from left to right and with another axis
    # first. With several windows MONAI adds the outermost voxels with other weights.
    width, height, depth = json.loads((tmp_path / "bundle/configs/inference.json").read_text())[
        "roi"
    ]
    array_ZXY = noise(depth, width, height) * 3 - 100
    affine = np.array([[0, -1.5, 0, 40.0], [0, 0, 1.0, -9], [2.0, 0, 0, 5], [0, 0, 0, 1]])
    image = tmp_path / "case.nii.gz"
    nib.Nifti1Image(array_ZXY, affine).to_filename(image)
    found = load_model(out, device="cpu").segment(image)
    transforms = Orientationd("image", "RAS", labels=None), ScaleIntensityRanged("image", **RANGE)
    expected_XYZ = monai_labels(image, network, *transforms)
    on_ras = nib.as_closest_canonical(nib.Nifti1Image(found.array, affine))
    agree = np.asarray(on_ras.dataobj) == expected_XYZ
    assert len(np.unique(expected_XYZ)) > 1
    assert agree.mean() > 0.999
    (model,) = open_models(out)
    assert model.facts.labels == {"background": 0, "spleen": 1, "cyst": 2}
    assert model.facts.channel_names == ["CT"]
    assert "Apache-2.0" in (out / "README.md").read_text()


def test_axes_as_stored_and_resampling(tmp_path: Path) -> None:
    transforms = [one for one in TRANSFORMS if one["_target_"][:6] in ("LoadIm", "Ensure")]
    normal = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": False}
    changes = {"preprocessing": {"transforms": [*transforms, TRANSFORMS[3], normal]}}
    bundle = write_bundle(tmp_path / "bundle", inference=changes)
    out = import_bundle(bundle, tmp_path / "out")
    smooth = np.kron(noise(8, 4, 4), np.ones((4, 4, 4), np.float32))
    image = tmp_path / "case.nii.gz"
    nib.Nifti1Image(smooth, np.diag([-1.5, 1.0, 2.0, 1])).to_filename(image)
    expected = monai_labels(image, UNET, NormalizeIntensityd("image"), EnsureTyped("image"))
    found = load_model(out, device="cpu").segment(image).array
    assert (found == expected).mean() > 0.999
    # At another voxel size both interpolate linearly, on grids that differ by a part of a voxel.
    smooth = np.kron(noise(12, 4, 8), np.ones((4, 4, 4), np.float32))
    nib.Nifti1Image(smooth, np.diag([-1.0, 1.0, 1.0, 1])).to_filename(image)
    spacing = Spacingd("image", pixdim=(1.5, 1.0, 2.0), mode="bilinear")
    coarse = monai_labels(image, UNET, spacing, NormalizeIntensityd("image"))
    found = load_model(out, device="cpu").segment(image).array
    shares, others = (np.bincount(one.ravel(), minlength=3) / one.size for one in (found, coarse))
    np.testing.assert_allclose(shares, others, atol=0.03)


def test_an_array_has_the_voxel_size_of_the_network_along_its_own_axes(tmp_path: Path) -> None:
    out = import_bundle(write_bundle(tmp_path / "bundle"), tmp_path / "out")
    array_DHW = noise(18, 20, 40) * 3 - 100
    model = load_model(out, device="cpu")
    label = model.segment(array_DHW)
    same = model.segment(array_DHW, spacing_mm=(2.0, 1.0, 1.5))
    np.testing.assert_array_equal(label.array, same.array)
    assert label.array.shape == array_DHW.shape


def test_the_command_takes_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = write_bundle(tmp_path / "bundle"), tmp_path / "out"
    assert run(monkeypatch, "import", bundle, "--out", out) == 0
    assert open_models(out)


def transforms_with(one: dict[str, Any]) -> dict[str, Any]:
    return {"inference": {"preprocessing": {"transforms": [*TRANSFORMS, one]}}}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"network": UNET | {"_target_": "scripts.mine.UNesT"}}, "network of this bundle.*UNesT"),
        (transforms_with({"_target_": "CropForegroundd"}), "CropForegroundd"),
        (
            {
                "inference": {
                    "preprocessing": {
                        "transforms": [{"_target_": "NormalizeIntensityd", "nonzero": True}]
                    }
                }
            },
            "NormalizeIntensity with these arguments",
        ),
        (
            transforms_with({"_target_": "NormalizeIntensityd", "subtrahend": 90.0}),
            "NormalizeIntensity with these arguments",
        ),
        (
            transforms_with({"_target_": "ScaleIntensityRanged", **RANGE, "b_max": None}),
            "ScaleIntensityRange with these arguments",
        ),
        (
            transforms_with({"_target_": "ScaleIntensityRanged", **RANGE, "b_max": RANGE["b_min"]}),
            "range that is empty",
        ),
        (
            {
                "inference": {
                    "preprocessing": {
                        "transforms": [{"_target_": "Spacingd", "pixdim": [1.0, 1.0, -1.0]}]
                    }
                }
            },
            "voxel size other than three numbers",
        ),
        (
            {
                "inference": {
                    "postprocessing": {
                        "transforms": [{"_target_": "AsDiscreted", "threshold": 0.5}]
                    }
                }
            },
            "overlapping classes",
        ),
        ({"inference": {"roi": "$[96] * 3"}}, r"expression.*\[96\] \* 3.*write its value"),
        ({"inference": {"inferer": {"_target_": "SimpleInferer"}}}, "inferer of this bundle"),
        (
            {"inference": {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": -1}}},
            r"data\.patch\.0: -1 \(Input should be greater than 0\)",
        ),
        (
            {
                "inference": {
                    "postprocessing": {
                        "transforms": [{"_target_": "Activationsd", "sigmoid": True}]
                    }
                }
            },
            "overlapping classes",
        ),
        ({"metadata": {"network_data_format": {}}}, "does not name the channels of its outputs"),
    ],
)
def test_what_a_bundle_leaves_open_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    network = changes.pop("network", UNET)
    bundle = write_bundle(tmp_path / "bundle", UNET, **changes)
    if network is not UNET:
        path = bundle / "configs" / "inference.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"network_def": network}))
    refused(bundle, tmp_path, DataError, match)


def test_a_range_that_ends_at_zero_is_kept(tmp_path: Path) -> None:
    scale = {"_target_": "ScaleIntensityRanged", **RANGE, "b_min": -1.0, "b_max": 0.0}
    bundle = write_bundle(tmp_path / "bundle", **transforms_with(scale))
    (model,) = open_models(import_bundle(bundle, tmp_path / "out"))
    (kind,) = model.facts.preprocessing.normalisation or ()
    seen = [(value - kind.mean) / kind.std for value in (RANGE["a_min"], RANGE["a_max"])]
    assert seen == pytest.approx([-1, 0])


def test_a_step_after_the_network_that_is_left_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = [{"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}]
    changes = {"postprocessing": {"transforms": steps}}
    import_bundle(write_bundle(tmp_path / "bundle", inference=changes), tmp_path / "out")
    assert "does not apply KeepLargestConnectedComponent" in caplog.text


def refused(bundle: Path, tmp_path: Path, error: type[UserError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        import_bundle(bundle, tmp_path / "out")
    assert len(caught.value.screen()) < 1500
    assert not (tmp_path / "out").exists()


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path, model_run: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    file = bundle / "models" / "model.pt"
    torch.save(built(NETWORKS["segresnet"]).state_dict(), file)
    refused(bundle, tmp_path, CheckpointError, "not the weights of")
    file.write_bytes(b"nothing")
    refused(bundle, tmp_path, UserError, r"model\.pt")
    (bundle / "configs" / "metadata.json").write_text("{")
    refused(bundle, tmp_path, DataError, r"metadata\.json")
    ours = export_model(model_run, tmp_path / "ours", form="bundle")
    refused(ours, tmp_path, UserError, "a model folder already")
