"""A run that is started again under other settings."""

from pathlib import Path

import pytest

from segresmamba.config import Config, load_config, run_folder
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import refuse_changes, write_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with a checkpoint."""
    config = mine(tmp_path)
    (run_folder(config) / "checkpoints" / "step-00000004").mkdir(parents=True)
    write_config(config, run_folder(config) / "config.yaml")
    return run_folder(config)


def mine(root: Path, *overrides: str) -> Config:
    return load_config([f"run.root={root}", "run.name=mine", *overrides])


def test_every_changed_setting_is_named_with_both_values(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_changes(mine(folder.parent, "train.lr=0.5", "model=segresnet"))
    assert "model.name: segresmamba -> segresnet" in caught.value.got
    assert "train.lr: 0.0001 -> 0.5" in caught.value.got
    assert "--allow-config-change" in caught.value.remedy


@pytest.mark.parametrize(
    "override",
    [
        "train.checkpoint_every=7",
        "cluster.time_min=5",
        "cluster.tasks_per_node=2",
        "train.zero_stage=3",
        "train.accumulation=2",
        "train.compile=true",
        "tracking.country=DEU",
        "data.store=/elsewhere",
        "run.allow_config_change=true",
    ],
)
def test_settings_that_do_not_change_the_result_may_change(folder: Path, override: str) -> None:
    refuse_changes(mine(folder.parent, override))


def test_who_asks_for_it_goes_on_with_other_settings(folder: Path) -> None:
    refuse_changes(mine(folder.parent, "train.lr=0.5", "run.allow_config_change=true"))


def test_a_run_without_a_checkpoint_has_nothing_to_lose(folder: Path) -> None:
    (folder / "checkpoints" / "step-00000004").rmdir()
    refuse_changes(mine(folder.parent, "train.lr=0.5"))
