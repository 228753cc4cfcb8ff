from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segresmamba.config import TrackingConfig
from segresmamba.data import Preprocessing
from segresmamba.errors import CheckpointError, ConfigError, DataError
from segresmamba.inference.postprocessing import Postprocessing, Rule, write_postprocessing
from segresmamba.inference.trained import open_models, require_same_task, trained_runs
from segresmamba.storage.run_folder import RunFolder
from segresmamba.tracking import PRUNED, open_tracker
from tests.inference.conftest import LABELS, PATCH, write_run


def test_a_run_is_one_model(model_run: Path) -> None:
    (model,) = open_models(model_run)
    assert model.weights == RunFolder(model_run).best
    assert list(model.config.data.patch) == PATCH
    assert model.facts.labels == LABELS
    assert not model.postprocessing


def test_rules_beside_the_best_weights_belong_to_the_model(model_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(model_run, tmp_path / "run"))
    rule = Rule(name="ball", values=(1,), keep_largest=True)
    write_postprocessing(RunFolder(run).best, Postprocessing(step=7, rules=(rule,)))
    (model,) = open_models(run)
    assert model.postprocessing == (rule,)


def test_every_trained_run_of_a_folder_is_a_model(
    fold_runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folds = Path(shutil.copytree(fold_runs, tmp_path / "folds"))
    shutil.rmtree(folds / "fold1" / "best")
    assert [model.weights for model in open_models(fold_runs)] == [
        RunFolder(fold_runs / name).best for name in ("fold1", "fold2")
    ]
    assert len(open_models(folds)) == 1
    assert "left out: fold1" in caplog.text


def test_the_runs_of_a_sweep_are_found_where_they_lie(fold_runs: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(fold_runs, tmp_path / "runs"))
    write_run(root / "another", seed=3)
    sweep = root / "sweeps" / "folds"
    sweep.mkdir(parents=True)
    trials = [{"run": f"/moved/{name}"} for name in ("fold1", "fold2")]
    (sweep / "manifest.json").write_text(json.dumps({"trials": trials}))
    assert [model.weights.parents[1].name for model in open_models(sweep)] == ["fold1", "fold2"]
    (sweep / "manifest.json").write_text(json.dumps({"trials": [3]}))
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_models(sweep)


def test_a_model_folder_needs_no_run(model_run: Path, tmp_path: Path) -> None:
    run = RunFolder(model_run)
    shutil.copy(run.config, tmp_path / "config-0.yaml")
    shutil.copy(run.best, tmp_path / "weights-0.safetensors")
    member = {
        "config": "config-0.yaml",
        "weights": "weights-0.safetensors",
        "digest": "kept for others",
    }
    rule = Rule(name="ball", values=(1,), minimum_mm3=3)
    rules = [rule.model_dump(mode="json")]
    record = {"format_version": 1, "members": [member], "postprocessing": rules}
    (tmp_path / "model.json").write_text(json.dumps(record))
    (model,) = open_models(tmp_path)
    assert model.weights == tmp_path / "weights-0.safetensors"
    assert model.postprocessing == (rule,)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be read"),
        ("[]", "not an object"),
        ('{"format_version": 2}', "newer version"),
        ('{"format_version": 1, "members": []}', "at least 1 item"),
        (
            '{"format_version": 1, "members": [{"config": "../config.yaml", "weights": "w"}]}',
            "outside the folder",
        ),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str, match: str
) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        open_models(tmp_path)
    assert caught.value.where == str(tmp_path / "model.json")


def test_a_place_without_a_model_is_refused(model_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run and no model\.json"):
        open_models(tmp_path)
    shutil.copytree(model_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(ConfigError, match="1 runs, none with best weights"):
        open_models(tmp_path)
    with pytest.raises(CheckpointError, match=r"best/weights"):
        open_models(tmp_path / "run")


def test_a_network_that_is_averaged_with_itself_is_warned_about(
    fold_runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both, one = open_models(fold_runs), open_models(fold_runs / "fold2")
    require_same_task(both)
    assert "twice" not in caplog.text
    require_same_task([*both, *one])
    assert f"{RunFolder(fold_runs / 'fold2').best} is named twice" in caplog.text


def sized(size_mm: float) -> Preprocessing:
    return Preprocessing(trained_mm=((size_mm,) * 3, (size_mm,) * 3))


def test_voxel_sizes_that_differ_by_the_rounding_of_headers_are_one_size(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(size_mm), preprocessing=sized(size_mm))
        for size_mm in (1.99999998, 2.0)
    ]
    require_same_task([model for run in runs for model in open_models(run)])


def test_ranges_of_voxel_sizes_that_differ_are_not_averaged(tmp_path: Path) -> None:
    thin, thick = ((0.5,) * 3, (0.8,) * 3), ((3.0,) * 3, (5.0,) * 3)
    runs = [
        write_run(tmp_path / name, preprocessing=Preprocessing(trained_mm=sizes))
        for name, sizes in (("thin", thin), ("thick", thick))
    ]
    with pytest.raises(DataError, match="different voxel size cannot be averaged"):
        require_same_task([model for run in runs for model in open_models(run)])


def test_trials_that_a_search_gave_up_are_not_averaged(
    fold_runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(fold_runs, tmp_path / "runs")
    kept, pruned = trained_runs(tmp_path / "runs")
    config = TrackingConfig(enabled=False)
    tracker = open_tracker(pruned, config, root=tmp_path, run_name=pruned.name)
    tracker.tags({PRUNED: "at step 2"})
    tracker.close("preempted")
    assert trained_runs(tmp_path / "runs") == [kept]
    shutil.rmtree(kept)
    with pytest.raises(ConfigError, match="1 runs, 1 of them given up by a search, none with best"):
        trained_runs(tmp_path / "runs")
    assert f"were given up by a search and are left out: {pruned.name}" in caplog.text


def test_models_of_different_tasks_are_not_averaged(model_run: Path, tmp_path: Path) -> None:
    (first,) = open_models(model_run)
    others = {
        "labels": write_run(tmp_path / "labels", labels={"background": 0, "liver": 1, "box": 5}),
        "channels": write_run(tmp_path / "channels", channels=("t2",)),
        "regions": write_run(tmp_path / "regions", data={"regions": {"all": [1, 5], "b": [5]}}),
        "preprocessing": write_run(tmp_path / "pre", preprocessing=Preprocessing(crop=True)),
        "voxel size": write_run(tmp_path / "mm", preprocessing=sized(2.0)),
    }
    for what, run in others.items():
        (other,) = open_models(run)
        with pytest.raises(DataError, match=f"different {what} cannot be averaged") as caught:
            require_same_task([first, other])
        assert caught.value.where == str(RunFolder(run).best)
        assert str(first.weights) in caught.value.got
