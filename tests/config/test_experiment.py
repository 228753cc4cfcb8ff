"""A digest names an experiment for good: later versions find the runs of earlier ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from segresmamba.config import config_digest, load_config, run_folder
from segresmamba.config.experiment import _FIRST

# What the version at commit 72d9481 printed, and then the version at a819084, which counted the
# defaults of its new settings.
NAMED = {
    "": ("9d7f77a0", "ef56c3ad"),
    "model=segresnet": ("e49e5b36", "4bf75c87"),
    "model=swinunetr augment=paper": ("d586d685", "10d84a62"),
    "data=brats data.store=b.zarr model=segresmamba_small": ("76a1f022", "307e55de"),
    "train=sample augment=none seed=3": ("8649e728", "f7c869ac"),
    "model=segmamba": ("15012cc3", "768f44c2"),
    "model=mednext": ("859c2906", "a8eefe2f"),
    "model=resenc_unet": ("07a31cd8", "f0e0c174"),
}


@pytest.mark.parametrize("command", NAMED)
def test_runs_of_earlier_versions_are_found_again(tmp_path: Path, command: str) -> None:
    config = load_config([*command.split(), f"run.root={tmp_path}"])
    first, between = (tmp_path / f"{config.model.name}-{digest}" for digest in NAMED[command])
    assert run_folder(config) == first
    between.mkdir()
    assert run_folder(config) == between
    first.mkdir()  # a run of each: the older one is that of the command now
    assert run_folder(config) == first


def test_every_setting_counts_where_it_is_not_the_default() -> None:
    digests = {
        config_digest(load_config(words))
        for words in (
            [],
            ["augment.flip_axes=[D,H]"],
            ["loss=tversky"],
            ["train.epochs=3"],
            ["model.fine_channels=8"],
            ["data=brats", "data.store=sample.zarr"],
            ["data=brats", "data.store=sample.zarr", "data.regions.ET=[1]"],
        )
    }
    assert len(digests) == 7


def test_the_first_settings_are_still_there() -> None:
    known = load_config().model_dump()
    for key in _FIRST:
        section, _, name = key.partition(".")
        assert name in known[section] if name else section in known
