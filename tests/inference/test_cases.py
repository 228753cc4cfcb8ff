from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segresmamba.errors import ConfigError, DataError
from segresmamba.inference.cases import find_cases
from segresmamba.inference.trained import TrainedModel, open_models
from tests.data.raw import write_nifti, write_series
from tests.inference.conftest import write_run


@pytest.fixture(scope="module")
def one(model_run: Path) -> list[TrainedModel]:
    """A model of one channel."""
    return open_models(model_run)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[TrainedModel]:
    """A model of the channels t1 and t2."""
    return open_models(write_run(tmp_path_factory.mktemp("two") / "run", channels=("t1", "t2")))


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def found(source: Path, models: list[TrainedModel]) -> dict[str, list[str]]:
    return {case.name: [p.name for p in case.files] for case in find_cases([str(source)], models)}


def test_files_of_a_folder_are_cases_in_nnunets_naming(
    tmp_path: Path, two: list[TrainedModel]
) -> None:
    touch(tmp_path, "b_0000.nii.gz", "b_0001.nii.gz", "a_b_0000.nrrd", "a_b_0001.nrrd")
    touch(tmp_path, "._b_0000.nii.gz", "notes.txt")
    assert found(tmp_path, two) == {
        "a_b": ["a_b_0000.nrrd", "a_b_0001.nrrd"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }


def test_one_channel_needs_no_number(tmp_path: Path, one: list[TrainedModel]) -> None:
    touch(tmp_path, "a.mha", "b_0000.nii")
    assert found(tmp_path, one) == {"a": ["a.mha"], "b": ["b_0000.nii"]}
    assert found(tmp_path / "a.mha", one) == {"a": ["a.mha"]}
    endings = {case.name: case.ending for case in find_cases([str(tmp_path)], one)}
    assert endings == {"a": ".mha", "b": ".nii.gz"}


def test_a_file_brings_the_other_channels_of_its_case(
    tmp_path: Path, two: list[TrainedModel]
) -> None:
    touch(tmp_path, "a_0000.nii.gz", "c.nii.gz")
    assert found(tmp_path / "a_0000.nii.gz", two) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    with pytest.raises(DataError, match=r"trained on 2 channels.*_0000 to <case>_0001.*t1, t2"):
        find_cases([str(tmp_path / "c.nii.gz")], two)


def test_the_channels_of_one_case_may_have_any_names(
    tmp_path: Path, two: list[TrainedModel]
) -> None:
    files = [str(tmp_path / name) for name in ("first_0000.nii", "second.nrrd")]
    (case,) = find_cases(files, two)
    assert (case.name, [str(path) for path in case.files]) == ("first", files)
    with pytest.raises(DataError, match=r"3 images.*in this order: t1, t2"):
        find_cases([*files, "third.nii"], two)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a_0000.nii.gz", "a_0001.nii.gz"], "trained on 1 channels: t1.*channel number 1"),
        (["a.nii.gz", "a.nrrd"], r"same name.*a\.nii\.gz and a\.nrrd"),
        (["a.nii.gz", "a_0000.nii.gz"], "same name"),
        (["notes.txt"], "has no image"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused(
    tmp_path: Path, one: list[TrainedModel], names: list[str], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        find_cases([str(touch(tmp_path, *names))], one)


def test_what_is_not_there_is_named(tmp_path: Path, one: list[TrainedModel]) -> None:
    with pytest.raises(DataError, match="no such input"):
        find_cases([str(tmp_path / "gone")], one)
    with pytest.raises(ConfigError, match="only a store has a split"):
        find_cases([str(tmp_path)], one, "val")


def test_dicom_folders_are_cases(
    tmp_path: Path, one: list[TrainedModel], two: list[TrainedModel]
) -> None:
    volume = np.ones((4, 4, 3), np.int16)
    for case in ("p1", "p2"):
        for channel in ("t1", "t2"):
            write_series(tmp_path / case / channel, volume)
    assert found(tmp_path / "p1" / "t1", one) == {"t1": ["t1"]}
    assert found(tmp_path / "p1", one) == {"p1": ["t1"]}
    assert found(tmp_path / "p1", two) == {"p1": ["t1", "t2"]}
    assert found(tmp_path, two) == {"p1": ["t1", "t2"], "p2": ["t1", "t2"]}


def test_no_dicom_case_is_left_out_without_a_word(
    tmp_path: Path, two: list[TrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    volume = np.ones((4, 4, 3), np.int16)
    for place in ("p1/t1", "p1/t2", "p2/t1", "p3", "p4/other"):
        write_series(tmp_path / place, volume)
    touch(tmp_path, "p5_0000.nii.gz", "notes.txt")
    # What is missing from p2 and p3 is told when they are read.
    assert found(tmp_path, two) == {"p1": ["t1", "t2"], "p2": ["t1", "t2"], "p3": ["p3"]}
    assert "left out are: p4, p5_0000.nii.gz" in caplog.text


def test_the_cases_of_a_store_are_all_or_those_of_a_split(
    tiny_store: Path, tmp_path: Path, one: list[TrainedModel]
) -> None:
    from segresmamba.data import open_dataset

    dataset = open_dataset(tiny_store)
    facts = {"channels": dataset.channel_names, "preprocessing": dataset.preprocessing}
    runs = [write_run(tmp_path / f"run{n}", train={"fold": n}, **facts) for n in (0, 1)]
    models = [model for run in runs for model in open_models(run)]
    every = find_cases([str(tiny_store)], models)
    assert [case.name for case in every] == list(dataset.case_ids)
    held_out = find_cases([str(tiny_store)], models[:1], "val")
    assert [case.name for case in held_out] == dataset.splits[0]["val"]
    with pytest.raises(ConfigError, match=r"train\.fold of the models: 0, 1"):
        find_cases([str(tiny_store)], models, "val")
    with pytest.raises(DataError, match="other channels"):
        find_cases([str(tiny_store)], one)


def test_a_store_of_another_preprocessing_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", channels=("channel0", "channel1"))
    write_nifti(tmp_path / "image.nii.gz", np.ones((3, 3, 3), np.int16))
    cropped = open_models(run)[0].facts.preprocessing.model_copy(update={"crop": True})
    other = write_run(tmp_path / "other", channels=("channel0", "channel1"), preprocessing=cropped)
    assert find_cases([str(tiny_store)], open_models(run))
    with pytest.raises(DataError, match="another policy"):
        find_cases([str(tiny_store)], open_models(other))


@pytest.mark.parametrize("beside", ["", ".."])
def test_a_folder_whose_dataset_json_has_another_order_is_refused(
    tmp_path: Path, two: list[TrainedModel], beside: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "imagesTs"
    images.mkdir()
    touch(images, "a_0000.nii.gz", "a_0001.nii.gz")
    declaration = images / beside / "dataset.json"
    declaration.write_text(json.dumps({"channel_names": {"1": "T1", "0": "T2"}}))
    with pytest.raises(DataError, match="T2, T1; the network takes them for t1, t2"):
        find_cases([str(images)], two)
    declaration.write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}))
    assert list(found(images, two)) == ["a"]
    assert not caplog.messages
    declaration.write_text(json.dumps({"modality": {"0": "T1", "1": "FLAIR"}}))
    assert list(found(images, two)) == ["a"]
    assert "calls the channels T1, FLAIR" in caplog.text


def test_one_file_for_two_channels_is_warned_about(
    two: list[TrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(find_cases(["a.nii.gz", "./a.nii.gz"], two)) == 1
    assert "the same file is given for several channels" in caplog.text


def test_files_that_are_named_as_other_channels_are_refused(two: list[TrainedModel]) -> None:
    with pytest.raises(DataError, match="takes for t1; its name says t2"):
        find_cases(["p7-T2.nii.gz", "p7-T1.nii.gz"], two)
    with pytest.raises(DataError, match="takes for t1; its name says t2"):
        find_cases(["case_0001.nii.gz", "case_0000.nii.gz"], two)
    in_order, unnamed = ["p7_t1.nii.gz", "p7_t2.nii.gz"], ["a.nii.gz", "b.nii.gz"]
    case_of_that_name = ["T1_7_0000.nii.gz", "T1_7_0001.nii.gz"]
    of_more = ["a_0003.nii", "a_0001.nii"]  # some channels of a larger dataset
    for names in (in_order, unnamed, ["t1_t2_a.nii", "b"], case_of_that_name, of_more):
        assert len(find_cases(names, two)) == 1


def test_a_series_is_another_input_once_one_of_its_files_is_written_anew(
    tmp_path: Path, one: list[TrainedModel]
) -> None:
    write_series(tmp_path / "a", np.arange(64, dtype=np.int16).reshape(4, 4, 4))
    ((case,)) = find_cases([str(tmp_path / "a")], one)
    before = case.fingerprint()
    assert before == case.fingerprint()
    slice_file = tmp_path / "a" / "001.dcm"
    slice_file.write_bytes(slice_file.read_bytes())
    assert before != case.fingerprint()
