from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile

from segresmamba.config import DataConfig, load_config
from segresmamba.data import convert, make_loader, open_dataset, read_volume, verify
from segresmamba.data.formats.nnunet import read_nnunet
from segresmamba.data.stream.batch import PADDING
from segresmamba.errors import DataError
from tests.data.raw import describe, image_path, label_path, write_nifti, write_raw


def test_lists_cases_with_their_files_and_opens_none(raw: Path) -> None:
    for path in raw.rglob("*.nii.gz"):
        path.write_bytes(b"")
    (raw / "imagesTr" / "._case_0_0000.nii.gz").touch()
    (raw / "labelsTr" / "notes.txt").touch()
    dataset = read_nnunet(raw)
    assert dataset.name == "Balls"
    assert dataset.channel_names == ("channel 0",)
    assert dataset.labels == {"background": 0, "ball": 1, "box": 2}
    assert [case.case_id for case in dataset.cases] == ["case_0", "case_1", "case_2"]
    assert dataset.cases[1].images == (image_path(raw, "case_1"),)
    assert dataset.cases[1].label == label_path(raw, "case_1")


def test_a_case_without_its_label_is_still_listed(raw: Path) -> None:
    label_path(raw, "case_1").unlink()
    assert len(read_nnunet(raw).cases) == 3


def test_dataset_json_may_name_the_files(raw: Path) -> None:
    files = {"images": ["imagesTr/case_1_0000.nii.gz"], "label": "labelsTr/case_1.nii.gz"}
    describe(raw, dataset={"patient": files}, numTraining=1)
    (case,) = read_nnunet(raw).cases
    assert (case.case_id, case.images) == ("patient", (image_path(raw, "case_1"),))


def test_named_files_may_lie_elsewhere(raw: Path, tmp_path: Path) -> None:
    elsewhere = image_path(raw, "case_1").rename(tmp_path / "scan.nii.gz")
    files = {"images": [str(elsewhere)], "label": "labelsTr/case_1.nii.gz"}
    describe(raw, dataset={"patient": files}, numTraining=1)
    assert convert(raw, tmp_path / "store").converted == ("patient",)
    assert convert(raw, tmp_path / "store").kept == ("patient",)


@pytest.mark.parametrize("images", [[], ["a.nii.gz", "b.nii.gz"]])
def test_named_files_must_be_one_per_channel(raw: Path, images: list[str]) -> None:
    files = {"images": images, "label": "labelsTr/case_1.nii.gz"}
    describe(raw, dataset={"patient": files}, numTraining=1)
    with pytest.raises(DataError, match="one image per channel") as caught:
        read_nnunet(raw)
    assert "dataset.patient.images" in caught.value.where


def test_the_folder_names_a_nameless_dataset(raw: Path) -> None:
    describe(raw, name=None)
    assert read_nnunet(raw).name == "raw"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"labels": None}, "labels"),
        ({"channel_names": {"1": "T1"}}, "channel_names"),
        ({"channel_names": {}}, "channel_names"),
        ({"channel_names": {"first": "T1"}}, "channel_names"),
        ({"labels": {"background": 0, "ball": 1, "box": 1}}, "labels"),
        ({"labels": {"background": 0, "ball": -1}}, "labels"),
        ({"labels": {"background": 0, "ball": 32768}}, "labels"),
        ({"labels": {"ball": 0, "box": 1}}, "labels"),
        ({"labels": {"background": 0}}, "labels"),
        ({"labels": {"background": 0, "ball": 1, "ignore": 1}}, "labels"),
        ({"file_ending": ".png"}, "file_ending"),
    ],
)
def test_a_wrong_key_of_dataset_json_is_named(
    raw: Path, changes: dict[str, Any], where: str
) -> None:
    describe(raw, **changes)
    with pytest.raises(DataError) as caught:
        read_nnunet(raw)
    assert "dataset.json" in caught.value.where
    assert where in caught.value.where


def test_a_wrong_number_of_cases_is_told(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    describe(raw, numTraining=4)
    assert len(read_nnunet(raw).cases) == 3
    assert "numTraining is 4, but 3 cases were found" in caplog.text


def test_regions_become_single_values_and_the_setting_is_told(
    raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    describe(
        raw,
        labels={"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
        regions_class_order=[1, 2, 3],
    )
    expected = {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3}
    assert read_nnunet(raw).labels == expected
    setting = "data.regions={whole tumour:[1,2,3],core:[2,3],enhancing:[3]}"
    assert setting in caplog.text
    assert load_config([setting, "data=custom", "data.store=x"]).data.regions == {
        "whole tumour": (1, 2, 3),
        "core": (2, 3),
        "enhancing": (3,),
    }


def test_voxels_without_annotation_count_for_nothing(raw: Path, tmp_path: Path) -> None:
    label = nib.load(label_path(raw, "case_1"))
    values = np.asarray(label.dataobj).copy()
    values[20:, :, :] = 3
    write_nifti(label_path(raw, "case_1"), values, label.affine)
    describe(raw, labels={"background": 0, "ball": 1, "box": 2, "ignore": 3})
    convert(raw, tmp_path / "store")
    assert verify(tmp_path / "store") == []
    dataset = open_dataset(tmp_path / "store")
    assert dataset.labels == {"background": 0, "ball": 1, "box": 2}
    case = dataset["case_1"]
    assert set(case.record.class_voxels) <= {1, 2}
    np.testing.assert_array_equal(np.asarray(case.reference().dataobj), values)
    _, label_DHW = case.read()
    shape = case.shape_DHW
    config = DataConfig(store=str(tmp_path / "store"), patch=shape, workers=0)
    batch = next(
        make_loader(
            dataset, ["case_1"], config, 0, rank=0, world_size=1, micro_batch=1, start_index=0
        )
    )
    expected = np.where(label_DHW == 3, PADDING, label_DHW.astype(np.int16))
    np.testing.assert_array_equal(batch.label_BDHW[0], expected)


def test_values_may_have_gaps_but_each_must_be_declared(raw: Path, tmp_path: Path) -> None:
    for path in (raw / "labelsTr").iterdir():
        image = nib.load(path)
        values = np.array([0, 1605, 17], np.int16)[np.asarray(image.dataobj)]
        write_nifti(path, values, image.affine)
    describe(raw, labels={"background": 0, "amygdala": 17, "cortex": 1605})
    convert(raw, tmp_path / "store")
    dataset = open_dataset(tmp_path / "store")
    assert set(dataset["case_1"].record.class_voxels) == {17, 1605}
    describe(raw, labels={"background": 0, "cortex": 1605})
    with pytest.raises(DataError) as caught:
        convert(raw, tmp_path / "other")
    assert "17" in caught.value.got


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nii", ".NII.GZ"])
def test_every_kind_of_file_gives_the_same_voxels(raw: Path, tmp_path: Path, ending: str) -> None:
    write_raw(tmp_path / "nifti")
    for path in [*(raw / "imagesTr").iterdir(), *(raw / "labelsTr").iterdir()]:
        image = sitk.ReadImage(str(path))
        target = path.with_name(path.name.replace(".nii.gz", ending))
        if ending.lower() == ".nii.gz":
            path.rename(target)
        else:
            sitk.WriteImage(image, str(target))
            path.unlink()
    describe(raw, file_ending=ending)
    convert(raw, tmp_path / "store")
    convert(tmp_path / "nifti", tmp_path / "nifti_store")
    found, expected = (open_dataset(tmp_path / name) for name in ("store", "nifti_store"))
    assert found.case_ids == expected.case_ids
    for case_id in found.case_ids:
        for one, other in zip(found[case_id].read(), expected[case_id].read(), strict=True):
            np.testing.assert_array_equal(one, other)


def write_stacks(raw: Path, spacing: list[float] | None) -> None:
    """Make TIFF stacks of a dataset's files, with a file of the voxel size beside each."""
    for path in [*(raw / "imagesTr").iterdir(), *(raw / "labelsTr").iterdir()]:
        image = sitk.ReadImage(str(path))
        image.SetSpacing((0.3, 0.3, 0.3))  # which the tags of TIFF say of paper
        stem = path.name.removesuffix(".nii.gz")
        sitk.WriteImage(image, str(path.with_name(f"{stem}.tif")))
        if spacing:
            words = json.dumps({"spacing": spacing, "unit": "mm"})
            path.with_name(f"{stem.removesuffix('_0000')}.json").write_text(
                words, encoding="utf-8-sig"
            )
        path.unlink()
    describe(raw, file_ending=".tif")


def test_a_tiff_stack_has_the_voxel_size_of_the_file_beside_it(raw: Path, tmp_path: Path) -> None:
    expected = np.asarray(nib.load(image_path(raw, "case_0")).dataobj)
    write_stacks(raw, [3.0, 1.5, 1.25])
    assert convert(raw, tmp_path / "store").converted == ("case_0", "case_1", "case_2")
    case = open_dataset(tmp_path / "store")["case_0"]
    assert case.spacing_mm == (3.0, 1.5, 1.25)
    voxels = case.read()[0][0].transpose(2, 1, 0)[::-1, ::-1]  # from RAS to LPS
    np.testing.assert_array_equal(voxels, expected)
    # Another voxel size is another case.
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder / "case_0.json").write_text('{"spacing": [3, 1, 1]}')
    assert convert(raw, tmp_path / "store").converted == ("case_0",)


def test_a_tiff_stack_alone_is_taken_at_one_millimetre_with_a_warning(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stacks(raw, None)
    convert(raw, tmp_path / "store")
    assert open_dataset(tmp_path / "store")["case_0"].spacing_mm == (1, 1, 1)
    assert "case_0_0000.tif has no case_0_0000.json beside it" in caplog.text


@pytest.mark.parametrize("words", ['{"spacing": [1, 1]}', '{"spacing": [1, 1, 0]}', "1 1 1"])
def test_a_voxel_size_that_cannot_be_is_named(raw: Path, tmp_path: Path, words: str) -> None:
    write_stacks(raw, [1, 1, 1])
    (raw / "imagesTr" / "case_0.json").write_text(words)
    with pytest.raises(DataError, match="how large its voxels") as caught:
        convert(raw, tmp_path / "store")
    assert caught.value.where.endswith("imagesTr/case_0.json")


@pytest.mark.parametrize("compressor", ["Deflate", "PackBits", "LZW"])
def test_a_compressed_stack_is_read_or_names_what_is_missing(
    tmp_path: Path, compressor: str
) -> None:
    expected_DHW = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)
    image = sitk.GetImageFromArray(expected_DHW)
    path = tmp_path / "a.tif"
    sitk.WriteImage(image, str(path), useCompression=True, compressor=compressor)
    if compressor == "LZW" and importlib.util.find_spec("imagecodecs") is None:
        with pytest.raises(DataError) as caught:
            read_volume([path])
        assert "pip install imagecodecs" in caught.value.remedy
        return
    found_DHW = read_volume([path]).image_CDHW[0][:, ::-1, ::-1]  # from RAS to LPS
    np.testing.assert_array_equal(found_DHW, expected_DHW)


def test_compressed_pieces_that_are_larger_than_their_voxels_are_refused(tmp_path: Path) -> None:
    """A megabyte inflated to 2 GiB, of which 32 bytes were kept."""
    path = tmp_path / "a.tif"
    pages = np.ones((4, 4, 4), np.uint16)
    tifffile.imwrite(path, pages, compression="zlib", photometric="minisblack", metadata=None)
    assert read_volume([path]).image_CDHW.shape == (1, 4, 4, 4)
    with tifffile.TiffFile(path) as file:
        counts = [page.tags["StripByteCounts"].valueoffset for page in file.pages]
    content = bytearray(path.read_bytes())
    for at in counts:
        content[at : at + 4] = (2000).to_bytes(4, "little")
    path.write_bytes(content + bytes(4000))
    with pytest.raises(DataError) as caught:
        read_volume([path])
    assert "2000 compressed bytes for 32 bytes of voxels" in caught.value.got


@pytest.mark.parametrize("big", [False, True])
def test_a_list_of_pages_without_an_end_is_refused(tmp_path: Path, big: bool) -> None:
    path = tmp_path / "a.tif"
    pages = np.arange(1, 5 * 6 * 7 + 1, dtype=np.uint16).reshape(5, 6, 7)
    with tifffile.TiffWriter(path, bigtiff=big) as writer:
        for page in pages:
            writer.write(page, contiguous=False, metadata=None)
    assert read_volume([path]).image_CDHW.shape == (1, *pages.shape)
    with tifffile.TiffFile(path) as file:
        first, second, last = (file.pages[number].offset for number in (0, 1, 4))
        entries = len(file.pages[4].tags)
    content = bytearray(path.read_bytes())
    at = last + (8 + 20 * entries if big else 2 + 12 * entries)
    content[at : at + (8 if big else 4)] = second.to_bytes(8 if big else 4, "little")
    assert first < second < last < at < len(content)
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_volume([path])
    assert "leads back to itself" in caught.value.got


def test_a_stack_in_colour_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((8, 9, 3), np.uint8), photometric="rgb")
    with pytest.raises(DataError, match="one number for each voxel"):
        read_volume([path])


@pytest.mark.parametrize("ending", [".nii.gz", ".tif"])
def test_images_of_one_slice_are_sent_to_a_tool_for_2d(tmp_path: Path, ending: str) -> None:
    raw = write_raw(tmp_path / "raw", [(40, 34, 1)])
    describe(raw, labels={"background": 0, "ball": 1})
    if ending == ".tif":
        write_stacks(raw, None)
    with pytest.raises(DataError) as caught:
        convert(raw, tmp_path / "store")
    assert caught.value.remedy.endswith("a tool for 2D, such as nnU-Net with -c 2d")


@pytest.mark.parametrize("case_id", ["../escaped", "a/b", "a\\b", "..", ".hidden", "zarr.json"])
def test_a_name_that_leaves_the_store_is_refused(raw: Path, case_id: str) -> None:
    files = {"images": ["imagesTr/case_1_0000.nii.gz"], "label": "labelsTr/case_1.nii.gz"}
    describe(raw, dataset={case_id: files}, numTraining=1)
    with pytest.raises(DataError, match="cannot be a folder's name") as caught:
        read_nnunet(raw)
    assert caught.value.got == repr(case_id)


@pytest.mark.parametrize("name", ["case_0_0001.nii.gz", "case_9.nii.gz"])
def test_an_image_of_no_declared_channel_is_refused(raw: Path, name: str) -> None:
    (raw / "imagesTr" / name).touch()
    with pytest.raises(DataError, match="no declared channel") as caught:
        read_nnunet(raw)
    assert caught.value.where.endswith(name)
    assert "name it <case>_0000.nii.gz, or" in caught.value.remedy


@pytest.mark.parametrize("missing", ["dataset.json", "imagesTr", "labelsTr"])
def test_what_is_missing_is_named(raw: Path, missing: str) -> None:
    (raw / missing).rename(raw / "elsewhere")
    with pytest.raises(DataError) as caught:
        read_nnunet(raw)
    assert caught.value.where.endswith(missing)


def test_the_byte_order_mark_of_windows_is_no_part_of_the_json(raw: Path) -> None:
    content = (raw / "dataset.json").read_text()
    before = read_nnunet(raw)
    (raw / "dataset.json").write_text(content, encoding="utf-8-sig")
    assert read_nnunet(raw) == before


def test_broken_json_is_refused(raw: Path) -> None:
    (raw / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="does not describe the dataset"):
        read_nnunet(raw)
