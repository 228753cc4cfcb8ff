from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import Image

from segresmamba.data import convert, open_dataset, verify
from segresmamba.data.conversion.plan import ConversionPlan, ConversionRequest
from segresmamba.data.volumes import volume
from segresmamba.errors import DataError
from tests.data.raw import (
    SHAPES,
    describe,
    image_path,
    label_path,
    write_header,
    write_nifti,
    write_raw,
)


def shards(store: Path) -> dict[str, int]:
    """When each voxel file was written."""
    return {str(path): path.stat().st_mtime_ns for path in store.rglob("c/**/0") if path.is_file()}


def refused(raw: Path, store: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        convert(raw, store)
    assert len(caught.value.screen().splitlines()) < 24
    return caught.value


def test_voxels_and_geometry_are_those_of_the_files(sound_raw: Path, sound_store: Path) -> None:
    dataset = open_dataset(sound_store)
    assert dataset.case_ids == ("case_0", "case_1", "case_2")
    for number, case_id in enumerate(dataset.case_ids):
        case = dataset[case_id]
        image_CDHW, label_DHW = case.read()
        files = [nib.load(image_path(sound_raw, case_id, channel)) for channel in range(2)]
        for channel, file in enumerate(files):
            canonical = nib.as_closest_canonical(file)
            np.testing.assert_array_equal(image_CDHW[channel].T, np.asarray(canonical.dataobj))
            np.testing.assert_array_equal(case.affine, canonical.affine)
        assert image_CDHW.dtype == np.int16
        assert files[0].shape == SHAPES[number]
        restored, original = case.restore_label(label_DHW), nib.load(label_path(sound_raw, case_id))
        np.testing.assert_array_equal(np.asarray(restored.dataobj), np.asarray(original.dataobj))
        np.testing.assert_array_equal(restored.affine, original.affine)
        assert restored.get_data_dtype() == original.get_data_dtype()
        assert case.spacing_mm == (1.5, 2.0, 1.0)


def test_statistics_are_those_of_the_voxels(sound_store: Path) -> None:
    case = open_dataset(sound_store)["case_1"]
    image_CDHW, label_DHW = case.read()
    for channel, values in enumerate(image_CDHW):
        nonzero = values[values != 0]
        low, high, mean, std = case.normalisation_C4[channel]
        assert (low, high) == (-np.inf, np.inf)
        assert mean == pytest.approx(nonzero.mean())
        assert std == pytest.approx(nonzero.std())
        kept = case.record.statistics[channel]
        assert (kept.min, kept.max) == (nonzero.min(), nonzero.max())
        assert kept.percentile_00_5 == np.percentile(nonzero, 0.5)
        assert kept.percentile_99_5 == np.percentile(nonzero, 99.5)
    assert case.class_values == (1, 2)
    for value in case.class_values:
        np.testing.assert_array_equal(case.class_positions(value), np.argwhere(label_DHW == value))


def test_each_case_is_an_ome_zarr_image(sound_store: Path) -> None:
    for case_id in open_dataset(sound_store).case_ids:
        group = zarr.open_group(sound_store / case_id, mode="r")
        image = Image.from_zarr(group)
        assert image.labels is not None
        assert image.labels.label_paths == ["segmentation"]
        (multiscale,) = image.ome_attributes.multiscales
        assert [axis.name for axis in multiscale.axes] == ["c", "z", "y", "x"]
        transforms = multiscale.datasets[0].coordinateTransformations
        assert transforms[0].scale == [1.0, 1.5, 2.0, 1.0]


def test_ome_zarr_opens_a_case_with_its_label(sound_store: Path) -> None:
    location = parse_url(str(sound_store / "case_1"))
    assert location is not None
    image, _, label = Reader(location)()
    case = open_dataset(sound_store)["case_1"]
    np.testing.assert_array_equal(image.data[0], case.read()[0])
    np.testing.assert_array_equal(label.data[0], case.read()[1])
    assert label.metadata["properties"][2] == {"name": "box"}
    assert image.metadata["coordinateTransformations"][0][0]["scale"] == [1.0, 1.5, 2.0, 1.0]


def test_a_case_takes_few_files(sound_store: Path) -> None:
    files = [path for path in (sound_store / "case_1").rglob("*") if path.is_file()]
    voxels = [path for path in files if path.name != "zarr.json"]
    assert len(voxels) == 3  # one shard each for image, label and positions
    assert len(files) == 9


def test_processes_change_nothing_but_time(
    sound_raw: Path, sound_store: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    done = convert(
        sound_raw, tmp_path / "store", workers=2, progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert done.digest == open_dataset(sound_store).digest
    assert verify(tmp_path / "store") == []


def test_finished_cases_are_not_redone(raw: Path, tmp_path: Path) -> None:
    first = convert(raw, tmp_path / "store")
    before = shards(tmp_path / "store")
    again = convert(raw, tmp_path / "store")
    assert first.converted == again.kept == ("case_0", "case_1", "case_2")
    assert again.converted == ()
    assert again.digest == first.digest
    assert shards(tmp_path / "store") == before


def test_a_case_whose_files_changed_is_redone(raw: Path, tmp_path: Path) -> None:
    first = convert(raw, tmp_path / "store")
    path = image_path(raw, "case_1")
    changed = np.asarray(nib.load(path).dataobj) + 1
    write_nifti(path, changed.astype(np.int16))
    again = convert(raw, tmp_path / "store")
    assert again.converted == ("case_1",)
    assert again.digest != first.digest
    assert verify(tmp_path / "store") == []


def test_a_case_is_redone_if_the_voxels_changed_that_its_header_names(
    raw: Path, tmp_path: Path
) -> None:
    for path in sorted(raw.rglob("*.nii.gz")):
        sitk.WriteImage(sitk.ReadImage(path), str(path).replace(".nii.gz", ".mhd"))
        path.unlink()
    describe(raw, file_ending=".mhd")
    voxels = image_path(raw, "case_1").with_name("case_1_0000.raw")
    first = convert(raw, tmp_path / "store")
    content = np.frombuffer(voxels.read_bytes(), np.int16)
    voxels.write_bytes((content + 1).tobytes())
    again = convert(raw, tmp_path / "store")
    assert again.converted == ("case_1",)
    assert again.digest != first.digest


def test_a_new_case_is_added(raw: Path, tmp_path: Path) -> None:
    convert(raw, tmp_path / "store")
    for path in (image_path(raw, "case_0"), label_path(raw, "case_0")):
        shutil.copy(path, str(path).replace("case_0", "case_9"))
    describe(raw, numTraining=4)
    assert convert(raw, tmp_path / "store").converted == ("case_9",)
    assert "case_9" in open_dataset(tmp_path / "store").case_ids


def test_a_killed_conversion_goes_on_where_it_was(raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    script = (
        "import os, pathlib, segresmamba.data as data\n"
        "stop = lambda done, total: os._exit(9) if done == 2 else None\n"
        f"data.convert(pathlib.Path({str(raw)!r}), pathlib.Path({str(store)!r}), progress=stop)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    for name in (".case_2.0123.tmp", ".part-host-1-case_2"):  # as if killed while writing
        (store / name).mkdir()
    with pytest.raises(DataError, match="no converted dataset"):
        open_dataset(store)
    done = convert(raw, store)
    assert (done.kept, done.converted) == (("case_0", "case_1"), ("case_2",))
    assert verify(store) == []
    assert not list(store.glob(".*"))


def test_all_bad_cases_are_reported_at_once_and_good_ones_kept(raw: Path, tmp_path: Path) -> None:
    image_path(raw, "case_0").unlink()
    path = label_path(raw, "case_2")
    content = path.read_bytes()
    path.write_bytes(content[:60])
    error = refused(raw, tmp_path / "store")
    assert error.problem.startswith("2 of 3 cases")
    assert str(image_path(raw, "case_0")) in error.got
    assert str(path) in error.got
    assert [entry.name for entry in (tmp_path / "store").glob("case*")] == ["case_1"]
    path.write_bytes(content)
    write_nifti(image_path(raw, "case_0"), np.ones(SHAPES[0], np.int16))
    assert convert(raw, tmp_path / "store").kept == ("case_1",)


def test_a_screen_holds_the_faults_of_a_hundred_cases(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", shapes=[(5, 5, 5)] * 100)
    for path in (raw / "labelsTr").iterdir():
        path.unlink()
    error = refused(raw, tmp_path / "store")
    assert error.problem.startswith("100 of 100")
    assert "and 88 more" in error.got


def test_one_bad_case_is_named_with_its_file(raw: Path, tmp_path: Path) -> None:
    label_path(raw, "case_1").unlink()
    error = refused(raw, tmp_path / "store")
    assert (error.problem, error.where) == ("a file is missing", str(label_path(raw, "case_1")))


def test_a_second_modality_must_be_there(raw: Path, tmp_path: Path) -> None:
    describe(raw, channel_names={"0": "T1", "1": "T2"})
    error = refused(raw, tmp_path / "store")
    assert "case_0_0001.nii.gz" in error.got
    assert not (tmp_path / "store").exists()


def test_a_class_that_never_occurs_is_refused(raw: Path, tmp_path: Path) -> None:
    path = describe(raw, labels={"background": 0, "ball": 1, "box": 2, "rod": 3})
    error = refused(raw, tmp_path / "store")
    assert (error.where, error.got) == (f"{path}: labels", "rod (3)")
    with pytest.raises(DataError, match="no converted dataset"):
        open_dataset(tmp_path / "store")


def test_a_case_without_foreground_is_converted(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    write_nifti(label_path(raw, "case_0"), np.zeros(SHAPES[0], np.uint8))
    convert(raw, tmp_path / "store")
    case = open_dataset(tmp_path / "store")["case_0"]
    assert case.class_values == ()
    assert not case.read()[1].any()
    assert case.class_positions(1).shape == (0, 3)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_content_is_never_touched(
    raw: Path, tmp_path: Path, overwrite: bool
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="something else") as caught:
        convert(raw, store, overwrite=overwrite)
    assert caught.value.got == "thesis.tex"
    assert [path.name for path in store.iterdir()] == ["thesis.tex"]


def test_cases_of_another_source_are_not_mixed_in(raw: Path, store: Path) -> None:
    error = refused(raw, store)
    assert error.where.endswith("channel_names")
    assert "--overwrite" in error.remedy
    assert open_dataset(store).channel_names == ("channel 0", "channel 1")


def test_a_case_that_the_source_has_lost_is_named(raw: Path, tmp_path: Path) -> None:
    convert(raw, tmp_path / "store")
    label_path(raw, "case_1").unlink()
    image_path(raw, "case_1").unlink()
    describe(raw, numTraining=2)
    assert refused(raw, tmp_path / "store").got == "case_1"


def test_overwrite_replaces_another_conversion(raw: Path, store: Path) -> None:
    done = convert(raw, store, overwrite=True)
    assert len(done.converted) == 3
    assert open_dataset(store).channel_names == ("channel 0",)
    assert verify(store) == []


def test_a_folder_that_cannot_be_made_is_named(raw: Path) -> None:
    error = refused(raw, Path("/proc/store"))
    assert (error.problem, error.where) == ("the output folder cannot be written", "/proc/store")


def test_a_read_only_folder_is_named(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o555)
    if os.geteuid() == 0:  # root writes anyway: have the system refuse as it would others

        def refuse(_: int) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "fsync", refuse)
    error = refused(raw, store)
    assert (error.where, error.got) == (str(store), "Permission denied")
    assert not any(store.iterdir())


def test_a_full_disk_leaves_no_half_case(raw: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        error = refused(raw, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "3 of 3 cases" in error.problem
    assert "cannot be written" in error.got
    assert not (tmp_path / "store").exists()
    assert convert(raw, tmp_path / "store").converted


def test_two_conversions_do_not_share_a_store(raw: Path, store: Path) -> None:
    with (
        ConversionPlan.from_request(ConversionRequest(raw, store, overwrite=True))
        .folder(overwrite=True)
        .locked()
    ):
        error = refused(raw, store)
    assert error.problem == "another conversion is writing to this store"
    assert f"process {os.getpid()}, since 20" in error.got
    assert socket.gethostname() in error.got
    assert not (store / ".lock").exists()


def test_a_store_says_what_made_it(sound_store: Path) -> None:
    content = json.loads((sound_store / "dataset.json").read_text())
    assert content["storage"]["codec"] == open_dataset(sound_store).codec
    assert content["storage"]["orientation"] == "RAS"
    assert zarr.open_group(sound_store, mode="r")["case_0/0"].shape == (2, 34, 50, 40)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_header_that_cannot_be_true_stops_no_other_case(
    raw: Path, tmp_path: Path, workers: int
) -> None:
    write_header(image_path(raw, "case_1"), (100_000,) * 3, 0, two=True)
    with pytest.raises(DataError) as caught:
        convert(raw, tmp_path / "store", workers=workers)
    assert caught.value.where == str(image_path(raw, "case_1"))
    assert [path.name for path in sorted(tmp_path.glob("store/case*"))] == ["case_0", "case_2"]


@pytest.mark.parametrize("problem", [MemoryError(), TypeError("odd"), RecursionError("deep")])
def test_a_case_that_fails_in_any_way_stops_no_other_case(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    reads = volume.open_voxels

    def failing(path: Path, channels: int = 0) -> object:
        if "case_1" in path.name:
            raise problem
        return reads(path, channels)

    monkeypatch.setattr(volume, "open_voxels", failing)
    error = refused(raw, tmp_path / "store")
    assert error.where == f"case case_1: {image_path(raw, 'case_1')}"
    assert [path.name for path in sorted(tmp_path.glob("store/case*"))] == ["case_0", "case_2"]
