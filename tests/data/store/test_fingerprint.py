from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segresmamba.data import open_dataset, write_fingerprint
from segresmamba.errors import DataError


def test_the_fingerprint_is_that_of_the_voxels(sound_store: Path, tmp_path: Path) -> None:
    numbers, picture = write_fingerprint(sound_store, tmp_path / "out")
    content = json.loads(numbers.read_text())
    case = open_dataset(sound_store)["case_1"]
    image_CDHW, label_DHW = case.read()
    found = content["by_case"]["case_1"]
    assert found["shape_DHW"] == list(label_DHW.shape)
    assert found["spacing_mm"] == [1.5, 2.0, 1.0]
    assert found["class_volume_ml"]["box"] == pytest.approx((label_DHW == 2).sum() * 3 / 1000)
    assert found["intensities"]["channel 1"]["max"] == image_CDHW[1].max()
    assert content["by_case"]["case_0"]["class_volume_ml"]["box"] == 0
    assert np.asarray(Image.open(picture)).std() > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {numbers.name, picture.name}


def test_a_folder_that_cannot_be_written_is_named(sound_store: Path) -> None:
    with pytest.raises(DataError, match="cannot be written") as caught:
        write_fingerprint(sound_store, Path("/proc/fingerprint"))
    assert caught.value.where == "/proc/fingerprint"


def test_a_dataset_of_many_classes_is_drawn(sound_store: Path, tmp_path: Path) -> None:
    path = sound_store / "dataset.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    content["labels"] = {"background": 0} | {f"vertebra {n}": n for n in range(1, 31)}
    for case in content["cases"].values():
        case["class_voxels"] = {str(n): 10 * n for n in range(1, 31)}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    _, picture = write_fingerprint(tmp_path, tmp_path)
    with Image.open(picture) as drawn:
        assert drawn.size == (1320, 840)


def test_a_dataset_without_foreground_is_drawn(sound_store: Path, tmp_path: Path) -> None:
    content = json.loads((sound_store / "dataset.json").read_text())
    del content["checksum"]
    for case in content["cases"].values():
        case["class_voxels"] = {}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    numbers, picture = write_fingerprint(tmp_path, tmp_path)
    found = json.loads(numbers.read_text())["by_case"]["case_1"]["class_volume_ml"]
    assert found == {"ball": 0, "box": 0}
    with Image.open(picture) as drawn:
        assert drawn.size == (1320, 840)
