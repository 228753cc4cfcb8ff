from __future__ import annotations

from segresmamba.config import load_config
from segresmamba.report.settings import completed
from segresmamba.tracking import flatten


def test_settings_that_an_earlier_version_lacked_get_their_defaults() -> None:
    whole = flatten(load_config(["model=segresnet", "train.lr=0.5"]).model_dump(mode="json"))
    earlier = {key: text for key, text in whole.items() if key != "train.clip_norm"}
    assert len(earlier) == len(whole) - 1
    assert completed(earlier) == whole
    assert completed(whole) == whole


def test_settings_that_this_version_does_not_know_are_left_as_they_are() -> None:
    settings = {"model.name": "segresnet", "train.gone": "1"}
    assert completed(settings) == settings
