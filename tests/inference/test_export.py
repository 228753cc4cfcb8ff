"""A model folder has all that a model needs, and nothing of the machine that it was trained on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from segresmamba.data import open_dataset
from segresmamba.errors import CheckpointError, ConfigError, DataError, UserError
from segresmamba.inference import export
from segresmamba.inference.export import export_model, scratch_beside
from segresmamba.inference.model import load_model
from segresmamba.inference.portable import Form, write_portable
from segresmamba.inference.postprocessing import Postprocessing, Rule, write_postprocessing
from segresmamba.inference.trained import open_models
from segresmamba.storage.digest import file_digest
from segresmamba.storage.run_folder import RunFolder, write_config
from segresmamba.task.starting_weights import load_starting_weights
from segresmamba.task.weights import load_network, read_weights, save_weights
from segresmamba.tracking.energy.ledger import Ledger
from segresmamba.tracking.journal import Journal
from tests.cli.test_main import run as run_command
from tests.damage import flip
from tests.inference.conftest import noise, write_run

PROFILE = {"cases": 17, "median_spacing_mm": [3.0, 0.75, 0.75]}


@pytest.fixture
def recorded_run(tmp_path: Path) -> Path:
    """A run with a journal, energy, an evaluation and a server with a password."""
    store, uri = str(tmp_path / "patients.zarr"), "https://me:hunter22@server/path"
    run = write_run(tmp_path / "run", data={"store": store}, tracking={"uri": uri})
    journal = Journal(RunFolder(run).journal, name="run")
    journal.append("dataset", name="spleens", digest="crc32c:1234", source=store, profile=PROFILE)
    journal.close()
    Ledger(run).update(Ledger(run).claim({}), {"energy_kwh": 1.5, "emissions_kg": 0.25})
    results = {"classes": {"ball": {"dice": 0.8125}}, "cases": {"patient-0815": {}}}
    RunFolder(run).results.write_text(json.dumps(results))
    return run


def test_an_exported_model_is_the_run_without_the_run(model_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(model_run, tmp_path / "run"))
    (model,) = open_models(run)
    expected = load_network(model.weights, model.config)
    export_model(run, tmp_path / "exported")
    shutil.rmtree(run)
    moved = (tmp_path / "exported").rename(tmp_path / "moved")
    (exported,) = open_models(moved)
    assert exported.facts == model.facts
    assert exported.config.model == model.config.model
    found = load_network(exported.weights, exported.config)
    torch.testing.assert_close(found.network.state_dict(), expected.network.state_dict())
    assert {path.name for path in moved.iterdir()} == {
        *("model.json", "config-0.yaml", "weights-0.safetensors", "README.md")
    }


def test_each_file_has_its_digest(model_run: Path, tmp_path: Path) -> None:
    out = export_model(model_run, tmp_path / "out")
    files = json.loads((out / "model.json").read_text())["files"]
    assert files == {
        path.name: file_digest(path) for path in out.iterdir() if path.name != "model.json"
    }


def test_runs_of_a_folder_become_one_model_of_several(fold_runs: Path, tmp_path: Path) -> None:
    out = export_model(fold_runs, tmp_path / "out")
    models = open_models(out)
    assert [model.config.seed for model in models] == [1, 2]
    assert "outputs of 2 networks (unet) are averaged" in (out / "README.md").read_text()


def test_the_card_says_what_the_run_recorded(recorded_run: Path, tmp_path: Path) -> None:
    out = export_model(recorded_run, tmp_path / "out", licence="CC-BY-4.0")
    card = (out / "README.md").read_text()
    for fact in (
        "# ball, box",
        "Input: t1",
        "Labels: 0 background, 1 ball, 5 box",
        "CC-BY-4.0",
        "spleens, 17 cases",
        "3 x 0.75 x 0.75 mm",
        "1.5 kWh",
        "0.25 kg CO2",
        "mean Dice 0.5000 in training; evaluated: ball 0.8125",
        "not a medical device",
    ):
        assert fact in card
    assert json.loads((out / "fingerprint.json").read_text()) == PROFILE


def test_nothing_in_it_names_a_place_a_person_or_a_secret(
    recorded_run: Path, tmp_path: Path
) -> None:
    out = export_model(recorded_run, tmp_path / "out")
    content = b"".join(path.read_bytes() for path in out.iterdir())
    for private in (str(tmp_path), "patients.zarr", "hunter22", "server", "patient-0815"):
        assert private.encode() not in content


RULE = Rule(name="ball", values=(1,), keep_largest=True)


def test_rules_go_along_without_the_names_of_cases(model_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(model_run, tmp_path / "run"))
    record = Postprocessing(step=7, rules=(RULE,), cases=("patient-0815",))
    write_postprocessing(RunFolder(run).best, record)
    out = export_model(run, tmp_path / "out")
    (model,) = open_models(out)
    assert model.postprocessing == (RULE,)
    assert "patient-0815" not in (out / "model.json").read_text()


def test_rules_that_differ_are_left_out(
    fold_runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folds = Path(shutil.copytree(fold_runs, tmp_path / "folds"))
    write_postprocessing(RunFolder(folds / "fold1").best, Postprocessing(step=7, rules=(RULE,)))
    out = export_model(folds, tmp_path / "out")
    assert not any(model.postprocessing for model in open_models(out))
    assert "different post-processing rules" in caplog.text


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_other_runtimes_compute_the_same_logits(
    model_run: Path, tmp_path: Path, form: Form
) -> None:
    out = export_model(export_model(model_run, tmp_path / "model"), tmp_path / "out", form=form)
    (model,) = open_models(out)
    x_BCDHW = torch.randn(1, 1, *model.config.data.patch)
    with torch.no_grad():
        expected = load_network(model.weights, model.config).network.eval()(x_BCDHW)
    if form == "pt2":
        found = torch.export.load(out / "network-0.pt2").module()(x_BCDHW)
    else:
        session = onnxruntime.InferenceSession(out / "network-0.onnx")
        found = torch.from_numpy(session.run(["logits"], {"image": x_BCDHW.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert f"network-0.{form}" in json.loads((out / "model.json").read_text())["files"]


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # that it runs code
def test_monai_runs_the_folder_as_a_bundle(model_run: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser
    from monai.bundle import run as run_bundle

    out, images, labels = (tmp_path / name for name in ("out", "images", "labels"))
    export_model(model_run, out, form="bundle")
    images.mkdir()
    image = nib.Nifti1Image(noise(20, 18, 24), np.diag([1.0, 1, 2, 1]))
    image.to_filename(images / "case_0000.nii.gz")
    configs = out / "configs"
    run_bundle(
        config_file=str(configs / "inference.json"),
        meta_file=str(configs / "metadata.json"),
        bundle_root=str(out),
        dataset_dir=str(images),
        output_dir=str(labels),
        device="cpu",
    )
    found = np.asarray(nib.load(labels / "case.nii.gz").dataobj)
    expected = load_model(model_run, device="cpu").segment(images / "case_0000.nii.gz")
    np.testing.assert_array_equal(found, expected.array)
    parser = ConfigParser()
    parser.read_config(configs / "inference.json")
    (model,) = open_models(out)
    parser.get_parsed_content("network_def").load_state_dict(read_weights(model.weights)[0])


def test_a_network_with_scans_is_not_written_in_a_form_that_lacks_them(tmp_path: Path) -> None:
    network = {"name": "segresmamba", "dims": [8, 8], "d_state": 4}
    run = write_run(tmp_path / "run", model=network)
    with pytest.raises(ConfigError, match=r"selective scans cannot be written as onnx.*4,096"):
        export_model(run, tmp_path / "out", form="onnx")
    assert not (tmp_path / "out").exists()
    assert export_model(run, tmp_path / "out")


def test_a_form_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    class Unsteady(nn.Module):
        calls = 0

        def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
            Unsteady.calls += 1  # exported as the number that it then is
            return x_BCDHW * Unsteady.calls

    with pytest.raises(UserError, match="computes other logits"):
        write_portable(Unsteady(), torch.ones(1, 1, 4, 4, 4), tmp_path / "network.pt2", "pt2")


def test_the_command_writes_one_screen_for_a_mistake(
    model_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run_command(monkeypatch, "export", model_run, "--out", out) == 0
    assert run_command(monkeypatch, "export", model_run, "--out", out) == 2
    assert run_command(monkeypatch, "export", model_run, "--out", tmp_path / "b", "--to", "x") == 2
    text = capsys.readouterr().err
    assert "the place to export to is in use" in text
    assert "choose onnx, pt2, bundle, nnunet" in text


def test_a_training_starts_from_a_model_folder(model_run: Path, tmp_path: Path) -> None:
    out = export_model(model_run, tmp_path / "out")
    (model,) = open_models(out)
    network = load_network(model.weights, model.config).network
    assert len(load_starting_weights(out, network, 1).taken) == len(network.state_dict())


def test_a_place_in_use_is_left_alone(model_run: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    with pytest.raises(ConfigError, match="the place to export to is in use"):
        export_model(model_run, tmp_path / "used")
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "mine"]
    (tmp_path / "empty").mkdir()
    with contextlib.chdir(tmp_path / "empty"), pytest.raises(ConfigError, match="that you are in"):
        export_model(model_run, Path())
    assert open_models(export_model(model_run, tmp_path / "empty"))


def test_a_place_that_cannot_be_written_is_one_screen(model_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"model folder cannot be written.*Not a directory"):
        export_model(model_run, tmp_path / "file" / "out")
    with (
        pytest.raises(UserError, match="model folder cannot be written"),
        scratch_beside(tmp_path / "file" / "out"),
    ):
        pass


def test_what_cannot_be_exported_leaves_nothing_behind(
    model_run: Path, fold_runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="a model folder already"):
        export_model(export_model(model_run, tmp_path / "once"), out)
    unfinished = Path(shutil.copytree(model_run, tmp_path / "unfinished"))
    shutil.rmtree(unfinished / "best")
    with pytest.raises(CheckpointError, match="name a run that has finished a validation"):
        export_model(unfinished, out)
    folds = Path(shutil.copytree(fold_runs, tmp_path / "folds"))
    write_run(folds / "fold3", labels={"background": 0, "liver": 1, "box": 5})
    with pytest.raises(DataError, match="different labels cannot be averaged"):
        export_model(folds, out)
    damaged = Path(shutil.copytree(model_run, tmp_path / "damaged"))
    flip(RunFolder(damaged).best)
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        export_model(damaged, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".part-*"))


def test_changed_files_and_missing_tensors_of_a_model_folder_are_refused(
    model_run: Path, tmp_path: Path
) -> None:
    out = export_model(model_run, tmp_path / "out")
    (model,) = open_models(out)
    weights, facts = read_weights(model.weights)
    name = list(weights)[-1]
    del weights[name]
    save_weights(model.weights, weights, facts)
    with pytest.raises(CheckpointError, match=f"another architecture.*{name}: absent"):
        load_network(model.weights, model.config)
    write_config(model.config.model_copy(update={"seed": 9}), out / "config-0.yaml")
    with pytest.raises(DataError, match=r"config-0\.yaml: checksum"):
        open_models(out)


def test_what_is_written_is_compared_on_a_case_of_the_store(
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = open_dataset(tiny_store)
    run = write_run(
        tmp_path / "run",
        channels=tuple(dataset.channel_names),
        data={"store": str(tiny_store), "patch": [16, 64, 16]},  # larger than the case
        preprocessing=dataset.preprocessing,
    )
    windows: list[torch.Tensor] = []
    monkeypatch.setattr(
        export, "write_portable", lambda network, window, path, form: windows.append(window)
    )
    export_model(run, tmp_path / "out", form="pt2")
    image_CDHW, _ = dataset[dataset.case_ids[0]].read()
    shape = image_CDHW.shape[1:]
    first = [(size - 16) // 2 for size in (shape[0], shape[2])]
    middle = image_CDHW[:, first[0] : first[0] + 16, :, first[1] : first[1] + 16]
    found = windows[0][0]
    assert found.shape == (len(image_CDHW), 16, 64, 16)
    for raw, seen in zip(torch.from_numpy(middle), found, strict=True):
        both = torch.stack([raw.float().flatten(), seen[:, : shape[1]].flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.999
    with caplog.at_level("INFO"):
        export_model(tmp_path / "out", tmp_path / "again", form="pt2")
    assert "a model folder has no store: what is written is compared on noise" in caplog.text
    assert windows[1][0].shape == found.shape


def test_weights_that_a_killed_export_was_reading_are_deleted(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "model") as scratch:
        left = scratch.with_name(scratch.name.replace(f"-{os.getpid()}-", f"-{10**9}-"))
    left.mkdir()
    (left / "weights.safetensors").touch()
    with scratch_beside(tmp_path / "model") as scratch:
        assert list(tmp_path.iterdir()) == [scratch]
    assert not list(tmp_path.iterdir())
