"""A series is read as its slices lie and as each slice's header means it, or it is refused."""

from __future__ import annotations

import locale
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from segresmamba.data import read_volume
from segresmamba.data.volumes.itk import open_itk
from segresmamba.data.volumes.opened_file import OpenedFile
from segresmamba.errors import DataError
from tests.data.dicom import elements_of, write_report
from tests.data.raw import write_series

SLICES = 6
LARGE_XYZ = np.random.default_rng(0).integers(0, 9000, (32, 40, 3)).astype(np.int16)
VOXELS_XYZ = np.random.default_rng(0).integers(1, 900, (8, 7, SLICES)).astype(np.int16)
POSITION, ORIENTATION, PIXEL_MM = "0020|0032", "0020|0037", "0028|0030"
SLOPE, INTERCEPT, SERIES = "0028|1053", "0028|1052", "0020|000e"


def series(folder: Path, changed: Callable[[int], Mapping[str, str]] = lambda _: {}) -> OpenedFile:
    write_series(folder / "CT", VOXELS_XYZ, changed)
    return open_itk(folder / "CT")


def voxels_XYZ(file: OpenedFile) -> np.ndarray:
    return np.stack(list(file.planes()), axis=-1)


def refused(folder: Path, changed: Callable[[int], Mapping[str, str]] = lambda _: {}) -> DataError:
    with pytest.raises(DataError) as caught:
        series(folder, changed)
    return caught.value


def only(number: int, **tags: str) -> Callable[[int], Mapping[str, str]]:
    """These tags for one slice, by the names of this module."""
    values = {globals()[name]: value for name, value in tags.items()}
    return lambda z: values if z == number else {}


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", RLELossless])
def test_compressed_slices_are_read(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path / "plain", LARGE_XYZ)
    (tmp_path / "packed").mkdir()
    for plain in (tmp_path / "plain").iterdir():
        packed = tmp_path / "packed" / plain.name
        if kind == RLELossless:
            dataset = pydicom.dcmread(plain)
            dataset.compress(kind, generate_instance_uid=False)
            dataset.save_as(packed)
        else:
            write_packed(plain, packed, kind)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID.is_compressed
    file = open_itk(tmp_path / "packed")
    np.testing.assert_array_equal(voxels_XYZ(file), LARGE_XYZ)
    np.testing.assert_allclose(file.affine, open_itk(tmp_path / "plain").affine)


def write_packed(plain: Path, packed: Path, compressor: str) -> None:
    before = locale.setlocale(locale.LC_ALL)  # see write_series
    image = sitk.ReadImage(str(plain))
    whole = sitk.Cast(image, sitk.sitkUInt16)
    for key in ("0008|0016", "0008|0018", "0008|0060", "0020|000d", "0020|000e", POSITION):
        whole.SetMetaData(key, image.GetMetaData(key))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(packed))
    writer.Execute(whole)
    locale.setlocale(locale.LC_ALL, before)


def test_names_and_numbers_do_not_matter(tmp_path: Path) -> None:
    file = series(tmp_path, lambda z: {POSITION: f"0\\0\\{-3 * z}", "0020|0013": str(z * 7 % 6)})
    np.testing.assert_array_equal(voxels_XYZ(file), VOXELS_XYZ[..., ::-1])
    np.testing.assert_allclose(file.affine[:3, 2:], [[0, 0], [0, 0], [3, -15]])


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    # As in PET: an empty slice has the slope 1, the others that of their largest value.
    file = series(tmp_path, lambda z: {SLOPE: str(40 * z + 1), INTERCEPT: str(-z)})
    # The writer stores the values divided by the slope, in whole numbers.
    assert file.dtype == np.int32
    for z, plane_XY in enumerate(file.planes()):
        slope = 40 * z + 1
        assert np.abs(plane_XY - VOXELS_XYZ[..., z]).max() <= slope
        assert not ((plane_XY + z) % slope).any()


def test_a_tilted_gantry_makes_a_sheared_affine(tmp_path: Path) -> None:
    file = series(tmp_path, lambda z: {POSITION: f"0\\{0.5 * z}\\{2 * z}"})
    np.testing.assert_array_equal(voxels_XYZ(file), VOXELS_XYZ)
    np.testing.assert_allclose(file.affine[:3, 2], [0, -0.5, 2])


@pytest.mark.parametrize(
    ("what", "tags"),
    [
        ("orientation", {"ORIENTATION": "0.8\\0.6\\0\\-0.6\\0.8\\0"}),
        ("pixel size in mm", {"PIXEL_MM": "1.25\\1.0"}),
    ],
)
def test_a_slice_that_differs_is_named(tmp_path: Path, what: str, tags: dict[str, str]) -> None:
    # The first slice counts no more than another: most of them decide which one is odd.
    error = refused(tmp_path, only(0, **tags))
    assert error.problem == f"a slice of a DICOM series differs from the others: {what}"
    assert error.where == str(tmp_path / "CT" / "000.dcm")


def test_a_slice_with_inverted_brightness_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ)
    path = tmp_path / "CT" / "004.dcm"
    path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME1"))
    with pytest.raises(DataError, match="photometric interpretation") as caught:
        open_itk(tmp_path / "CT")
    assert caught.value.where == str(path)
    assert caught.value.got == "MONOCHROME1, and MONOCHROME2 in most of 6 slices"


def test_a_slice_of_another_size_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ)
    write_series(tmp_path / "smaller", VOXELS_XYZ[:-1])
    shutil.copy(tmp_path / "smaller" / "003.dcm", tmp_path / "CT")
    with pytest.raises(DataError, match="pixels") as caught:
        open_itk(tmp_path / "CT")
    assert caught.value.where == str(tmp_path / "CT" / "003.dcm")


def test_two_slices_at_one_position_are_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, only(5, POSITION="-10\\-20\\2"))
    assert error.problem == "two slices of a DICOM series lie at the same position"
    assert error.got == "001.dcm and 005.dcm"


def test_missing_slices_are_counted(tmp_path: Path) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ)
    for number in (2, 3):
        (tmp_path / "CT" / f"00{number}.dcm").unlink()
    with pytest.raises(DataError, match="slices of a DICOM series are missing") as caught:
        open_itk(tmp_path / "CT")
    assert caught.value.got.startswith("2 between 001.dcm and 004.dcm: 6 mm apart")


def test_uneven_slices_are_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, only(5, POSITION="-10\\-20\\11"))
    assert error.problem == "the slices of a DICOM series are unevenly spaced"
    assert "2 to 3 mm apart; 004.dcm and 005.dcm" in error.got


def test_a_second_series_is_named_by_its_files(tmp_path: Path) -> None:
    error = refused(tmp_path, only(5, SERIES="9.9.9"))
    assert error.problem == "a channel's folder must hold one DICOM series"
    assert "1 files like 005.dcm" in error.got


@pytest.mark.parametrize("series", ["1.2.3.4", "9.9.9"])
def test_dicom_without_an_image_is_left_alone(tmp_path: Path, series: str) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ)
    write_report(tmp_path / "CT" / "000_report.dcm", series)
    np.testing.assert_array_equal(voxels_XYZ(open_itk(tmp_path / "CT")), VOXELS_XYZ)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ)
    path = tmp_path / "CT" / "004.dcm"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="a DICOM file is damaged") as caught:
        open_itk(tmp_path / "CT")
    assert caught.value.where == str(path)


def test_a_file_whose_voxels_cannot_be_in_it_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ)
    path = tmp_path / "CT" / "004.dcm"
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 60_000
    dataset.save_as(path)
    with pytest.raises(DataError, match="a DICOM file cannot be read") as caught:
        open_itk(tmp_path / "CT")
    assert caught.value.where == str(path)


@pytest.mark.parametrize("count", [1, SLICES])
def test_files_without_a_preamble_are_read(tmp_path: Path, count: int) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ[..., :count])
    for path in (tmp_path / "CT").iterdir():
        path.write_bytes(elements_of(path))
    np.testing.assert_array_equal(voxels_XYZ(open_itk(tmp_path / "CT")), VOXELS_XYZ[..., :count])


@pytest.mark.parametrize("name", ["a.dcm", "a.nrrd", "a.mha"])
def test_gdcm_sees_no_file_that_was_not_looked_at(tmp_path: Path, name: str) -> None:
    """By itself ITK gives any file to GDCM: a length of this one took 1.3 GiB."""
    write_series(tmp_path / "CT", VOXELS_XYZ)
    content = elements_of(tmp_path / "CT" / "000.dcm")
    path = tmp_path / name
    path.write_bytes(content + struct.pack("<HHI", 0x7FE1, 0x10, 0x55000000))
    with pytest.raises(DataError):
        read_volume([path])


def test_lengths_that_look_like_kinds_are_those_of_a_file_without_kinds(tmp_path: Path) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ)
    for path in (tmp_path / "CT").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.add_new(0x00091001, "UN", bytes(0x4142))  # a length that is written as BA
        dataset.save_as(path, implicit_vr=True, little_endian=True)
        assert b"\x09\x00\x01\x10BA\0\0" in path.read_bytes()
    np.testing.assert_array_equal(voxels_XYZ(open_itk(tmp_path / "CT")), VOXELS_XYZ)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    write_series(tmp_path / "CT", VOXELS_XYZ)
    (tmp_path / "CT" / ".DS_Store").write_bytes(b"\0" * 100)
    (tmp_path / "CT" / "0_notes.txt").write_text("exported on Tuesday")
    np.testing.assert_array_equal(voxels_XYZ(open_itk(tmp_path / "CT")), VOXELS_XYZ)
