from __future__ import annotations

import json
from pathlib import Path

import pytest

from segresmamba.config import load_config
from segresmamba.errors import DataError
from segresmamba.report.measures import MeasuredRun, complete_settings
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import flatten, read_history
from segresmamba.tracking.journal import Journal
from tests.report.recorded import BATCH, STEPS, STEPS_PER_EPOCH, record_run


def run_of(folder: Path) -> MeasuredRun:
    return MeasuredRun.from_history(read_history(folder))


def test_what_a_run_cost_and_reached(tmp_path: Path) -> None:
    run = run_of(record_run(tmp_path, "one", cases={"a": 0.9, "b": 0.8}, energy_kwh=0.003))
    assert (run.model, run.replica) == ("segresmamba", {"seed": "0", "train.fold": "0"})
    assert run.parameters_m == 1.5
    assert (run.memory_gib, run.memory_on) == (2.0, "host")
    assert run.step_s == 1.0  # the first record is left out
    assert run.epoch_s == STEPS_PER_EPOCH * 1.0
    assert (run.energy_wh, run.co2e_g) == (pytest.approx(3.0), pytest.approx(0.3))
    assert run.wh_per_1000_patches == pytest.approx(3.0 / (STEPS * BATCH) * 1000)
    assert (run.dice, run.hd95_mm) == (pytest.approx(0.85), pytest.approx(3.0))
    assert run.scored_by == "evaluation"
    assert run.cases["a"].classes == {"ball": 0.9, "box": 0.9}
    assert run.picture("b") == tmp_path / "one" / "overlays" / "b.png"
    assert run.picture("a") is None


def test_a_network_of_another_package_is_named_by_its_class(tmp_path: Path) -> None:
    folder = record_run(tmp_path, "one")
    journal = Journal(RunFolder(folder).journal, name="one")
    target = "mypackage.networks:MyNet"
    journal.append("params", values={"model": {"name": "plugin", "target": target, "stride": 32}})
    journal.close()
    assert run_of(folder).model == "MyNet"


def test_the_peak_while_training_on_the_device_comes_first(tmp_path: Path) -> None:
    folder = record_run(tmp_path, "one", memory_gib=2.0)
    journal = Journal(RunFolder(folder).journal, name="one")
    for key, gib in (("", 9.0), ("train/", 8.0), ("validate/", 9.0)):
        name = f"memory/{key}device_peak_allocated_gib" + ("/max" if key else "")
        journal.append("metrics", step=4, epoch=None, values={name: gib})
    journal.close()
    run = run_of(folder)
    assert (run.memory_gib, run.memory_on) == (8.0, "device")


def test_without_an_evaluation_the_best_validation_counts(tmp_path: Path) -> None:
    run = run_of(record_run(tmp_path, "one"))
    assert (run.dice, run.hd95_mm, run.scored_by) == (0.5, 7.0, "validation")


def test_scores_that_are_not_defined_are_left_out(tmp_path: Path) -> None:
    folder = record_run(tmp_path, "one", cases={"a": 0.9, "b": 0.5})
    content = json.loads((folder / "results.json").read_text())
    for metric in ("dice", "hd95_mm"):
        content["cases"]["a"]["box"][metric] = None
        content["cases"]["b"] = {name: {"dice": None, "hd95_mm": None} for name in ("ball", "box")}
    (folder / "results.json").write_text(json.dumps(content))
    run = run_of(folder)
    assert (run.dice, run.hd95_mm) == (pytest.approx(0.9), pytest.approx(3.0))
    assert list(run.cases) == ["a"]
    assert list(run.cases["a"].classes) == ["ball"]


def test_what_was_not_recorded_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    Journal(RunFolder(tmp_path / "bare").journal, name="bare").close()
    run = run_of(tmp_path / "bare")
    measures = ("parameters_m", "memory_gib", "step_s", "epoch_s", "energy_wh", "co2e_g", "dice")
    assert {getattr(run, name) for name in measures} == {None}
    assert (run.model, run.cases, run.wh_per_1000_patches) == ("", {}, None)


@pytest.mark.parametrize("content", ["{", "{}", '{"cases": {"a": {"ball": {}}}}', '{"cases": []}'])
def test_unreadable_results_are_refused_by_name(tmp_path: Path, content: str) -> None:
    folder = record_run(tmp_path, "one", cases={"a": 0.9})
    (folder / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results\.json"):
        run_of(folder)


def test_settings_that_an_earlier_version_lacked_get_their_defaults() -> None:
    whole = flatten(load_config(["model=segresnet", "train.lr=0.5"]).model_dump(mode="json"))
    earlier = {key: text for key, text in whole.items() if key != "train.clip_norm"}
    assert len(earlier) == len(whole) - 1
    assert complete_settings(earlier) == whole
    assert complete_settings(whole) == whole


def test_a_section_with_a_setting_that_is_unknown_now_is_left_as_it_is() -> None:
    settings = {"model.name": "segresnet", "train.gone": "1", "seed": "3"}
    found = complete_settings(settings)
    assert found.items() >= settings.items()
    assert "train.lr" not in found
    assert found["model.init_filters"] == "32"
