"""A model that nnU-Net trained gives the labels here that nnU-Net's own predictor gives.

`fixtures/nnunet/record.py` says how models, images and labels were recorded.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import zarr

from segresmamba.errors import CheckpointError, ConfigError, DataError, UserError
from segresmamba.inference.import_nnunet import import_nnunet
from segresmamba.inference.model import load_model
from segresmamba.inference.trained import open_models
from segresmamba.task.weights import load_network
from tests.cli.test_main import run

pytest.importorskip("dynamic_network_architectures", reason="nnU-Net's networks come from it")

FIXTURES = Path(__file__).parent / "fixtures" / "nnunet"
RESULT = "nnUNetTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture(scope="module", params=["ct", "mr"])
def case(request: pytest.FixtureRequest) -> Path:
    """A recorded model, its image and its labels."""
    return FIXTURES / str(request.param)


@pytest.fixture(scope="module")
def imported(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_nnunet(case / RESULT, tmp_path_factory.mktemp("models") / case.name)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result folder of nnU-Net to be changed."""
    return Path(shutil.copytree(FIXTURES / "ct" / RESULT, tmp_path / RESULT))


@pytest.mark.parametrize(("tta", "name"), [(False, "label"), (True, "label_mirrored")])
def test_the_labels_are_those_of_nnunet(case: Path, imported: Path, tta: bool, name: str) -> None:
    files = sorted(case.glob("case_*.nii.gz"))
    label = load_model(imported, device="cpu", tta=tta).segment([str(file) for file in files])
    expected = nib.load(case / f"{name}.nii.gz")
    assert (label.array == np.asarray(expected.dataobj)).mean() > 0.999
    np.testing.assert_array_equal(label.affine, nib.load(files[0]).affine)


def test_probabilities_lie_on_the_axes_of_the_file(case: Path, imported: Path) -> None:
    files = [str(file) for file in sorted(case.glob("case_*.nii.gz"))]
    model = load_model(imported, device="cpu")
    label = model.segment(files, probabilities=True)
    assert label.probabilities.shape[1:] == label.array.shape
    core = label.probabilities[model.outputs.index("lesion" if case.name == "ct" else "core")]
    assert core[label.array == 2].mean() > 0.7
    assert core[label.array == 0].mean() < 0.05


def test_an_array_gives_the_labels_of_its_file(case: Path, imported: Path) -> None:
    images = [nib.load(file) for file in sorted(case.glob("case_*.nii.gz"))]
    array_CDHW = np.stack([np.asarray(image.dataobj).T for image in images])
    spacing_mm = tuple(float(size) for size in images[0].header.get_zooms()[::-1])
    model = load_model(imported, device="cpu")
    label = model.segment(array_CDHW, spacing_mm=spacing_mm, probabilities=True)
    expected = np.asarray(nib.load(case / "label.nii.gz").dataobj).T
    assert (label.array == expected).mean() > 0.999
    assert label.probabilities.shape[1:] == expected.shape


def test_a_user_goes_from_a_result_folder_of_nnunet_to_a_label_map(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for file in case.glob("case_*.nii.gz"):
        shutil.copy(file, tmp_path / "images")
    model, images, labels = (tmp_path / name for name in ("model", "images", "labels"))
    assert run(monkeypatch, "import", case / RESULT, "--out", model) == 0
    assert run(monkeypatch, "predict", model, images, labels, "--probabilities") == 0
    found, expected = (nib.load(place) for place in (labels / "case.nii.gz", case / "label.nii.gz"))
    assert (np.asarray(found.dataobj) == np.asarray(expected.dataobj)).mean() > 0.999
    file = nib.load(next(images.glob("case_*")))
    np.testing.assert_array_equal(found.affine, file.affine)
    assert run(monkeypatch, "import", case / RESULT, "--out", model) == 2
    assert "the place to export to is in use" in capsys.readouterr().err
    # Where the probabilities lie: the voxel that is most surely foreground is labelled.
    group = zarr.open_group(labels / "case.probabilities.zarr", mode="r")
    place_DHW = np.unravel_index(np.asarray(group["0"][-1]).argmax(), group["0"].shape[1:])
    to_ras = np.array(group.attrs["segresmamba"]["affine"])
    place_XYZ = np.linalg.inv(file.affine) @ to_ras @ [*place_DHW[::-1], 1]
    assert np.asarray(found.dataobj)[tuple(np.rint(place_XYZ[:3]).astype(int))] == 2


def test_what_is_known_of_the_model_comes_along(case: Path, imported: Path) -> None:
    (model,) = open_models(imported)
    record = json.loads((imported / "model.json").read_text())
    assert (model.facts.step, model.facts.dice) == (1000, 0.75)
    assert model.config.augment.flip_axes == ("D", "H")
    assert (
        record["members"][0]["dataset"] == f"Dataset90{1 + (case.name == 'mr')}_{case.name.upper()}"
    )
    if case.name == "ct":
        assert model.facts.labels == {"background": 0, "organ": 1, "lesion": 2}
        assert record["members"][0]["scores"] == {"organ": 0.875}
    else:
        assert model.facts.labels == {"background": 0, "label 1": 1, "core": 2}
        assert model.config.data.regions == {"whole": (1, 2), "core": (2,)}


def test_each_trained_fold_is_a_member(result: Path, tmp_path: Path) -> None:
    shutil.copytree(result / "fold_0", result / "fold_1")
    out = import_nnunet(result, tmp_path / "out")
    assert len(open_models(out)) == 2
    assert "fold_1" in (out / "README.md").read_text()


def test_plans_from_before_version_2_4_are_read(result: Path, tmp_path: Path) -> None:
    expected = import_nnunet(result, tmp_path / "new")

    def older(full: dict[str, Any]) -> None:
        found = full.pop("architecture")["arch_kwargs"]
        full["UNet_class_name"] = "PlainConvUNet"
        full["UNet_base_num_features"], full["unet_max_num_features"] = 6, 10
        full["n_conv_per_stage_encoder"] = found["n_conv_per_stage"]
        full["n_conv_per_stage_decoder"] = found["n_conv_per_stage_decoder"]
        full["conv_kernel_sizes"] = found["kernel_sizes"]
        full["pool_op_kernel_sizes"] = found["strides"]

    change_plans(result, older)
    assert open_models(import_nnunet(result, tmp_path / "old")) != []
    assert (tmp_path / "old" / "config-0.yaml").read_text() == (
        expected / "config-0.yaml"
    ).read_text()


def change_plans(result: Path, change: Callable[[dict[str, Any]], None]) -> None:
    plans = json.loads((result / "plans.json").read_text())
    change(plans["configurations"]["3d_fullres"])
    (result / "plans.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"previous_stage": "3d_lowres"}, "a cascade cannot be imported"),
        ({"patch_size": [32, 32]}, "a network of slices cannot be imported"),
        ({"normalization_schemes": ["MyNormalization"]}, "MyNormalization"),
        ({"preprocessor_name": "MyPreprocessor"}, "MyPreprocessor"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resample_torch_fornnunet"),
        ({"resampling_fn_data_kwargs": {"order": 1}}, "the resampling of data"),
    ],
)
def test_plans_that_cannot_be_carried_over_are_refused_by_name(
    result: Path, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    change_plans(result, lambda full: full.update(changes))
    refused(result, tmp_path, DataError, match)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv_op", "torch.nn.modules.conv.Conv2d"),
        ("norm_op", "torch.nn.BatchNorm3d"),
        ("dropout_op", "torch.nn.Dropout3d"),
        ("nonlin_kwargs", {"inplace": True, "negative_slope": 0.2}),
        ("squeeze_excitation", True),
    ],
)
def test_networks_that_are_put_together_otherwise_are_refused_by_name(
    result: Path, tmp_path: Path, key: str, value: object
) -> None:
    change_plans(result, lambda full: full["architecture"]["arch_kwargs"].update({key: value}))
    refused(result, tmp_path, DataError, f"this network cannot be imported.*{key}=")


def test_regions_that_are_painted_otherwise_are_refused(tmp_path: Path) -> None:
    result = Path(shutil.copytree(FIXTURES / "mr" / RESULT, tmp_path / RESULT))
    dataset = json.loads((result / "dataset.json").read_text())
    dataset["regions_class_order"] = [2, 1]
    (result / "dataset.json").write_text(json.dumps(dataset))
    refused(result, tmp_path, DataError, "writes label")


class Exploit:
    """Its pickle runs code when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "ran")


def test_a_pickle_is_refused_and_does_not_run(result: Path, tmp_path: Path) -> None:
    file, ran = result / "fold_0" / "checkpoint_final.pth", tmp_path / "ran"
    content = torch.load(file, weights_only=False)  # recorded by us
    torch.save(content | {"trainer_name": Exploit(ran)}, file)
    refused(result, tmp_path, CheckpointError, "may run any code")
    file.write_bytes(pickle.dumps(Exploit(ran)))
    refused(result, tmp_path, CheckpointError, "cannot be read")
    assert not ran.exists()


def test_damaged_missing_and_foreign_files_are_refused(result: Path, tmp_path: Path) -> None:
    file = result / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)  # recorded by us
    weights = content["network_weights"]
    name = next(key for key in weights if key.endswith("conv.weight"))
    torch.save(content | {"network_weights": weights | {name: weights[name][:2]}}, file)
    refused(result, tmp_path, CheckpointError, "holds another architecture")
    torch.save(content | {"network_weights": weights | {name: weights[name] * np.nan}}, file)
    refused(result, tmp_path, CheckpointError, "not all finite")
    torch.save({"network_weights": weights}, file)
    refused(result, tmp_path, DataError, "lack something.*init_args")
    file.write_bytes(file.read_bytes()[:1000])
    refused(result, tmp_path, CheckpointError, "cannot be read")
    file.unlink()
    refused(result, tmp_path, DataError, "there is no trained fold")
    (result / "dataset.json").write_text("{")
    refused(result, tmp_path, DataError, r"dataset\.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConfigError, match="in use"):
        import_nnunet(FIXTURES / "ct" / RESULT, tmp_path / "out")


def refused(result: Path, tmp_path: Path, error: type[UserError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        import_nnunet(result, tmp_path / "out")
    assert len(caught.value.screen()) < 1500
    assert ".part-" not in caught.value.where
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".part-*"))


def test_an_imported_model_is_loaded_as_any_other(imported: Path) -> None:
    (model,) = open_models(imported)
    names = load_network(model.weights, model.config).network.state_dict()
    assert all(name.startswith("network.") for name in names)


def test_the_postprocessing_of_the_same_folds_is_carried_over(
    result: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = result / "crossval_results_folds_0"
    folder.mkdir()
    (folder / "postprocessing.pkl").write_bytes(pickle.dumps(Exploit(tmp_path / "ran")))
    import_nnunet(result, tmp_path / "without")
    assert "or a pickle: not applied" in caplog.text
    keep = "remove_all_but_largest_component_from_segmentation"
    found: dict[str, Any] = {
        "postprocessing_fns": [keep, keep],
        "postprocessing_kwargs": [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 2}],
    }
    (folder / "postprocessing.json").write_text(json.dumps(found))
    (model,) = open_models(import_nnunet(result, tmp_path / "with"))
    assert [(rule.name, rule.values) for rule in model.postprocessing] == [
        ("foreground", (1, 2)), ("lesion", (2,)),
    ]  # fmt: skip
    assert all(rule.keep_largest for rule in model.postprocessing)
    found["postprocessing_fns"][1] = "my_own_function"
    (folder / "postprocessing.json").write_text(json.dumps(found))
    refused(result, tmp_path, DataError, "my_own_function")
    assert not (tmp_path / "ran").exists()
