from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segresmamba.config import Config
from segresmamba.errors import ConfigError, DataError
from segresmamba.task.classes import Classes

LABELS = {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 3}
BRATS = {"TC": (1, 3), "WT": (1, 2, 3), "ET": (3,)}


def config(regions: dict[str, tuple[int, ...]] | None = None) -> Config:
    return Config.model_validate({"data": {"store": "s", "patch": [8, 8, 8], "regions": regions}})


def random_label(values: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(values), (2, 4, 5, 6), generator=generator)
    return torch.tensor(values)[places]


def test_exclusive_labels_have_a_channel_each_and_the_background_one_too() -> None:
    classes = Classes.from_labels(config(), LABELS)
    assert classes.channels == 4
    assert classes.members == {"necrosis": (1,), "oedema": (2,), "enhancing": (3,)}


def test_regions_have_a_channel_each_in_the_configured_order() -> None:
    classes = Classes.from_labels(config(BRATS), LABELS)
    assert classes.channels == 3
    assert list(classes.members) == ["TC", "WT", "ET"]


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([torch.uint8, torch.int16, torch.int64]))
def test_decoding_the_encoded_label_gives_the_label_back(seed: int, dtype: torch.dtype) -> None:
    labels = {"background": 0, "b": 7, "a": 2, "c": 9}  # neither sorted nor without gaps
    classes = Classes.from_labels(config(), labels)
    label = random_label(classes.values, seed)
    target = classes.encode(label.to(dtype))
    logits = torch.nn.functional.one_hot(target, classes.channels).movedim(-1, 1).float()
    assert torch.equal(classes.decode(logits[0]), label[0])


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_decoding_encoded_regions_gives_the_label_back(seed: int) -> None:
    classes = Classes.from_labels(config(BRATS), LABELS)
    label = random_label(classes.values, seed)
    logits = 2 * classes.encode(label) - 1
    assert torch.equal(classes.decode(logits[1]), label[1])


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_regions_agree_with_thresholds_where_these_name_a_label(seed: int) -> None:
    classes = Classes.from_labels(config(BRATS), LABELS)
    logits = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed))
    tumour_core, whole, enhancing = logits > 0
    valid = (enhancing <= tumour_core) & (tumour_core <= whole)
    masks = classes.encode(classes.decode(logits)[None])[0] > 0
    assert torch.equal(masks[:, valid], (logits > 0)[:, valid])


def test_an_impossible_combination_becomes_the_likeliest_label() -> None:
    classes = Classes.from_labels(config(BRATS), LABELS)
    surely_enhancing = torch.tensor([-1.0, -1.0, 5.0])[:, None, None, None]  # TC, WT, ET
    hardly_enhancing = torch.tensor([-3.0, -3.0, 1.0])[:, None, None, None]
    assert classes.decode(surely_enhancing).item() == 3
    assert classes.decode(hardly_enhancing).item() == 0


def test_labels_that_no_region_tells_apart_are_written_as_the_smallest() -> None:
    classes = Classes.from_labels(config({"tumour": (2, 3)}), LABELS)
    logits = torch.tensor([-1.0, 1.0])[None, None, None]
    assert classes.decode(logits).flatten().tolist() == [0, 2]


def test_a_region_of_undeclared_values_is_refused_with_the_declared_ones() -> None:
    with pytest.raises(ConfigError, match=r"region ET.*data\.regions\.ET: \[4\].*3 \(enhancing\)"):
        Classes.from_labels(config({"WT": (1, 2), "ET": (3, 4)}), LABELS)


def test_a_dataset_without_foreground_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to segment"):
        Classes.from_labels(config(), {"background": 0})


def test_of_equal_channels_the_first_is_the_label() -> None:
    labels = {"background": 0, "one": 1, "two": 2, "nine": 9}
    classes = Classes.from_labels(config(), labels)
    logits = torch.randint(0, 3, (4, 5, 6, 7), generator=torch.Generator().manual_seed(0)).float()
    expected = np.array([0, 1, 2, 9])[logits.numpy().argmax(0)]  # NumPy takes the first
    assert np.array_equal(classes.decode(logits).numpy(), expected)
    assert np.array_equal(classes.decode_probabilities(logits.softmax(0)).numpy(), expected)
