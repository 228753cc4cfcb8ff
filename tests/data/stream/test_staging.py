from __future__ import annotations

import multiprocessing
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from segresmamba.data import open_dataset, stage, verify
from segresmamba.data.store.dataset import Dataset
from segresmamba.data.store.local_files import LocalFiles
from segresmamba.errors import ConfigError, DataError
from tests.data.store.test_files import zipped

CASES = ["case_0", "case_2"]
Usage = namedtuple("Usage", "total used free")


def copied(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/case_*"))


def test_only_the_cases_of_the_job_are_copied_and_they_read_the_same(
    sound_store: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(sound_store)
    staged = stage(dataset, CASES, str(tmp_path))
    assert staged.where.startswith(str(tmp_path))
    assert copied(tmp_path) == CASES
    assert staged.digest == dataset.digest
    for case_id in CASES:
        for one, other in zip(staged[case_id].read(), dataset[case_id].read(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_another_job_completes_what_is_there(sound_store: Path, tmp_path: Path) -> None:
    dataset = open_dataset(sound_store)
    first = stage(dataset, CASES, str(tmp_path))
    before = (Path(first.where) / "case_0" / "zarr.json").stat().st_ino
    stage(dataset, dataset.case_ids, str(tmp_path))
    assert copied(tmp_path) == list(dataset.case_ids)
    assert (Path(first.where) / "case_0" / "zarr.json").stat().st_ino == before
    assert verify(first.where) == []


def test_what_a_killed_job_left_is_copied_anew(
    sound_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(sound_store)
    copy = LocalFiles.copy

    def killed(self: LocalFiles, name: str, target: Path) -> None:
        if name.startswith("case_2/labels"):
            raise KeyboardInterrupt
        copy(self, name, target)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "copy", killed)
        with pytest.raises(KeyboardInterrupt):
            stage(dataset, CASES, str(tmp_path))
    assert copied(tmp_path) == ["case_0"]
    staged = stage(dataset, CASES, str(tmp_path))
    assert copied(tmp_path) == CASES
    assert not list(Path(staged.where).glob(".*"))


def _stage_and_count(dataset: Dataset, folder: str, copies: object) -> None:
    copy = LocalFiles.copy

    def counted(self: LocalFiles, name: str, target: Path) -> None:
        copies.put(name)  # type: ignore[attr-defined]
        copy(self, name, target)

    LocalFiles.copy = counted  # type: ignore[method-assign]
    stage(dataset, CASES, folder)


def test_ranks_of_a_node_copy_once(sound_store: Path, tmp_path: Path) -> None:
    dataset = open_dataset(sound_store)
    context = multiprocessing.get_context("spawn")
    copies = context.Queue()
    ranks = [
        context.Process(target=_stage_and_count, args=(dataset, str(tmp_path), copies))
        for _ in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        assert rank.exitcode == 0
    names = [copies.get(timeout=10) for _ in range(copies.qsize())]
    assert len(names) == len(set(names)) > 0


def test_cases_that_do_not_fit_are_refused_before_anything_is_copied(
    sound_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(DataError, match="do not fit") as caught:
        stage(open_dataset(sound_store), CASES, str(tmp_path))
    assert "0.00 GiB free" in caught.value.got
    assert copied(tmp_path) == []


def test_the_environment_is_that_of_the_node(
    sound_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_TMP", str(tmp_path))
    stage(open_dataset(sound_store), CASES, "$NODE_TMP/staged")
    assert copied(tmp_path / "staged") == CASES
    with pytest.raises(ConfigError, match="not set on this node") as caught:
        stage(open_dataset(sound_store), CASES, "$NO_SUCH_TMP/x")
    assert caught.value.got == "$NO_SUCH_TMP/x"


def test_a_folder_that_cannot_be_written_is_named(sound_store: Path) -> None:
    with pytest.raises(DataError, match="cannot be copied") as caught:
        stage(open_dataset(sound_store), CASES, "/proc/staged")
    assert "/proc/staged" in caught.value.where


def test_a_zip_file_is_staged_as_a_folder(sound_store: Path, tmp_path: Path) -> None:
    dataset = open_dataset(zipped(sound_store, tmp_path / "store.zip"))
    staged = stage(dataset, dataset.case_ids, str(tmp_path / "node"))
    assert verify(staged.where) == []


def test_a_case_that_the_dataset_lacks_is_not_staged(sound_store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such case"):
        stage(open_dataset(sound_store), ["../../case_0"], str(tmp_path / "a" / "b"))
    assert not any(tmp_path.iterdir())
