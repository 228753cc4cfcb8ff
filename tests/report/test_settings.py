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


def test_a_section_with_a_setting_that_is_unknown_now_is_left_as_it_is() -> None:
    settings = {"model.name": "segresnet", "train.gone": "1", "seed": "3"}
    found = completed(settings)
    assert found.items() >= settings.items()
    assert "train.lr" not in found
    assert found["model.init_filters"] == "32"
