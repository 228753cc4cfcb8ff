from __future__ import annotations

import gzip
import re
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segresmamba.data.volumes.label import read_label
from segresmamba.data.volumes.volume import read_volume
from segresmamba.data.volumes.voxel_file import files_of
from segresmamba.errors import DataError
from tests.data.raw import AFFINE, SHAPE, some, write_header, write_nifti


def refused(path: Path) -> DataError:
    """The error of reading the file as an image; it names the file."""
    with pytest.raises(DataError) as caught:
        read_volume([path])
    assert caught.value.where == str(path)
    assert len(caught.value.screen().splitlines()) < 24
    return caught.value


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (np.uint8, "int16"),
        (np.int16, "int16"),
        (np.int32, "int16"),
        (np.float32, "float32"),
        (np.float64, "float32"),
    ],
)
def test_integers_that_fit_stay_integers(tmp_path: Path, stored: Any, kept: str) -> None:
    volume = read_volume([write_nifti(tmp_path / "a.nii.gz", some(stored))])
    assert volume.image_CDHW.dtype == kept
    assert sorted(volume.image_CDHW.ravel()) == list(range(1, 121))


def test_integers_that_do_not_fit_become_floats(tmp_path: Path) -> None:
    volume = read_volume([write_nifti(tmp_path / "a.nii", some(np.int32) * 1000)])
    assert volume.image_CDHW.dtype == np.float32
    assert volume.image_CDHW.max() == 120_000


@pytest.mark.parametrize(("slope", "kept"), [(2, "int16"), (0.5, "float32")])
def test_a_header_scale_is_applied(tmp_path: Path, slope: float, kept: str) -> None:
    image = nib.Nifti1Image(some(), AFFINE)
    image.header.set_slope_inter(slope, -1024)
    path = tmp_path / "ct.nii.gz"
    image.to_filename(path)  # given a scale, nibabel writes the values unscaled
    volume = read_volume([path])
    assert volume.image_CDHW.dtype == kept
    assert volume.image_CDHW.min() == slope - 1024
    assert volume.image_CDHW.max() == 120 * slope - 1024


def test_channels_share_one_dtype_and_one_grid(tmp_path: Path) -> None:
    paths = [
        write_nifti(tmp_path / "a.nii.gz", some(np.int16)),
        write_nifti(tmp_path / "b.nii.gz", some(np.float32) / 2),
    ]
    volume = read_volume(paths)
    assert volume.image_CDHW.dtype == np.float32
    assert volume.image_CDHW.shape == (2, 5, 6, 4)  # left, superior, anterior -> D, H, W
    np.testing.assert_array_equal(volume.image_CDHW[0], 2 * volume.image_CDHW[1])
    assert volume.spacing_mm == (1.5, 2.0, 1.0)
    assert [channel.mean for channel in volume.statistics] == [60.5, 30.25]


def test_statistics_ignore_zeros(tmp_path: Path) -> None:
    data = np.zeros(SHAPE, np.int16)
    data[0, 0, :4] = [10, 20, 30, 40]
    volume = read_volume([write_nifti(tmp_path / "a.nii.gz", data)])
    (channel,) = volume.statistics
    assert (channel.mean, channel.min, channel.max) == (25, 10, 40)
    assert channel.std == pytest.approx(np.std([10, 20, 30, 40]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.nii.gz").problem == "a file is missing"


@pytest.mark.parametrize("kept", [0, 5, 0.2, 0.7, -9, -1])
def test_a_truncated_gzip_is_refused(tmp_path: Path, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    assert refused(path).problem == "a file is truncated or damaged"


def test_a_flipped_bit_in_a_gzip_is_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = tmp_path / "a.nii.gz"
    content = bytearray(gzip.compress(nib.Nifti1Image(noise, AFFINE).to_bytes(), compresslevel=0))
    content[5000] ^= 1
    path.write_bytes(content)
    assert "CRC" in refused(path).got


def test_a_truncated_plain_file_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", some())
    path.write_bytes(path.read_bytes()[:-10])
    assert refused(path).problem == "a file is truncated or damaged"


def test_a_file_that_is_no_nifti_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"not a header" * 100)
    assert refused(path).problem == "a file is truncated or damaged"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_voxels_must_be_finite(tmp_path: Path, value: float) -> None:
    data = some(np.float64)
    data[1, 2, 3] = value
    error = refused(write_nifti(tmp_path / "a.nii.gz", data))
    assert error.got == "1 of 120 voxels"


def test_a_fourth_dimension_is_refused(tmp_path: Path) -> None:
    error = refused(write_nifti(tmp_path / "a.nii.gz", np.ones((4, 5, 6, 2), np.int16)))
    assert error.got == "shape (4, 5, 6, 2)"


def test_a_singular_affine_is_refused(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    path = tmp_path / "a.nii.gz"
    nib.Nifti1Image(some(), None, header).to_filename(path)
    assert "affine" in refused(path).problem


def test_an_image_of_zeros_is_refused(tmp_path: Path) -> None:
    error = refused(write_nifti(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.int16)))
    assert error.problem == "an image has no non-zero voxel"


def test_colours_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refused(write_nifti(tmp_path / "a.nii.gz", rgb)).problem == "voxels must be numbers"


def test_channels_of_different_shapes_are_refused(tmp_path: Path) -> None:
    first = write_nifti(tmp_path / "a.nii.gz", some())
    second = write_nifti(tmp_path / "b.nii.gz", np.ones((4, 5, 7), np.int16))
    with pytest.raises(DataError, match="different shapes") as caught:
        read_volume([first, second])
    assert caught.value.where == str(second)


def test_channels_of_different_affines_are_refused(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[1, 3] += 0.5
    first = write_nifti(tmp_path / "a.nii.gz", some())
    second = write_nifti(tmp_path / "b.nii.gz", some(), moved)
    with pytest.raises(DataError, match="different affines") as caught:
        read_volume([first, second])
    assert caught.value.where == str(second)


def test_bytes_after_a_gzip_stream_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", some())
    expected = read_volume([path]).image_CDHW
    path.write_bytes(path.read_bytes() + b"written by a scanner")
    np.testing.assert_array_equal(read_volume([path]).image_CDHW, expected)
    assert "bytes after the end of its gzip stream" in caplog.text


@pytest.mark.parametrize(
    ("name", "dims", "two"),
    [
        ("a.nii.gz", (0, 10, 10), False),
        ("a.nii.gz", (-5, 10, 10), False),
        ("a.nii.gz", (100_000,) * 3, True),
        ("a.nii.gz", (2**32, 2**32, 1), True),
        ("a.nii", (32_000,) * 3, False),
        ("a.nii", (-1, 10, -10), True),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(
    tmp_path: Path, name: str, dims: tuple[int, ...], two: bool
) -> None:
    error = refused(write_header(tmp_path / name, dims, 2000, two))
    assert error.problem == "a file is truncated or damaged"
    assert str(dims) in error.got


def test_a_file_that_is_one_byte_short_is_refused_by_its_size(tmp_path: Path) -> None:
    assert "holds at most 591" in refused(write_header(tmp_path / "a.nii", SHAPE, 239)).got


@pytest.mark.parametrize("offset", [np.nan, np.inf, -1e30, 1e30])
def test_an_absurd_place_of_the_voxels_is_refused(tmp_path: Path, offset: float) -> None:
    path = write_nifti(tmp_path / "a.nii", some())
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(offset).tobytes()
    path.write_bytes(content)
    assert refused(path).problem == "a file is truncated or damaged"


@pytest.mark.parametrize(
    "size", ["0 10 10", "-5 10 10", "4000 4000 4000", "4294967296 4294967296 1"]
)
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_absurd_headers_of_other_formats_are_refused(
    tmp_path: Path, ending: str, size: str
) -> None:
    headers = {
        ".nrrd": f"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {size}\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\n"
        "encoding: raw\nspace origin: (0,0,0)\n\n",
        ".mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
        f"ElementSpacing = 1 1 1\nDimSize = {size}\nElementType = MET_SHORT\n"
        "ElementDataFile = LOCAL\n",
    }
    path = tmp_path / f"a{ending}"
    path.write_bytes(headers[ending].encode() + bytes(2000))
    assert refused(path).problem == "a file is truncated or damaged"


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 4\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: raw\n"
    "space origin: (0,0,0)\n"
)
META_IMAGE = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    "Offset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 4 4 4\nElementType = MET_SHORT\n"
)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        (
            "a.nrrd",
            NRRD.replace("sizes:", "kinds: vector domain domain domain\nsizes: 9000000")
            .replace("dimension: 3", "dimension: 4")
            .replace("directions:", "directions: none"),
        ),
        ("a.mha", f"{META_IMAGE}ElementNumberOfChannels = 9000000\nElementDataFile = LOCAL\n"),
        # The voxels are in a file of 128 bytes. A list begins with LIST in capital letters.
        ("a.nhdr", NRRD.replace("4 4 4", "900 900 900") + "data file: listing.raw\n"),
        ("a.mhd", META_IMAGE.replace("4 4 4", "900 900 900") + "ElementDataFile = listing.raw\n"),
        # A key that stands among the voxels names no file.
        ("a.nrrd", NRRD.replace("4 4 4", "900 900 900") + "\ndata file: LIST\n"),
        (
            "a.mha",
            META_IMAGE.replace("4 4 4", "900 900 900")
            + "ElementDataFile = LOCAL\nElementDataFile = LIST\n",
        ),
    ],
)
def test_voxels_that_cannot_be_in_their_file_take_no_memory(
    tmp_path: Path, name: str, header: str
) -> None:
    """They took 1.2 to 1.4 GiB."""
    (tmp_path / "listing.raw").write_bytes(bytes(128))
    (tmp_path / name).write_bytes(header.encode() + b"\n" + bytes(128))
    assert "EOFError: its header says 1" in refused(tmp_path / name).got


@pytest.mark.parametrize(
    ("unit", "of_mm"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1), ("unknown", 1)]
)
def test_voxels_of_a_nifti_in_another_unit_are_read_in_mm(
    tmp_path: Path, unit: str, of_mm: float
) -> None:
    """ITK does the same. They counted as mm, and so were a thousand times too large or small."""
    image = nib.Nifti1Image(some(), AFFINE)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "a.nii")
    image.to_filename(tmp_path / "label.nii")
    volume = read_volume([tmp_path / "a.nii"])
    expected = nib.as_closest_canonical(image).affine
    np.testing.assert_allclose(volume.affine[:3], expected[:3] * of_mm)
    labels = {str(value): value for value in range(121)}
    label_DHW, original = read_label(tmp_path / "label.nii", labels, volume.original)
    restored = original.restore(label_DHW)
    np.testing.assert_array_equal(restored.affine, image.affine)
    assert restored.header.get_xyzt_units()[0] == unit


@pytest.mark.parametrize(
    ("name", "units", "is_read"),
    [
        ("a.nrrd", 'space units: "um" "um" "um"', False),
        ("a.nrrd", 'space units: "mm" "mm" "mm"', True),
        ("a.mha", "DistanceUnits = um", False),
        ("a.mha", "DistanceUnits = mm", True),
        ("a.mha", "DistanceUnits = ?", True),
    ],
)
def test_an_nrrd_or_metaimage_in_another_unit_than_mm_is_refused(
    tmp_path: Path, name: str, units: str, is_read: bool
) -> None:
    """ITK takes its numbers for mm."""
    end = "\n" if name == "a.nrrd" else "ElementDataFile = LOCAL\n"
    header = (NRRD if name == "a.nrrd" else META_IMAGE) + units + "\n" + end
    (tmp_path / name).write_bytes(header.encode() + bytes(range(128)))
    if is_read:
        assert read_volume([tmp_path / name]).image_CDHW.size == 64
    else:
        assert "its distances are in um; only mm are read" in refused(tmp_path / name).got


@pytest.mark.parametrize("voxels", ["/dev/zero", "missing.raw", "."])
@pytest.mark.parametrize(
    ("name", "header"),
    [("a.nhdr", f"{NRRD}data file: "), ("a.mhd", f"{META_IMAGE}ElementDataFile = ")],
)
def test_voxels_are_read_from_files_only(
    tmp_path: Path, name: str, header: str, voxels: str
) -> None:
    (tmp_path / name).write_text(f"{header}{voxels}\n")
    assert "which is not a file" in refused(tmp_path / name).got


@pytest.mark.parametrize(
    ("name", "voxels"),
    [
        ("a.nhdr", "data file: LIST\ns0.raw\ns1.raw\ns2.raw\ns3.raw\n"),
        ("a.nhdr", "data file: s%d.raw 0 3 1\n"),
        ("a.mhd", "ElementDataFile = LIST\ns0.raw\ns1.raw\ns2.raw\ns3.raw\n"),
        ("a.mhd", "ElementDataFile = LIST 2\ns0.raw\ns1.raw\ns2.raw\ns3.raw\n"),
        ("a.mhd", "ElementDataFile = LIST 2D\ns0.raw\ns1.raw\ns2.raw\ns3.raw\n"),
        ("a.mhd", "ElementDataFile = s%01d.raw 0 3 1\n"),
    ],
)
def test_voxels_are_read_from_a_file_for_each_slice(tmp_path: Path, name: str, voxels: str) -> None:
    for number in range(4):
        content = np.full((4, 4), number, "<i2").tobytes()
        (tmp_path / f"s{number}.raw").write_bytes(content)
    (tmp_path / name).write_text((NRRD if name == "a.nhdr" else META_IMAGE) + voxels)
    image_DHW = read_volume([tmp_path / name]).image_CDHW[0]
    assert (image_DHW == np.arange(4)[:, None, None]).all()


def test_the_files_of_a_volume_are_those_that_its_header_names(tmp_path: Path) -> None:
    names = ["a.mhd", "s0.raw", "s1.raw"]
    for name in names[1:]:
        (tmp_path / name).write_bytes(bytes(32))
    for place in ("LIST\ns0.raw\ns1.raw\n", "s%d.raw 0 5 1\n"):
        (tmp_path / "a.mhd").write_text(f"{META_IMAGE}ElementDataFile = {place}")
        assert [path.name for path in files_of(tmp_path / "a.mhd")] == names
    for place in ("s1.raw", "LOCAL", "/missing", "LIST"):
        (tmp_path / "a.nhdr").write_text(f"{NRRD}data file: {place}\n")
        found = [path.name for path in files_of(tmp_path / "a.nhdr")]
        assert found == ["a.nhdr", "s1.raw"][: 2 if place == "s1.raw" else 1]


@pytest.mark.parametrize(
    ("voxels", "problem"),
    [
        ("LIST\ns.raw\ns.raw\n", "names 2 files for 4 slices"),
        ("s%d.raw 1 2 1\n", "names 2 files for 4 slices"),
        ("LIST 1\ns.raw\ns.raw\ns.raw\ns.raw\n", "names 4 files for 4 slices"),
        ("LIST x\ns.raw\n", "LIST x, which is not a file"),
        ("s%d.raw 1 4\n", "which is not a file"),
        ("s%d.raw 1 4 0\n", "which is not a file"),
        ("s%d.raw 4 1 -1\n", "which is not a file"),
        ("s%s%s%s%n.raw 1 4 1\n", "which is not a file"),
        ("50%.raw\n", "names its files by 50%.raw"),
    ],
)
def test_files_that_are_not_one_for_each_slice_are_refused(
    tmp_path: Path, voxels: str, problem: str
) -> None:
    """ITK left slices as they were in memory, or ended the process with SIGFPE or SIGSEGV."""
    for name in ("s.raw", "s1.raw", "s2.raw", "50%.raw"):
        (tmp_path / name).write_bytes(bytes(32))
    (tmp_path / "a.mhd").write_text(f"{META_IMAGE}ElementDataFile = {voxels}")
    assert problem in refused(tmp_path / "a.mhd").got


@pytest.mark.parametrize("files", ["LIST\ns1.raw\ns2.raw\n", "s%d.raw 1 2 1\n"])
def test_slices_that_cannot_be_in_their_files_take_no_memory(tmp_path: Path, files: str) -> None:
    for name in ("s1.raw", "s2.raw"):
        (tmp_path / name).write_bytes(bytes(32))
    header = META_IMAGE.replace("4 4 4", "90000 90000 2")
    (tmp_path / "a.mhd").write_text(f"{header}ElementDataFile = {files}")
    assert "EOFError: its header says 3" in refused(tmp_path / "a.mhd").got


def test_an_nrrd_with_a_wide_number_in_its_file_names_does_not_end_the_process(
    tmp_path: Path,
) -> None:
    """ITK has room for a short name, and wrote past its end."""
    (tmp_path / "a.nhdr").write_text(f"{NRRD}data file: s%9999999d.raw 1 4 1\n")
    assert "which is not a file" in refused(tmp_path / "a.nhdr").got


def test_a_header_with_many_empty_lines_is_read_at_once(tmp_path: Path) -> None:
    """It took 72 s. The voxels of a file may begin with as many bytes of the value 10."""
    began = time.process_time()
    (tmp_path / "a.mha").write_bytes(b"\n" * 70000)
    refused(tmp_path / "a.mha")
    assert time.process_time() - began < 10


@pytest.mark.parametrize("dimensions", ["39223372036854775808", "11", "0", "-3", "x"])
def test_an_absurd_number_of_dimensions_does_not_end_the_process(
    tmp_path: Path, dimensions: str
) -> None:
    """ITK has room for ten, and does not count them."""
    path = tmp_path / "a.mha"
    path.write_text(
        f"ObjectType = Image\nNDims = {dimensions}\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        "Offset = 0 0 0\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    assert refused(path).problem == "a file is truncated or damaged"


@pytest.mark.parametrize("name", ["a.nrrd", "a.NRRD", "a.nhdr"])
@pytest.mark.parametrize("begin", ["space: ", "type: ", "data file: ", "s", "a: b:="])
def test_a_long_field_of_an_nrrd_does_not_end_the_process(
    tmp_path: Path, begin: str, name: str
) -> None:
    """ITK's reader writes the value into its message, for which it has some thousand bytes."""
    path = tmp_path / name
    path.write_text(
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\n{begin}{'9' * 2000}\n"
        "endian: little\nencoding: raw\n\n"
    )
    assert refused(path).problem == "a file is truncated or damaged"


def test_the_voxels_of_an_nhdr_may_lie_in_a_file_with_an_umlaut(tmp_path: Path) -> None:
    (tmp_path / "Müller.raw").write_bytes(bytes(range(64)))
    path = tmp_path / "a.nhdr"
    path.write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 4\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\n"
        "data file: Müller.raw\n",
        encoding="utf-8",
    )
    assert read_volume([path]).image_CDHW.size == 64


def test_an_nrrd_may_have_long_comments_and_long_text_of_a_program(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(
        b"NRRD0004\n# " + b"x" * 2000 + b"\nkey:=" + b"x" * 2000 + b"\ntype: uchar\ndimension: 3\n"
        b"space: left-posterior-superior\nsizes: 4 4 4\nencoding: raw\n"
        b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n" + bytes(range(64))
    )
    assert read_volume([path]).image_CDHW.size == 64


def test_voxels_of_an_nrrd_may_lie_in_a_file_beside_it(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(
        np.arange(1, 60 * 70 * 80 + 1, dtype=np.int32).reshape(60, 70, 80)
    )
    sitk.WriteImage(image, str(tmp_path / "a.nhdr"))
    (tmp_path / "a.nhdr").rename(tmp_path / "a.nrrd")
    assert read_volume([tmp_path / "a.nrrd"]).image_CDHW.size == 60 * 70 * 80


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_extensions_of_the_header_survive_the_way_back(tmp_path: Path, kind: Any) -> None:
    image = kind(some(), AFFINE)
    contents = [(6, b"acquired on a Tuesday"), (4, b"<AFNI_attributes/>" * 40)]
    for code, content in contents:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, content))
    image.to_filename(tmp_path / "a.nii.gz")
    volume = read_volume([tmp_path / "a.nii.gz"])
    label_DHW = np.ones(volume.image_CDHW.shape[1:], np.uint8)
    volume.restore_label(label_DHW, np.uint8).to_filename(tmp_path / "label.nii.gz")
    restored = nib.load(tmp_path / "label.nii.gz")
    found = [(one.get_code(), one.get_content()) for one in restored.header.extensions]
    assert [code for code, _ in found] == [6, 4]
    for (_, expected), (_, content) in zip(contents, found, strict=True):
        text = content.encode() if isinstance(content, str) else content
        assert text.rstrip(b"\0") == expected
    assert np.asarray(restored.dataobj).all()
    np.testing.assert_array_equal(restored.affine, AFFINE)


@pytest.mark.parametrize("shape_ZYX", [(1, 9, 8), (9, 8), (5, 9, 8)])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_colours_are_not_taken_for_slices(
    tmp_path: Path, shape_ZYX: tuple[int, ...], ending: str
) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (*shape_ZYX, 3), np.uint8)
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(path))
    shape = (8, 9) if len(shape_ZYX) == 2 else (8, 9, shape_ZYX[0], 3)
    with pytest.raises(DataError, match=f"three dimensions.*{re.escape(str(shape))}"):
        read_volume([path])
