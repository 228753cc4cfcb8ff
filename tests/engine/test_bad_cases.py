"""A run goes on without a few damaged cases, and says which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segresmamba.config import DataConfig
from segresmamba.data import convert, open_dataset
from segresmamba.data.store import layout
from segresmamba.engine import train
from segresmamba.errors import DataError
from tests.conftest import write_nnunet_dataset
from tests.damage import lose
from tests.engine.ranks import RankPool
from tests.engine.tiny import journal_losses, tiny_config

SIX = ("train.max_steps=6", "train.checkpoint_every=3")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cases: two are held out, and one may be damaged."""
    folder = tmp_path_factory.mktemp("ten")
    convert(write_nnunet_dataset(folder / "raw", cases=10, size=34, channels=1), folder / "store")
    return folder / "store"


def damaged(sound: Path, store: Path, *case_ids: str) -> Path:
    """A copy of the store in which these cases have lost their image."""
    shutil.copytree(sound, store)
    for case_id in case_ids:
        lose(layout.shard_file(store / case_id / layout.IMAGE, 4))
    return store


def tags(run: Path) -> list[str]:
    """Every value of the tag bad_cases, as the journal has it."""
    records = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    values = [record["values"] for record in records if record["kind"] == "tags"]
    return [found["bad_cases"] for found in values if "bad_cases" in found]


def train_on(store: Path, root: Path) -> None:
    train(tiny_config(store, root, *SIX))


def test_a_run_names_a_damaged_case_and_resumes_with_the_same_crops(
    sound: Path, tmp_path: Path, two_ranks: RankPool, caplog: pytest.LogCaptureFixture
) -> None:
    bad = open_dataset(sound).splits[0]["train"][0]
    store, run = damaged(sound, tmp_path / "store", bad), tmp_path / "tiny"
    train_on(store, tmp_path)
    assert f"case {bad} is damaged and set aside, 1 of at most 1" in caplog.text
    assert tags(run) == [f"1: {bad}"]
    whole = journal_losses(run)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    (run / "journal.jsonl").unlink()
    train_on(store, tmp_path)
    assert journal_losses(run) == pytest.approx({s: whole[s] for s in (4, 5, 6)}, abs=1e-5)
    two_ranks.run(train_on, store, tmp_path / "two")
    assert journal_losses(tmp_path / "two" / "tiny") == pytest.approx(whole, abs=1e-4)
    assert tags(tmp_path / "two" / "tiny") == [f"1: {bad}"]


def test_a_damaged_validation_case_is_left_out_of_the_mean_aloud(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = open_dataset(sound).splits[0]["val"][0]
    train(tiny_config(damaged(sound, tmp_path / "store", bad), tmp_path))
    assert "1 of 2 cases of the held-out fold are damaged; the mean is that of the" in caplog.text
    assert tags(tmp_path / "tiny") == [f"1: {bad}"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_more_than_allowed_ends_the_run_with_their_names(
    sound: Path, tmp_path: Path, part: str
) -> None:
    bad = open_dataset(sound).splits[0][part][:2]
    store = damaged(sound, tmp_path / "store", *bad)
    with pytest.raises(DataError) as error:
        train(tiny_config(store, tmp_path, *SIX))
    assert error.value.problem == "2 stored cases are damaged, and data.max_bad_cases allows 1"
    assert error.value.got == ", ".join(bad)


def test_a_fold_without_a_sound_case_is_not_validated(sound: Path, tmp_path: Path) -> None:
    bad = open_dataset(sound).splits[0]["val"]
    store = damaged(sound, tmp_path / "store", *bad)
    with pytest.raises(DataError, match="nothing is left to validate"):
        train(tiny_config(store, tmp_path, "data.max_bad_cases=5"))


@pytest.mark.parametrize(
    ("cases", "allowed"), [(5, 0), (9, 0), (10, 1), (150, 1), (250, 2), (1251, 12)]
)
def test_one_percent_but_at_least_one_of_ten_may_be_damaged(cases: int, allowed: int) -> None:
    config = DataConfig(store="x", patch=(1, 1, 1))
    assert config.bad_cases_allowed(cases) == allowed
    assert DataConfig(store="x", patch=(1, 1, 1), max_bad_cases=7).bad_cases_allowed(cases) == 7
