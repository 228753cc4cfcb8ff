"""Every format, written as its source describes it, comes out as the voxels that went in."""

from __future__ import annotations

import json
import locale
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segresmamba.config import plugins
from segresmamba.data import convert, open_dataset, verify
from segresmamba.data.formats.registry import FORMATS, Format, read_source
from segresmamba.data.formats.source import SourceDataset
from segresmamba.data.volumes.itk import open_itk
from segresmamba.errors import ConfigError, DataError
from tests.conftest import write_nnunet_dataset
from tests.data.raw import AFFINE, label_path, write_nifti, write_raw, write_series

SHAPE = (12, 14, 16)


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, SHAPE).astype(np.int16)


def label(*values: int) -> np.ndarray:
    out = np.zeros(SHAPE, np.uint8)
    for number, value in enumerate(values):
        out[2 + number, 3:6, 4:9] = value
    return out


def put(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, data, affine)


def listed(folder: Path, file: str = "dataset.json", **content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    return folder


def decathlon(folder: Path) -> Path:
    entries = []
    for number in range(2):
        image = np.stack([volume(10 * number), volume(10 * number + 1)], axis=-1)
        put(folder / f"imagesTr/hip_{number}.nii.gz", image)
        put(folder / f"labelsTr/hip_{number}.nii.gz", label(1))
        entries.append({part: f"./{part}sTr/hip_{number}.nii.gz" for part in ("image", "label")})
    return listed(
        folder,
        name="Hip",
        modality={"0": "T1", "1": "T2"},
        labels={"0": "background", "1": "hip"},
        numTraining=2,
        training=entries,
        test=["./imagesTs/hip_9.nii.gz"],
    )


def monai(folder: Path) -> Path:
    entries = []
    for number in range(4):
        images = [f"a/{number}_{name}.nii.gz" for name in ("t1", "t2")]
        for channel, name in enumerate(images):
            put(folder / name, volume(10 * number + channel))
        put(folder / f"a/case{number}.nii.gz", label(1))
        entries.append({"image": images, "label": f"a/case{number}.nii.gz", "fold": number % 2})
    return listed(folder, "folds.json", labels={"background": 0, "hip": 1}, training=entries)


def brats(folder: Path, year: int) -> Path:
    names = {
        2021: ("BraTS2021_0000{}", ("_t1", "_t1ce", "_t2", "_flair"), "_seg", (1, 2, 4)),
        2023: ("BraTS-GLI-0000{}-000", ("-t1n", "-t1c", "-t2w", "-t2f"), "-seg", (1, 2, 3)),
    }
    case, images, seg, values = names[year]
    for number in range(2):
        name = case.format(number)
        for channel, suffix in enumerate(images):
            put(folder / name / f"{name}{suffix}.nii.gz", volume(10 * number + channel))
        put(folder / name / f"{name}{seg}.nii.gz", label(*values))
    return folder


def bids(folder: Path) -> Path:
    for subject in range(2):
        for session in range(2):
            sub, ses = f"sub-{subject}", f"ses-{session}"
            stem = f"anat/{sub}_{ses}"
            seed = 100 * subject + 10 * session
            put(folder / sub / ses / f"{stem}_T1w.nii.gz", volume(seed))
            put(folder / sub / ses / f"{stem}_T2w.nii.gz", volume(seed + 1))
            put(folder / "derivatives/manual" / sub / ses / f"{stem}_dseg.nii.gz", label(1))
    (folder / "derivatives/manual/dseg.tsv").write_text(
        "index\tname\n1\thip\n", encoding="utf-8-sig"
    )
    return folder


def test_reading_dicom_leaves_the_locale_alone(tmp_path: Path) -> None:
    write_series(tmp_path / "series", volume(0))
    before = locale.setlocale(locale.LC_ALL)
    list(open_itk(tmp_path / "series").planes())
    assert locale.setlocale(locale.LC_ALL) == before


def dicom(folder: Path) -> Path:
    for number in range(2):
        case = folder / f"patient{number}"
        write_series(case / "CT", volume(10 * number))
        mask = sitk.GetImageFromArray(label(1).T)
        mask.SetSpacing((1.0, 1.5, 2.0))
        mask.SetOrigin((-10.0, -20.0, 0.0))
        sitk.WriteImage(mask, str(case / "label.nrrd"))
    return listed(folder, channel_names={"0": "CT"}, labels={"background": 0, "hip": 1})


WRITERS: dict[str, Callable[[Path], Path]] = {
    "nnunet": lambda folder: write_raw(folder, shapes=[(20, 22, 24)] * 2),
    "decathlon": decathlon,
    "monai": monai,
    "brats2021": lambda folder: brats(folder, 2021),
    "brats2023": lambda folder: brats(folder, 2023),
    "bids": bids,
    "dicom": dicom,
}


def test_every_format_has_a_test() -> None:
    assert set(WRITERS) == set(FORMATS)


@pytest.mark.parametrize("name", WRITERS)
def test_auto_finds_the_format_and_says_why(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = WRITERS[name](tmp_path / "raw")
    with caplog.at_level(logging.INFO, logger="segresmamba"):
        found = read_source(source)
    assert found == read_source(source, name)
    assert f"format {name}: " in caplog.text


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "nnunet"])
def test_voxels_come_out_as_they_went_in(name: str, tmp_path: Path) -> None:
    convert(WRITERS[name](tmp_path / "raw"), tmp_path / "store")
    dataset = open_dataset(tmp_path / "store")
    assert verify(tmp_path / "store") == []
    case = dataset[dataset.case_ids[0]]
    image_CDHW, label_DHW = case.read()
    for channel, image_DHW in enumerate(image_CDHW):
        back = np.asarray(case.restore_label(image_DHW.astype(np.int16)).dataobj)
        expected = volume(channel).astype(case.original.header.get_data_dtype())
        np.testing.assert_array_equal(back, expected)
    restored = np.asarray(case.restore_label(label_DHW).dataobj)
    values = (1, 2, 3) if name.startswith("brats") else (1,)
    np.testing.assert_array_equal(restored, label(*values))
    expected_mm = (2.0, 1.5, 1.0) if name == "dicom" else (1.5, 2.0, 1.0)
    assert case.spacing_mm == expected_mm


def test_both_brats_agree_on_channels_and_labels(tmp_path: Path) -> None:
    first, second = (read_source(brats(tmp_path / str(year), year)) for year in (2021, 2023))
    assert (first.channel_names, first.labels) == (second.channel_names, second.labels)
    assert second.cases[0].patient == "BraTS-GLI-00000"


def test_a_3_in_a_label_of_brats_2021_is_refused(tmp_path: Path) -> None:
    source = brats(tmp_path / "raw", 2021)
    path = source / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz"
    put(path, label(1, 2, 3))
    with pytest.raises(DataError, match="undeclared") as caught:
        convert(source, tmp_path / "store")
    assert caught.value.where == str(path)


def test_folds_of_a_datalist_are_kept(tmp_path: Path) -> None:
    convert(monai(tmp_path / "raw"), tmp_path / "store")
    folds = [split["val"] for split in open_dataset(tmp_path / "store").splits]
    assert folds == [["case0", "case2"], ["case1", "case3"]]


def test_the_name_of_a_folder_above_a_bids_dataset_does_not_matter(tmp_path: Path) -> None:
    dataset = read_source(bids(tmp_path / "sub-study" / "raw"))
    assert dataset.cases[0].case_id == "sub-0_ses-0"
    assert dataset.cases[0].images[0].exists()


def test_sessions_of_one_subject_stay_together(tmp_path: Path) -> None:
    convert(bids(tmp_path / "raw"), tmp_path / "store")
    for split in open_dataset(tmp_path / "store").splits:
        subjects = [{case[:5] for case in split[side]} for side in ("train", "val")]
        assert not subjects[0] & subjects[1]


def test_a_folder_of_two_formats_is_refused_with_both_names(tmp_path: Path) -> None:
    source = brats(decathlon(tmp_path / "raw"), 2021)
    with pytest.raises(DataError, match="several formats") as caught:
        read_source(source)
    assert "decathlon" in caught.value.got
    assert "brats2021" in caught.value.got
    assert len(read_source(source, "brats2021").cases) == 2


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_of_no_format_is_refused(tmp_path: Path, there: bool) -> None:
    source = tmp_path / "raw"
    if there:
        source.mkdir()
    with pytest.raises(DataError, match="no known format"):
        read_source(source)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such format"):
        read_source(tmp_path, "bratz")


@pytest.mark.parametrize(
    ("part", "name"),
    [("label", "../labelsTr/hip_0.nii.gz"), ("label", "/etc/hip_0.nii.gz"), ("image", "/")],
)
def test_a_list_cannot_name_files_outside(tmp_path: Path, part: str, name: str) -> None:
    source = decathlon(tmp_path / "raw")
    content = json.loads((source / "dataset.json").read_text())
    content["training"][0][part] = name
    listed(source, **content)
    with pytest.raises(DataError, match="outside the dataset") as caught:
        read_source(source)
    assert name in caught.value.got


def test_a_3d_image_where_two_modalities_are_declared_is_named(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "raw")
    path = put(source / "imagesTr/hip_1.nii.gz", volume(0))
    with pytest.raises(DataError, match="fourth axis") as caught:
        convert(source, tmp_path / "store")
    assert caught.value.where == str(path)


def test_a_missing_modality_is_named_and_the_good_case_kept(tmp_path: Path) -> None:
    source = brats(tmp_path / "raw", 2023)
    missing = source / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t2w.nii.gz"
    missing.unlink()
    with pytest.raises(DataError, match="missing") as caught:
        convert(source, tmp_path / "store")
    assert caught.value.where == str(missing)
    assert [path.name for path in (tmp_path / "store").glob("BraTS*")] == ["BraTS-GLI-00000-000"]


def test_a_missing_slice_of_a_series_is_refused(tmp_path: Path) -> None:
    source = dicom(tmp_path / "raw")
    (source / "patient1" / "CT" / "007.dcm").unlink()
    with pytest.raises(DataError, match="slices of a DICOM series are missing") as caught:
        convert(source, tmp_path / "store")
    assert caught.value.where == str(source / "patient1" / "CT")


def test_other_files_before_the_series_hide_no_dicom(tmp_path: Path) -> None:
    source = dicom(tmp_path / "raw")
    for case in source.glob("patient*"):
        (case / "CT" / ".DS_Store").write_bytes(b"\0" * 200)
        (case / "A").mkdir()
        (case / "A" / "DICOMDIR.txt").write_text("nothing")
    assert read_source(source, "auto").channel_names == ("CT",)


def test_a_folder_without_a_series_is_refused(tmp_path: Path) -> None:
    source = dicom(tmp_path / "raw")
    shutil.rmtree(source / "patient1" / "CT")
    (source / "patient1" / "CT").mkdir()
    with pytest.raises(DataError, match="no DICOM image"):
        convert(source, tmp_path / "store")


def test_a_dataset_of_nnunet_v1_has_a_file_for_each_channel(tmp_path: Path) -> None:
    source = tmp_path / "Task01_Hip"
    decathlon(source)
    for path in sorted((source / "imagesTr").iterdir()):
        image = nib.load(path)
        for channel in range(2):
            name = path.name.replace(".nii.gz", f"_{channel:04d}.nii.gz")
            put(path.with_name(name), np.asarray(image.dataobj)[..., channel], image.affine)
    expected = convert(decathlon(tmp_path / "stacked"), tmp_path / "expected").digest
    for path in (source / "imagesTr").glob("hip_?.nii.gz"):
        path.unlink()
    assert convert(source, tmp_path / "store").digest == expected


def test_a_listed_name_that_is_too_long_for_a_file_is_refused(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "raw")
    path = source / "dataset.json"
    content = json.loads(path.read_text())
    content["training"][0]["image"] = f"imagesTr/{'a' * 300}.nii.gz"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="File name too long") as caught:
        convert(source, tmp_path / "store")
    assert "aaaa" in caught.value.where


def test_another_grid_is_refused_or_resampled(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    path = label_path(raw, "case_1")
    expected = np.asarray(nib.load(path).dataobj).copy()
    half = AFFINE @ np.array([[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_nifti(path, expected[3:], half)
    with pytest.raises(DataError, match="different shapes") as caught:
        convert(raw, tmp_path / "store")
    assert caught.value.where == str(path)
    convert(raw, tmp_path / "store", resample_mismatched=True)
    restored = open_dataset(tmp_path / "store")["case_1"]
    label_XYZ = np.asarray(restored.restore_label(restored.read()[1]).dataobj)
    expected[:3] = 0
    np.testing.assert_array_equal(label_XYZ, expected)


@pytest.mark.parametrize("given", ["the folder", "the file"])
def test_a_class_that_occurs_in_no_case_is_named_with_the_datalist(
    tmp_path: Path, given: str
) -> None:
    folder = tmp_path / "raw"
    monai(folder)
    path = folder / "folds.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"labels": {"background": 0, "hip": 1, "knee": 2}}))
    with pytest.raises(DataError, match="occurs in no case") as caught:
        convert(path if given == "the file" else folder, tmp_path / "store", format="monai")
    assert caught.value.where == f"{path}: labels"
    assert caught.value.got == "knee (2)"


def test_a_class_that_brats_has_and_no_case_is_named_with_the_folder(tmp_path: Path) -> None:
    source = brats(tmp_path / "raw", 2021)
    for path in source.rglob("*_seg.nii.gz"):
        put(path, label(1, 2))
    with pytest.raises(DataError, match="occurs in no case") as caught:
        convert(source, tmp_path / "store")
    assert caught.value.where == f"{source}: labels"


def _find_marked(source: Path) -> str | None:
    return "it has a file MARK" if (source / "MARK").exists() else None


def _read_marked(source: Path) -> SourceDataset:
    return replace(read_source(source / "inside", "nnunet"), name="marked")


MARKED = Format(_find_marked, _read_marked)


def test_a_reader_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nnunet_dataset(tmp_path / "inside", cases=2, size=16)
    (tmp_path / "MARK").touch()
    points = {plugins.READERS: {"marked": f"{__name__}:MARKED"}}
    monkeypatch.setattr(plugins, "entry_points", points.get)
    assert read_source(tmp_path).name == "marked"
    assert read_source(tmp_path, "marked").name == "marked"
    with pytest.raises(DataError, match="no such format") as caught:
        read_source(tmp_path, "mark")
    assert caught.value.remedy.startswith("did you mean marked? choose one of auto, marked, nnunet")


def test_a_reader_may_be_named_without_an_entry_point(tmp_path: Path) -> None:
    write_nnunet_dataset(tmp_path / "inside", cases=2, size=16)
    assert read_source(tmp_path, f"{__name__}:MARKED").name == "marked"
    with pytest.raises(DataError, match="no format") as caught:
        read_source(tmp_path, "os:name")
    assert caught.value.where == "--format"
    with pytest.raises(ConfigError, match="cannot be imported"):
        read_source(tmp_path, "nosuch:FORMAT")


@pytest.mark.parametrize(
    ("target", "kind", "text"),
    [("nothing:here", ConfigError, "cannot be imported"), ("os:name", DataError, "is no format")],
)
def test_an_entry_point_that_is_no_reader_is_named(
    target: str, kind: type[Exception], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "entry_points", {plugins.READERS: {"mine": target}}.get)
    with pytest.raises(kind, match=f"{text}.*entry point mine of segresmamba.readers"):
        read_source(tmp_path)


def test_a_list_of_other_things_than_cases_is_refused(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "raw")
    content = json.loads((source / "dataset.json").read_text())
    content["training"] = [8276, *content["training"]]
    (source / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="training"):
        read_source(source)
