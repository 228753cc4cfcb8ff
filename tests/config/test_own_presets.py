"""Presets of the user's own: found, preferred, named in the log, and found again by jobs."""

import logging
import shutil
from pathlib import Path

import pytest

from segresmamba.config import config_digest, load_config, own_presets, read_config
from segresmamba.config.own_presets import with_own_presets
from segresmamba.errors import ConfigError
from segresmamba.storage.run_folder import write_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with spaces in its name, two data presets, a model, and a root that is not read."""
    folder = tmp_path / "my presets, all"
    for group in ("data", "model", "other"):
        (folder / group).mkdir(parents=True)
    (folder / "data/mine.yaml").write_text("store: mine.zarr\npatch: [32, 48, 64]\n")
    (folder / "data/more.yaml").write_text("defaults: [brats, _self_]\nstore: b.zarr\nworkers: 9\n")
    (folder / "data/empty.yaml").write_text("# nothing\n")
    (folder / "model/unet.yaml").write_text("name: unet\nnum_res_units: 0\n")
    (folder / "config.yaml").write_text("seed: 7\n")
    (folder / "other/mine.yaml").write_text("[not, a, preset")
    return folder


def test_a_preset_of_ones_own_is_taken_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_presets.say_preset.cache_clear()
    with caplog.at_level(logging.INFO):
        config = load_config(with_own_presets(["data=mine", "data.workers=3"], folder))
    assert (config.data.store, config.data.patch) == ("mine.zarr", (32, 48, 64))
    assert (config.data.workers, config.seed) == (3, 0)
    file = str(folder / "data/mine.yaml")
    assert caplog.messages == [f"data=mine is {file}, not a preset of the package"]
    assert config.run.own_presets == {"data": file}
    assert config.run.config_dir == folder


def test_it_comes_before_the_packages_and_may_build_on_them(folder: Path) -> None:
    config = load_config(with_own_presets(["model=unet", "data=more"], folder))
    assert config.model.model_dump()["num_res_units"] == 0
    assert (config.data.store, config.data.workers) == ("b.zarr", 9)
    assert config.data.regions == load_config(["data=brats", "data.store=x"]).data.regions


def test_a_preset_that_is_taken_without_a_word_can_be_replaced(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "train/default.yaml").write_text("max_steps: 5\n")
    assert load_config(with_own_presets([], folder)).train.max_steps == 5


def test_configs_of_the_working_folder_is_found_and_kept_as_an_absolute_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_own_presets(["seed=1"], None) == ["seed=1"]
    folder.rename(tmp_path / "configs")
    words = with_own_presets(["data=mine"], None)
    monkeypatch.chdir("/")
    assert load_config(words).data.store == "mine.zarr"
    assert with_own_presets(words, tmp_path) == words


def test_the_presets_of_a_checkout_are_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_presets.config_folder().parent)
    assert with_own_presets([], None) == []
    shutil.copytree(own_presets.config_folder(), tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert load_config(with_own_presets(["data=sample"], None)).run.own_presets == {}


def test_where_a_preset_came_from_makes_no_other_experiment(folder: Path, tmp_path: Path) -> None:
    config = load_config(with_own_presets(["data=mine"], folder))
    same = load_config(["data=custom", "data.store=mine.zarr", "data.patch=[32,48,64]",
                        "data.workers=1", "data.crops_per_case=1"])  # fmt: skip
    assert config_digest(config) == config_digest(same)
    write_config(config, tmp_path / "config.yaml")
    (folder / "data/mine.yaml").unlink()
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("words", "where", "text"),
    [
        (["data=mime"], "data", "did you mean mine?"),
        (["data=broken"], "{folder}/data/broken.yaml", "one `key: value` a line"),
        (["data=list"], "{folder}/data/list.yaml", "one `key: value` a line"),
    ],
)
def test_a_mistake_is_named(folder: Path, words: list[str], where: str, text: str) -> None:
    (folder / "data/broken.yaml").write_text("store: [unclosed\n")
    (folder / "data/list.yaml").write_text("- store\n")
    with pytest.raises(ConfigError) as caught:
        load_config(with_own_presets(words, folder))
    assert caught.value.where == where.format(folder=folder)
    assert text in caught.value.remedy


def test_a_preset_that_builds_on_itself_is_a_mistake(folder: Path) -> None:
    path = folder / "cluster" / "slurm.yaml"
    path.parent.mkdir()
    path.write_text("defaults:\n  - slurm\n")
    with pytest.raises(ConfigError, match="needs another name"):
        load_config(with_own_presets(["cluster=slurm"], folder))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not there"):
        load_config(with_own_presets([], tmp_path / "no"))
