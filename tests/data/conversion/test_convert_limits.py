"""What a conversion promises of memory, of being killed, and of a disk that fills up."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from segresmamba.data import convert, open_dataset, verify
from segresmamba.errors import DataError
from tests.data.raw import (
    AFFINE,
    describe,
    image_path,
    label_path,
    write_nifti,
    write_raw,
    write_series,
)

CONVERT = """
import sys
from pathlib import Path
from segresmamba.data import Policy, convert
warm, raw, store = map(Path, sys.argv[1:4])
policy = Policy.from_options(**dict(zip(("spacing", "crop", "intensity", "dtype"), sys.argv[4:])))
def kib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
convert(warm, store.with_name("warm"), policy=policy)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, and the parent's
before = kib("VmRSS")
convert(raw, store, policy=policy, resample_mismatched=True)
print(kib("VmHWM") - before)
"""


def test_sigkill_in_mid_conversion_loses_at_most_the_case_at_hand(tmp_path: Path) -> None:
    raw, store = write_raw(tmp_path / "raw", shapes=[(60, 60, 60)] * 12), tmp_path / "store"
    code = (
        "import sys; from pathlib import Path; from segresmamba.data import convert;"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(raw), str(store)])
    while len(list(store.glob("case_*"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_ino for path in store.glob("case_*")}
    assert 3 <= len(finished) < 12
    with pytest.raises(DataError, match="no converted dataset"):
        open_dataset(store)
    done = convert(raw, store)
    assert set(done.kept) == set(finished)
    assert {name: (store / name).stat().st_ino for name in finished} == finished
    assert verify(store) == []


def test_a_disk_that_fills_up_keeps_the_cases_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, store = write_raw(tmp_path / "raw"), tmp_path / "store"
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "case_2":
            raise OSError(28, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(DataError, match="cannot be written") as caught:
        convert(raw, store)
    assert "No space left" in caught.value.got
    assert caught.value.where == str(store / "case_2")
    monkeypatch.undo()
    assert not list(store.glob(".*"))
    assert convert(raw, store).kept == ("case_0", "case_1")


KEEP = ("keep", "no", "auto", "auto")


@dataclass(frozen=True)
class Large:
    """A dataset of one tiny case and some large ones, and how it is converted."""

    shape: tuple[int, int, int] = (200, 200, 200)
    cases: int = 1
    channels: int = 1
    dtype: type = np.float32
    policy: tuple[str, ...] = KEEP
    ending: str = ".nii.gz"
    label_moved_mm: float = 0.0


LARGE = {
    "as in the files": Large((220, 200, 180), cases=3),
    "every policy": Large((150, 150, 120), 3, 3, policy=("1.6,2.2,1.1", "yes", "auto", "int16")),
    "resampled to more voxels": Large(policy=("1.45,1.95,0.99", *KEEP[1:])),
    "resampled to fewer, not compressed": Large(policy=("3,4,2", *KEEP[1:]), ending=".nii"),
    "integers, resampled and narrowed": Large(
        (200, 256, 200), dtype=np.int16, policy=("1.2,1.9,0.9", "no", "ct", "int16")
    ),
    "unsigned integers": Large((220, 256, 256), dtype=np.uint16),
    "label on another grid": Large(label_moved_mm=3.3),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_process_takes_at_most_twice_the_largest_case(tmp_path: Path, name: str) -> None:
    """Above what it has loaded; a case being its image's voxels, in the files, as stored, or
    resampled, which makes them float32."""
    of = LARGE[name]
    small = {"channels": of.channels, "dtype": of.dtype, "ending": of.ending}
    warm = write_raw(tmp_path / "a", shapes=[(20, 20, 20)] * 2, **small)
    raw = write_raw(tmp_path / "b", shapes=[(20, 20, 20)], **small)
    describe(raw, numTraining=1 + of.cases)
    add_large_cases(raw, of)
    store = tmp_path / "store"
    command = [sys.executable, "-c", CONVERT, warm, raw, store, *of.policy]
    grown_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    record = open_dataset(store)["case_1"].record
    filed = of.channels * np.prod(of.shape) * np.dtype(of.dtype).itemsize
    dtype = (
        np.float32
        if record.grid_transform and record.grid_transform.resamples
        else record.image_dtype
    )
    stored = np.prod(record.shape_CDHW) * np.dtype(dtype).itemsize
    assert grown_kib < 2 * max(filed, stored) >> 10


def test_a_series_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """Its voxels are held once, and those of a few slices."""
    shape = (256, 256, 320)
    for name, size in (("a", (20, 20, 20)), ("b", shape)):
        case = tmp_path / name / "case"
        write_series(case / "CT", np.random.default_rng(0).integers(1, 999, size, np.int16))
        mask = np.zeros(size[::-1], np.uint8)
        mask[5:9, 5:9, 5:9] = 1
        image = sitk.GetImageFromArray(mask)
        image.SetSpacing((1.0, 1.5, 2.0))
        image.SetOrigin((-10.0, -20.0, 0.0))
        sitk.WriteImage(image, str(case / "label.nii.gz"))
        described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "hip": 1}}
        (tmp_path / name / "dataset.json").write_text(json.dumps(described))
    command = [sys.executable, "-c", CONVERT, *(tmp_path / name for name in ("a", "b", "store"))]
    done = subprocess.run([*command, *KEEP], check=True, capture_output=True, text=True)
    grown_kib = int(done.stdout)
    assert grown_kib < 2 * np.prod(shape) * 2 >> 10


def add_large_cases(raw: Path, of: Large) -> None:
    noise = (np.random.default_rng(0).integers(1, 1000, of.shape, np.int16) // 4).astype(of.dtype)
    label = np.zeros(of.shape, np.uint8)
    label[40:90, 30:80, 50:100], label[95:99, 95:99, 95:99] = 1, 2
    affine = AFFINE.copy()
    affine[:3, 3] += of.label_moved_mm
    image = write_nifti(raw / f"noise{of.ending}", noise)
    for number in range(1, of.cases + 1):
        case = f"case_{number}"
        write_nifti(label_path(raw, case, of.ending), label, affine)
        for channel in range(of.channels):
            os.link(image, image_path(raw, case, channel, of.ending))


def test_a_disk_that_is_full_before_the_start_is_one_error(raw: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(DataError, match="output folder cannot be written") as caught:
            convert(raw, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk space" in caught.value.remedy
    assert not list((tmp_path / "store").iterdir())
    assert convert(raw, tmp_path / "store").converted


def test_a_disk_that_is_full_at_the_end_keeps_all_cases(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"

    def full(descriptor: int) -> None:
        if "dataset.json" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as filled:
        filled.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="output folder cannot be written") as caught:
            convert(raw, store)
    assert (caught.value.where, caught.value.got) == (str(store), "No space left on device")
    assert not list(store.glob(".*"))
    assert len(convert(raw, store).kept) == 3
