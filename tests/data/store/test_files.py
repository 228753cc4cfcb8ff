from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from segresmamba.config import DataConfig
from segresmamba.data import make_loader, open_dataset, verify
from segresmamba.errors import DataError

BOX = ((3, 9, 4), (25, 30, 31))


def zipped(
    store: Path, target: Path, compression: int = zipfile.ZIP_STORED, inside: str = ""
) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(store.rglob("*")):
            archive.write(path, f"{inside}{path.relative_to(store)}")
    return target


def test_a_zip_file_made_as_the_documentation_says_reads_as_its_folder_does(
    sound_store: Path, tmp_path: Path
) -> None:
    target = tmp_path / "store.zarr.zip"
    (command,) = [
        line.strip()
        for line in Path("docs/data.md").read_text().splitlines()
        if "zipfile" in line and "store.zarr.zip" in line
    ]
    words = command.replace("../store.zarr.zip", str(target)).replace("python", sys.executable)
    subprocess.run(words, shell=True, cwd=sound_store, check=True)
    there, here = open_dataset(target), open_dataset(sound_store)
    assert there.digest == here.digest
    for one, other in zip(there["case_2"].read(), here["case_2"].read(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        there["case_1"].open_image()[:, 3:9], here["case_1"].open_image()[:, 3:9]
    )
    assert there["case_1"].class_position(2, 3) == here["case_1"].class_position(2, 3)
    assert verify(target) == []


def test_a_zip_file_may_hold_the_folder_itself(sound_store: Path, tmp_path: Path) -> None:
    target = zipped(sound_store, tmp_path / "store.zip", inside="my store.zarr/")
    there, here = open_dataset(target), open_dataset(sound_store)
    assert there.case_ids == here.case_ids
    for one, other in zip(there["case_2"].crop(*BOX), here["case_2"].crop(*BOX), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(there["case_1"].open_image()[0], here["case_1"].open_image()[0])
    assert verify(target) == []


def test_readers_of_a_zip_file_open_it_themselves(sound_store: Path, tmp_path: Path) -> None:
    dataset = open_dataset(zipped(sound_store, tmp_path / "store.zip"))
    config = DataConfig(store=dataset.where, patch=(32, 32, 32), workers=1)
    batches = [
        next(make_loader(
            source, dataset.case_ids, config, 0,
            rank=0, world_size=1, micro_batch=2, start_index=0,
        ))
        for source in (dataset, open_dataset(sound_store))
    ]  # fmt: skip
    np.testing.assert_array_equal(batches[0].image_BCDHW, batches[1].image_BCDHW)


def test_a_compressed_zip_file_is_refused(sound_store: Path, tmp_path: Path) -> None:
    packed = zipped(sound_store, tmp_path / "store.zip", zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="must not be compressed") as caught:
        open_dataset(packed)
    assert "zip -0" in caught.value.remedy


def test_a_truncated_zip_file_is_named(sound_store: Path, tmp_path: Path) -> None:
    target = zipped(sound_store, tmp_path / "store.zip")
    os.truncate(target, target.stat().st_size // 2)
    with pytest.raises(DataError, match="not a zip file, or it is truncated") as caught:
        open_dataset(target)
    assert caught.value.where == str(target)


def test_a_zip_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no converted dataset") as caught:
        open_dataset(tmp_path / "store.zip")
    assert caught.value.where == f"{tmp_path}/store.zip/dataset.json"


def test_a_relative_path_is_named_with_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        open_dataset("data/store")
    assert caught.value.got == f"No such file or directory in {tmp_path}"


def test_a_zip_file_of_something_else_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text").write_text("text")
    with pytest.raises(DataError, match="there is no converted dataset"):
        open_dataset(zipped(tmp_path / "folder", tmp_path / "store.zip"))


def test_a_zip_file_of_images_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(DataError, match="no converted dataset") as caught:
        open_dataset(zipped(tmp_path / "series", tmp_path / "ct.zip", zipfile.ZIP_DEFLATED))
    assert caught.value.got == "1.dcm"
    assert f"unzip {tmp_path}/ct.zip -d {tmp_path}/ct" in caught.value.remedy


OUTSIDE = ["case_1/../../x", "/etc/x", "../x", "case_1\\..\\..\\x", "case_1/../case_0/0/zarr.json"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_zip_file_that_leads_outside_itself_is_refused(
    sound_store: Path, tmp_path: Path, name: str
) -> None:
    target = zipped(sound_store, tmp_path / "store.zip")
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(DataError, match="lead outside") as caught:
        open_dataset(target)
    assert caught.value.got == repr(name)


def test_a_link_in_a_zip_file_is_refused(sound_store: Path, tmp_path: Path) -> None:
    target = zipped(sound_store, tmp_path / "store.zip")
    member = zipfile.ZipInfo("case_1/link")
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(member, "/etc")
    with pytest.raises(DataError, match="must not hold links") as caught:
        open_dataset(target)
    assert "case_1/link" in caught.value.got


def test_a_damaged_manifest_in_a_zip_file_is_named(sound_store: Path, tmp_path: Path) -> None:
    target = zipped(sound_store, tmp_path / "store.zip")
    content = target.read_bytes()
    target.write_bytes(content.replace(b'"Balls"', b'"Bells"'))
    with pytest.raises(DataError) as caught:
        open_dataset(target)
    assert "CRC-32" in caught.value.got
    assert caught.value.where == f"{target}/dataset.json"
