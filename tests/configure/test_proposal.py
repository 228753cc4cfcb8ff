"""The file for a store: what it holds, that it trains, and what it advises."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from segresmamba.cli.main import main
from segresmamba.config import load_config
from segresmamba.config.networks import SegResMambaFineConfig
from segresmamba.configure import Proposal, Request, configure
from segresmamba.configure.proposal import Cases, advice
from segresmamba.data import convert
from segresmamba.data.store.manifest import Manifest, read_manifest
from segresmamba.errors import ConfigError


@pytest.fixture(scope="module")
def ct_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases of 12 slices of 5 mm with 48 x 48 pixels of 0.8 mm; labels name both sides."""
    folder = tmp_path_factory.mktemp("ct")
    rng = np.random.default_rng(0)
    affine = np.diag([0.8, 0.8, 5, 1])
    for case in range(5):
        label = np.zeros((48, 48, 12), np.uint8)
        label[8:20, 10:30, 3:9], label[28:40, 10:30, 3:9] = 1, 2
        image = np.where(label > 0, 100, -1000) + rng.integers(-20, 20, label.shape)
        for name, voxels in (("labelsTr/c{}", label), ("imagesTr/c{}_0000", image)):
            path = folder / f"raw/{name.format(case)}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(voxels.astype(np.int16), affine).to_filename(path)
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney_left": 1, "kidney_right": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "raw/dataset.json").write_text(json.dumps(described))
    convert(folder / "raw", folder / "ct.zarr")
    return folder / "ct.zarr"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["segresmamba", *map(str, words)])
    with pytest.raises(SystemExit) as ending:
        main()
    return int(ending.value.code or 0)


def test_the_proposal_for_a_ct_of_thick_slices_trains_without_other_words(
    ct_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run(monkeypatch, "configure", ct_store, "--gpu-memory-gib", 8, "--budget-h", 2) == 0
    file = Path(f"{ct_store}.yaml")
    printed = capsys.readouterr().out
    assert f"settings: {file}" in printed
    assert torch.cuda.is_available() or "--model segresmamba_fine_small" in printed
    config = load_config([f"data.store={ct_store}"])
    assert config.augment.flip_axes == ("D", "H")
    assert config.augment.rotation_axes == ("D",)
    assert config.augment.scaling_axes == ("H", "W")
    assert config.data.patch == (8, 48, 48)
    assert isinstance(config.model, SegResMambaFineConfig)
    assert config.model.dims == (48, 96)
    assert config.model.deep_supervision
    assert config.plan.gpu_memory_gib == 8
    smaller = [
        "model.dims=[8,8]", "model.fine_channels=8", "model.d_state=4",
        "train.max_steps=2", "train.warmup_steps=0",
        "train.precision=fp32", "train.threads=1", "data.workers=0", "tracking=none",
        f"run.root={tmp_path}", "run.name=one",
    ]  # fmt: skip
    assert run(monkeypatch, "train", f"data.store={ct_store}", *smaller) == 0
    assert "finished at step 2" in capsys.readouterr().out


def test_every_value_has_its_reason_and_is_taken(tiny_store: Path, tmp_path: Path) -> None:
    proposal = configure(Request(str(tiny_store), gpus=2, model="unet"))
    config = load_config([f"config={proposal.write(tmp_path / 'mine.yaml')}"])
    assert (config.model.name, config.cluster.world_size) == ("unet", 2)
    lines = proposal.text.splitlines()
    values = [number for number, line in enumerate(lines) if line[:2] == "  " and line[2] != "#"]
    assert len(values) > 12
    assert all(lines[number - 1].startswith("  # ") for number in values)
    assert max(map(len, lines)) <= 100
    # One digit would make 1.05 of 1.06 GiB look like too much.
    reasons = " ".join(proposal.text.replace("#", " ").split())
    assert re.search(r"a step takes \d+\.\d\d of 8 GiB", reasons)


def test_the_file_repeats_what_a_preset_changes_in_its_network(tiny_store: Path) -> None:
    proposal = configure(Request(str(tiny_store), model="segresmamba_fine_small"))
    assert "  fine_channels: 8\n" in proposal.text


def test_a_store_of_one_voxel_size_needs_no_advice(tiny_store: Path, ct_store: Path) -> None:
    for store in (tiny_store, ct_store):
        assert advice(Request(str(store)), Cases.of(read_manifest(store))) == []


def test_mixed_voxel_sizes_and_unclipped_ct_are_worth_another_store(ct_store: Path) -> None:
    manifest = read_manifest(ct_store)
    cases = {
        name: record.model_copy(update={"spacing_mm": (1.0 + number, 0.8, 0.8)})
        for number, (name, record) in enumerate(manifest.cases.items())
    }
    zscore = manifest.preprocessing.model_copy(update={"normalisation": ()})
    mixed: Manifest = manifest.model_copy(update={"cases": cases, "preprocessing": zscore})
    *reasons, command = advice(Request(str(ct_store)), Cases.of(mixed))
    assert len(reasons) == 2
    assert "100% of the cases" in reasons[0]
    assert f"segresmamba convert {manifest.storage.source} ct-better.zarr" in command
    assert "--spacing 1.4,0.8,0.8 --intensity ct," in command
    policy = manifest.storage.policy.model_copy(update={"intensity": ("ct-clipped",)})
    storage = manifest.storage.model_copy(update={"policy": policy})
    clipped = manifest.model_copy(update={"cases": cases, "storage": storage})
    assert "--intensity ct-clipped," in advice(Request(str(ct_store)), Cases.of(clipped))[-1]


def test_the_file_lies_beside_the_store_or_here_for_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Proposal("s3://bucket/mine.zarr", "a: 1\n", ()).write() == Path("mine.zarr.yaml")
    assert Proposal(f"{tmp_path}/store/", "a: 1\n", ()).write() == tmp_path / "store.yaml"
    assert Proposal("store", "a: 1\n", ()).write() == Path("store.yaml")  # the same again
    with pytest.raises(ConfigError, match="may have been edited"):
        Proposal("store", "a: 2\n", ()).write()
    assert Path("store.yaml").read_text() == "a: 1\n"
    with pytest.raises(ConfigError, match="cannot be written"):
        Proposal("x", "a: 1\n", ()).write(tmp_path / "absent" / "mine.yaml")
