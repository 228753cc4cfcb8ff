"""What a policy makes of a dataset, and that a store keeps to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import zarr
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel

from segresmamba.data import (
    Policy,
    Preprocessing,
    convert,
    normalise,
    open_dataset,
    read_volume,
    repair,
    verify,
)
from segresmamba.data.conversion.convert import finish, prepare
from segresmamba.data.conversion.plan import ConversionRequest
from segresmamba.data.preprocessing import Normalisation, ct_normalisation
from segresmamba.data.records import Intensity, Spacing
from segresmamba.data.store.manifest import Manifest, build_manifest
from segresmamba.data.volumes.statistics import channel_statistics
from segresmamba.errors import DataError
from tests.data.raw import AFFINE, SHAPES, describe, image_path, label_path, write_nifti, write_raw

KEEP = {"spacing": "keep", "crop": False, "intensity": "auto", "dtype": "auto"}


def policy(**words: Any) -> Policy:
    return Policy.from_options(**(KEEP | words))


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ({"spacing": "wide"}, "--spacing"),
        ({"spacing": "1,1"}, "--spacing"),
        ({"spacing": "1,0,1"}, "--spacing"),
        ({"spacing": "1,nan,1"}, "--spacing"),
        ({"intensity": "mri"}, "--intensity"),
        ({"intensity": "ct,"}, "--intensity"),
        ({"dtype": "int8"}, "--dtype"),
    ],
)
def test_words_that_mean_nothing_are_refused(words: dict[str, str], option: str) -> None:
    with pytest.raises(DataError) as caught:
        policy(**words)
    assert (caught.value.where, caught.value.got) == (option, next(iter(words.values())))
    assert len(caught.value.screen().splitlines()) < 8


@pytest.mark.parametrize(
    ("low", "high", "own", "target"),
    [
        ((2, 2, 2), (2, 2, 2), (2.01, 1.99, 2), None),
        ((2, 2, 2), (2, 2, 2), (1.2, 1.2, 1.2), (2, 2, 2)),
        ((5, 0.8, 0.8), (5.02, 0.8, 0.8), (0.8, 0.8, 5), (5.01, 0.8, 0.8)),
        ((5, 0.6, 0.6), (5, 0.9, 0.9), (5, 0.75, 0.75), None),
    ],
)
def test_one_voxel_size_of_all_cases_is_the_networks(
    low: Spacing, high: Spacing, own: Spacing, target: Spacing | None
) -> None:
    found = Preprocessing(trained_mm=(low, high)).target_mm(own, "a.nii")
    assert found == (target and pytest.approx(target, rel=1e-4))


def test_an_image_of_another_voxel_size_is_resampled_to_the_networks(tmp_path: Path) -> None:
    coarse_XYZ = np.random.default_rng(0).integers(1, 999, (9, 10, 11)).astype(np.int16)
    coarse = write_nifti(tmp_path / "a.nii.gz", coarse_XYZ, np.diag([2.0, 2.0, 2.0, 1.0]))
    # Each voxel becomes eight, whose centres lie a quarter of it beside its own.
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -0.5
    fine_XYZ = np.kron(coarse_XYZ, np.ones((2, 2, 2), np.int16))
    fine = write_nifti(tmp_path / "b.nii.gz", fine_XYZ, affine)
    size = (2.0, 2.0, 2.0)
    seen = read_volume([fine], preprocessing=Preprocessing(trained_mm=(size, size)))
    np.testing.assert_allclose(seen.image_CDHW, read_volume([coarse]).image_CDHW)
    np.testing.assert_allclose(seen.affine, np.diag([2.0, 2.0, 2.0, 1.0]), atol=1e-9)


def test_an_image_outside_the_mixed_sizes_of_training_is_told_both_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mixed = Preprocessing(trained_mm=((1, 1, 1), (2, 2, 2)))
    assert mixed.target_mm((3, 1, 1), "a.nii") is None
    assert (
        "a.nii has voxels of 3 x 1 x 1 mm (D, H, W), and the network was trained on 1 x 1 x 1 to "
        "2 x 2 x 2" in caplog.text
    )


def test_a_store_knows_the_voxel_sizes_of_its_cases(ct_raw: Path, tmp_path: Path) -> None:
    dataset = resampled(ct_raw, tmp_path / "store")
    assert dataset.preprocessing.spacing_mm is None
    assert dataset.preprocessing.trained_mm is not None
    low, high = dataset.preprocessing.trained_mm
    sizes = [record.spacing_mm for record in dataset.manifest.cases.values()]
    assert (low, high) == (tuple(np.min(sizes, axis=0)), tuple(np.max(sizes, axis=0)))


def test_names_of_channels_mean_what_they_mean_to_nnunet() -> None:
    names = ("CT", "rescale_to_0_1", "rgb_to_0_1", "noNorm", "T2", "zscore")
    expected = ("ct", "rescale01", "rgb", "stored", "zscore", "zscore")
    assert policy().for_channels(names).intensity == expected


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("zscore", [0, 1, 1, 1], [0, 1, 1, 1]),  # a mask stays a mask
        ("zscore", [0, -4, -4], [0, -1, -1]),
        ("zscore-whole", [0, 0, 3, 3], [-1, -1, 1, 1]),
        ("zscore-whole", [7, 7, 7], [1, 1, 1]),
        ("rescale01", [0, 50, 200], [0, 0.25, 1]),
        ("rescale01", [-100, 0, 100], [0, 0.5, 1]),
        ("rgb", [0, 51, 255], [0, 0.2, 1]),
        ("stored", [0, 7, -3], [0, 7, -3]),
    ],
)
def test_intensities_stay_bounded(
    kind: Intensity, values: list[float], expected: list[float]
) -> None:
    statistics = channel_statistics(np.array(values, np.float32)[None, None])
    bounds_14 = Preprocessing(normalisation=(Normalisation(kind=kind),)).for_case([statistics])
    image = torch.tensor(values).reshape(1, 1, 1, 1, -1).float()
    normalised = normalise(image, torch.from_numpy(bounds_14)[None])
    assert normalised.flatten().tolist() == pytest.approx(expected)


def test_the_whole_image_is_normalised_by_the_mean_and_deviation_of_all_voxels(
    tmp_path: Path,
) -> None:
    raw = write_raw(tmp_path / "raw", SHAPES[:2])
    dataset = resampled(raw, tmp_path / "store", crop=True, intensity="zscore-whole")
    for case_id in dataset.case_ids:
        case = dataset[case_id]
        image_CDHW = torch.from_numpy(case.read()[0]).float()
        normalised = normalise(image_CDHW[None], torch.from_numpy(case.normalisation_C4)[None])
        assert normalised.mean().item() == pytest.approx(0, abs=1e-5)
        assert normalised.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_records_of_earlier_versions_lack_the_share_of_non_zero_voxels(
    sound_store: Path,
) -> None:
    manifest = open_dataset(sound_store).manifest
    content = json.loads(manifest.model_dump_json())
    for record in content["cases"].values():
        for one in record["statistics"]:
            assert one.pop("nonzero_share") > 0.99
    earlier = Manifest.model_validate(content)
    again = build_manifest(
        earlier.name,
        earlier.channel_names,
        earlier.labels,
        earlier.storage,
        earlier.cases,
        splits=earlier.splits,
    )
    assert again.digest == manifest.digest
    assert "nonzero_share" not in again.fingerprint["mean_intensities"]["channel 0"]
    whole = Preprocessing(normalisation=(Normalisation(kind="zscore-whole"),) * 2)
    with pytest.raises(ValueError, match="lacks the share"):
        whole.for_case(earlier.cases["case_0"].statistics)


def test_each_channel_gets_its_intensity() -> None:
    names = ("CT", "PET")
    assert policy().for_channels(names).intensity == ("ct", "zscore")
    assert policy(intensity="stored").for_channels(names).intensity == ("stored", "stored")
    assert policy(intensity="stored,auto").for_channels(names).intensity == ("stored", "zscore")
    with pytest.raises(DataError, match="each channel"):
        policy(intensity="ct,ct,ct").for_channels(names)


def resampled(raw: Path, store: Path, **words: Any) -> Any:
    convert(raw, store, policy=policy(**words))
    assert verify(store) == []
    return open_dataset(store)


def test_every_case_gets_the_median_spacing(raw: Path, tmp_path: Path) -> None:
    wide = AFFINE @ np.diag([2, 1, 1, 1])
    for path in (image_path(raw, "case_2"), label_path(raw, "case_2")):
        write_nifti(path, np.asarray(nib.load(path).dataobj), wide)
    dataset = resampled(raw, tmp_path / "store", spacing="median")
    assert dataset.preprocessing.spacing_mm == (1.5, 2.0, 1.0)
    assert dataset["case_0"].record.grid_transform is None
    changed = dataset["case_2"]
    np.testing.assert_allclose(changed.spacing_mm, (1.5, 2.0, 1.0))
    assert changed.shape_DHW == (40, 45, 66)
    assert changed.open_image().dtype == np.float32
    group = zarr.open_group(tmp_path / "store" / "case_2", mode="r")
    (multiscale,) = Image.from_zarr(group).ome_attributes.multiscales
    scale = multiscale.datasets[0].coordinateTransformations[0].scale
    np.testing.assert_allclose(scale, (1, 1.5, 2.0, 1.0))
    label = ImageLabel.from_zarr(group["labels/segmentation"])
    assert label.ome_attributes.image_label.source.image == "../../"
    original = nib.load(label_path(raw, "case_2"))
    np.testing.assert_array_equal(np.asarray(changed.reference().dataobj), original.dataobj)
    restored = changed.restore_label(changed.read()[1])
    assert restored.shape == original.shape
    np.testing.assert_array_equal(restored.affine, original.affine)
    assert (np.asarray(restored.dataobj) == np.asarray(original.dataobj)).mean() > 0.995


def test_voxels_of_different_sizes_are_pointed_out(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(raw, tmp_path / "alike")
    assert "different sizes" not in caplog.text
    for path in (image_path(raw, "case_2"), label_path(raw, "case_2")):
        write_nifti(path, np.asarray(nib.load(path).dataobj), AFFINE @ np.diag([2, 1, 1, 1]))
    convert(raw, tmp_path / "mixed")
    assert "1.5 to 1.5, 2 to 2, 1 to 2 mm along D, H, W" in caplog.text
    assert "--spacing median" in caplog.text


def test_the_median_of_a_store_that_has_begun_stays(raw: Path, tmp_path: Path) -> None:
    first = resampled(raw, tmp_path / "store", spacing="median")
    for number in range(3, 8):
        for path in (image_path(raw, "case_0"), label_path(raw, "case_0")):
            data = np.asarray(nib.load(path).dataobj)
            write_nifti(
                Path(str(path).replace("case_0", f"case_{number}")),
                (data + (data > 50) * number).astype(np.int16),
                AFFINE @ np.diag([2, 2, 2, 1]),
            )
    describe(raw, numTraining=8)
    again = resampled(raw, tmp_path / "store", spacing="median")
    assert len(again) == 8
    assert again.preprocessing.spacing_mm == first.preprocessing.spacing_mm


def test_a_crop_leaves_the_box_of_all_channels(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", channels=2)
    for channel, side in enumerate((slice(5, 30), slice(10, 33))):
        path = image_path(raw, "case_1", channel)
        data = np.zeros_like(np.asarray(nib.load(path).dataobj))
        data[side, 3:40, 9:] = np.asarray(nib.load(path).dataobj)[side, 3:40, 9:]
        write_nifti(path, data)
    dataset = resampled(raw, tmp_path / "store", crop=True)
    case = dataset["case_1"]
    assert case.shape_DHW == (37, 29, 28)  # file axes: left, superior, anterior
    assert case.open_image().dtype == np.int16
    original = np.asarray(nib.load(label_path(raw, "case_1")).dataobj)
    np.testing.assert_array_equal(np.asarray(case.reference().dataobj), original)
    outside = np.ones(original.shape, bool)
    outside[5:33, 3:40, 9:] = False
    restored = np.asarray(case.restore_label(case.read()[1]).dataobj)
    np.testing.assert_array_equal(restored, np.where(outside, 0, original))


def test_labels_outside_of_the_crop_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_raw(tmp_path / "raw")
    path = image_path(raw, "case_1")
    data = np.asarray(nib.load(path).dataobj).copy()
    data[:4] = 0
    write_nifti(path, data)
    resampled(raw, tmp_path / "store", crop=True)
    assert "case case_1: 48 labelled voxels lie where the image is 0" in caplog.text


@pytest.fixture
def ct_raw(tmp_path: Path) -> Path:
    raw = write_raw(tmp_path / "raw")
    describe(raw, channel_names={"0": "CT"})
    for number in range(3):
        path = image_path(raw, f"case_{number}")
        data = np.asarray(nib.load(path).dataobj).astype(np.int16)
        data[:, :8] = -1000
        data[-1, -1, -1] = 3000  # metal
        write_nifti(path, data)
    return raw


def foreground(raw: Path) -> np.ndarray:
    """As many labelled voxels of each case, as nnU-Net pools them."""
    parts = []
    for number in range(3):
        image, label = (
            np.asarray(nib.load(path(raw, f"case_{number}")).dataobj)
            for path in (image_path, label_path)
        )
        parts.append(np.quantile(image[label > 0], np.linspace(0, 1, 20_000)))
    return np.concatenate(parts)


def test_ct_is_normalised_by_the_foreground_of_all_cases(ct_raw: Path, tmp_path: Path) -> None:
    dataset = resampled(ct_raw, tmp_path / "store")
    pooled = foreground(ct_raw)
    (found,) = dataset.preprocessing.normalisation
    assert found.kind == "ct"
    np.testing.assert_allclose([found.low, found.high], np.percentile(pooled, (0.5, 99.5)), atol=2)
    np.testing.assert_allclose([found.mean, found.std], [pooled.mean(), pooled.std()], atol=0.5)
    expected = np.float32([found.low, found.high, found.mean, found.std])
    for case_id in dataset.case_ids:
        np.testing.assert_array_equal(dataset[case_id].normalisation_C4, expected[None])
        assert dataset[case_id].open_image().dtype == np.int16  # stored as it was


@pytest.fixture
def two_channels(tmp_path: Path) -> Path:
    """Noisy CT beside a map of fractions, one of them on another grid."""
    raw = write_raw(tmp_path / "two", channels=2)
    describe(raw, channel_names={"0": "CT", "1": "map"})
    rng = np.random.default_rng(0)
    for number, shape in enumerate(SHAPES):
        path = image_path(raw, f"case_{number}")
        data = np.asarray(nib.load(path).dataobj).astype(np.int16)
        data[:, :8] = rng.integers(-1020, -980, data[:, :8].shape)  # air
        data[-1, -1, -1] = 3000 + number  # metal
        write_nifti(path, data)
        fractions = rng.random(shape).astype(np.float32) if number == 1 else data
        write_nifti(image_path(raw, f"case_{number}", 1), fractions)
    return raw


@pytest.mark.parametrize("words", [{}, {"spacing": "3,2,2"}, {"dtype": "float32"}])
def test_clipped_ct_reaches_the_network_as_ct_does(
    two_channels: Path, tmp_path: Path, words: dict[str, str]
) -> None:
    whole, clipped = (
        resampled(two_channels, tmp_path / kind, intensity=f"{kind},zscore", **words)
        for kind in ("ct", "ct-clipped")
    )
    assert clipped.preprocessing == whole.preprocessing
    for case_id in whole.case_ids:
        seen, stored = [], []
        for dataset in (whole, clipped):
            case = dataset[case_id]
            stored.append(case.read()[0])
            image_CDHW = torch.from_numpy(stored[-1]).float()
            bounds_C4 = torch.from_numpy(case.normalisation_C4)
            seen.append(normalise(image_CDHW[None], bounds_C4[None]))
        assert torch.equal(*seen)
        assert stored[0].dtype == stored[1].dtype
        low, high = clipped.manifest.storage.clip[0]
        assert low - 1 < stored[1][0].min() < stored[0][0].min() + 1000
        assert stored[1][0].max() < high + 1
    assert clipped.digest != whole.digest


def test_bounds_of_clipped_ct_stay_when_cases_are_added(ct_raw: Path, tmp_path: Path) -> None:
    hidden = [(path, path.with_suffix(".away")) for path in ct_raw.glob("*/case_2*")]
    for path, away in hidden:
        path.rename(away)
    store = tmp_path / "store"
    first = resampled(ct_raw, store, intensity="ct-clipped")
    for path, away in hidden:
        away.rename(path)
    data = np.asarray(nib.load(image_path(ct_raw, "case_2")).dataobj)
    write_nifti(image_path(ct_raw, "case_2"), data * 2)
    assert convert(ct_raw, store, policy=policy(intensity="ct-clipped")).converted == ("case_2",)
    second = open_dataset(store)
    (before,), (after,) = first.preprocessing.normalisation, second.preprocessing.normalisation
    assert (after.low, after.high) == (before.low, before.high)
    assert after.mean > before.mean
    assert second["case_2"].read()[0].max() <= before.high + 1


def test_a_store_of_another_policy_is_refused_before_the_cases_are_read(
    ct_raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    convert(ct_raw, tmp_path / "store")
    with pytest.raises(DataError, match="under another policy"):
        convert(ct_raw, tmp_path / "store", policy=policy(intensity="ct-clipped"))
    assert "reading all cases once" not in caplog.text
    words = {"policy": policy(intensity="ct-clipped"), "overwrite": True}
    assert len(convert(ct_raw, tmp_path / "store", **words).converted) == 3
    assert open_dataset(tmp_path / "store").manifest.storage.clip


def test_an_array_of_jobs_cannot_begin_a_conversion_that_clips(
    ct_raw: Path, tmp_path: Path
) -> None:
    request = ConversionRequest(ct_raw, tmp_path / "store", policy=policy(intensity="ct-clipped"))
    with pytest.raises(DataError, match="array of jobs"):
        prepare(request)
    assert not request.out.exists()
    finish(request)
    assert prepare(request) == 0


def test_clipped_ct_needs_a_labelled_voxel(ct_raw: Path, tmp_path: Path) -> None:
    for number, shape in enumerate(SHAPES):
        write_nifti(label_path(ct_raw, f"case_{number}"), np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="there is none"):
        convert(ct_raw, tmp_path / "store", policy=policy(intensity="ct-clipped"))


def test_the_digest_tells_intensity_policies_apart(ct_raw: Path, tmp_path: Path) -> None:
    digests = {
        resampled(ct_raw, tmp_path / word, intensity=word).digest for word in ("ct", "zscore")
    }
    assert len(digests) == 2


def test_cases_weigh_the_same_in_the_normalisation_of_ct() -> None:
    found = ct_normalisation([[0.0] * 1000, [10.0] * 1000, [20.0] * 1000])
    assert (found.mean, found.low, found.high) == (10, 0, 20)


def test_intensities_as_stored_are_left_alone(raw: Path, tmp_path: Path) -> None:
    case = resampled(raw, tmp_path / "store", intensity="stored")["case_0"]
    np.testing.assert_array_equal(case.normalisation_C4, [[-np.inf, np.inf, 0, 1]])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16"])
def test_images_are_stored_in_the_dtype_asked_for(dtype: str, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", dtype=np.float32)
    dataset = resampled(raw, tmp_path / "store", dtype=dtype)
    exact = read_volume([image_path(raw, "case_1")])
    case = dataset["case_1"]
    stored_CDHW = case.read()[0]
    assert stored_CDHW.dtype == dtype
    _, _, mean, std = Preprocessing().for_case(exact.statistics)[0]
    _, _, stored_mean, stored_std = case.normalisation_C4[0]
    as_seen = (stored_CDHW.astype(np.float32) - stored_mean) / stored_std
    np.testing.assert_allclose(as_seen, (exact.image_CDHW - mean) / std, atol=0.011)


def test_integers_in_int16_are_lossless_and_have_no_scale(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", dtype=np.int32)
    dataset = resampled(raw, tmp_path / "store", dtype="int16")
    case = dataset["case_1"]
    assert case.record.scale == ()
    exact = read_volume([image_path(raw, "case_1")]).image_CDHW
    np.testing.assert_array_equal(case.read()[0], exact)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("int16", 1e8)])
def test_a_dtype_that_would_change_a_case_is_refused(
    dtype: str, value: float, tmp_path: Path
) -> None:
    raw = write_raw(tmp_path / "raw", dtype=np.float32)
    path = image_path(raw, "case_1")
    data = np.asarray(nib.load(path).dataobj).copy()
    data[0, 0, 0] = value
    write_nifti(path, data)
    with pytest.raises(DataError, match=f"{dtype} would change") as caught:
        convert(raw, tmp_path / "store", policy=policy(dtype=dtype))
    assert "case_1" in caught.value.where
    assert {entry.name for entry in (tmp_path / "store").glob("case*")} == {"case_0", "case_2"}


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ({"spacing": "2,2,2"}, "spacing"),
        ({"crop": True}, "crop"),
        ({"intensity": "ct"}, "intensity"),
        ({"dtype": "float32"}, "dtype"),
    ],
)
def test_a_store_is_not_continued_under_another_policy(
    words: dict[str, Any], key: str, raw: Path, tmp_path: Path
) -> None:
    first = convert(raw, tmp_path / "store")
    with pytest.raises(DataError, match="another policy") as caught:
        convert(raw, tmp_path / "store", policy=policy(**words))
    assert caught.value.where.endswith(f"zarr.json: {key}")
    assert open_dataset(tmp_path / "store").digest == first.digest
    anew = convert(raw, tmp_path / "store", policy=policy(**words), overwrite=True)
    assert len(anew.converted) == 3
    assert convert(raw, tmp_path / "store", policy=policy(**words)).converted == ()


def test_a_store_of_an_earlier_version_goes_on(raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    digest = convert(raw, store).digest
    new = ("spacing", "crop", "intensity", "dtype", "spacing_mm")
    root = json.loads((store / "zarr.json").read_text())
    header = root["attributes"]["segresmamba"]
    for key in new:
        del header[key]
    header["schema_version"] = 1
    (store / "zarr.json").write_text(json.dumps(root))
    manifest = json.loads((store / "dataset.json").read_text())
    manifest["schema_version"] = 1
    del manifest["preprocessing"], manifest["storage"]["policy"], manifest["checksum"]
    (store / "dataset.json").write_text(json.dumps(manifest))
    case = open_dataset(store)["case_0"]
    assert case.normalisation_C4[0, 2] == pytest.approx(case.record.statistics[0].mean)
    again = convert(raw, store)
    assert (again.converted, again.digest) == ((), digest)


def test_a_store_of_a_newer_version_is_not_written_to(raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert(raw, store)
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"]["segresmamba"] |= {"schema_version": 99, "codec": "new", "chunk_DHW": "new"}
    (store / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(DataError, match="newer version") as caught:
        convert(raw, store)
    assert caught.value.where == f"{store / 'zarr.json'}: schema_version"


def test_a_repair_keeps_the_policy(ct_raw: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    before = resampled(ct_raw, store, spacing="2,2,2", crop=True)
    (store / "case_1" / "reference" / "c" / "0" / "0" / "0").unlink()
    (problem,) = verify(store)
    assert (problem.case_id, problem.path) == ("case_1", str(store / "case_1" / "reference"))
    assert repair(store) == []
    assert open_dataset(store).digest == before.digest
    assert open_dataset(store).manifest.storage.policy == before.manifest.storage.policy
