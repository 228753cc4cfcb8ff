"""Runs that start from other weights, hold nothing out, count epochs, or end early."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segresmamba.engine import request_stop, train
from segresmamba.errors import ConfigError
from segresmamba.evaluation import evaluate_run
from segresmamba.evaluation.metrics import Score
from segresmamba.evaluation.score_cases import CaseResult
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.task import Task, freeze
from segresmamba.task.weights import read_facts, read_weights
from segresmamba.tracking import STOPPED_EARLY, finished_step, read_history
from tests.engine.ranks import RankPool
from tests.engine.tiny import journal_losses, tiny_config


def test_fine_tuning_starts_from_what_another_run_has_learned_and_resumes_without_it(
    finished_run: Path, tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    moved = finished_run.rename(tmp_path / "source")
    words = (
        "seed=1",
        f"train.init_from={moved}",
        "train.freeze=[downs]",
        "train.checkpoint_every=2",
    )
    words = (*words, "train.loaded_lr_factor=0.5")
    train(tiny_config(tiny_store, tmp_path, "seed=1", "run.name=fresh"))
    train(tiny_config(tiny_store, tmp_path, *words))
    fresh, tuned = (journal_losses(tmp_path / name) for name in ("fresh", "tiny"))
    assert tuned[1] < fresh[1] - 0.02
    taken = read_weights(RunFolder(moved).best)[0]
    assert read_history(tmp_path / "tiny").tags["init_from"] == (
        f"{moved}: {len(taken)} weights taken, 0 adapted, 0 fresh, 0 unused"
    )
    kept = read_weights(RunFolder(tmp_path / "tiny").best)[0]
    for name, value in taken.items():
        assert torch.equal(kept[name], value) == name.startswith("downs."), name
    moved.rename(tmp_path / "elsewhere")
    for path in RunFolder(tmp_path / "tiny").checkpoint(4).iterdir():
        path.unlink()
    RunFolder(tmp_path / "tiny").checkpoint(4).rmdir()
    RunFolder(tmp_path / "tiny").journal.unlink()
    train(tiny_config(tiny_store, tmp_path, *words))
    assert "the run goes on from its own checkpoint" in caplog.text
    again = journal_losses(tmp_path / "tiny")
    assert again == pytest.approx({step: tuned[step] for step in (3, 4)}, abs=1e-5)


FROZEN = ("train.freeze=[downs,blocks.1]", "train.batch_size=4", "data.patch=[16,16,16]")


def one_step(store: Path, root: Path, *overrides: str) -> None:
    """Take up the run, train one step and save it, as a rank that was asked to stop."""
    request_stop()
    train(tiny_config(store, root, *FROZEN, *overrides))


def test_frozen_weights_stay_when_ranks_and_stage_change(
    two_ranks: RankPool, tiny_store: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_store, tmp_path / "whole", *FROZEN)
    train(config)
    two_ranks.run(one_step, tiny_store, tmp_path, "train.zero_stage=3")
    one_step(tiny_store, tmp_path, "train.zero_stage=1")
    two_ranks.run(one_step, tiny_store, tmp_path, "train.zero_stage=2")
    train(tiny_config(tiny_store, tmp_path, *FROZEN))
    whole = journal_losses(tmp_path / "whole" / "tiny")
    assert journal_losses(tmp_path / "tiny") == pytest.approx(whole, abs=1e-4)
    before = Task.from_config(config).network().state_dict()
    after = read_weights(RunFolder(tmp_path / "tiny").best)[0]
    for name, value in before.items():
        is_frozen = name.startswith(("downs.", "blocks.1."))
        assert torch.equal(after[name], value) == is_frozen, name


def test_a_part_that_the_network_lacks_cannot_be_frozen(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such part") as caught:
        train(tiny_config(tiny_store, tmp_path, "train.freeze=[stem]"))
    assert "downs, blocks" in caught.value.remedy
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(nn.Sequential(nn.Linear(1, 1)), ["0"])


def test_epochs_become_steps_by_the_training_crops(
    tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    words = ("train.epochs=3", "data.crops_per_case=2")
    task = Task.from_config(tiny_config(tiny_store, tmp_path, *words))
    crops = 2 * len(task.split["train"])
    assert task.config.train.max_steps == -(-3 * crops // 2)
    assert f"train.epochs=3 is train.max_steps={task.config.train.max_steps}" in caplog.text
    short = tiny_config(tiny_store, tmp_path, "train.epochs=1", "train.warmup_steps=10")
    with pytest.raises(ConfigError, match="warm-up is longer") as caught:
        Task.from_config(short)
    assert "more train.epochs" in caught.value.remedy


def test_a_run_of_epochs_that_holds_nothing_out_keeps_its_last_weights_and_is_finished(
    tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(
        tiny_store, tmp_path, "train.fold=none", "train.epochs=1", "data.crops_per_case=1"
    )
    result = train(config)
    assert (result["status"], result["step"], result["dice_mean"]) == ("finished", 3, None)
    facts = read_facts(RunFolder(tmp_path / "tiny").best)
    assert (facts.step, facts.dice) == (3, None)
    with pytest.raises(ConfigError, match="nothing was held out"):
        evaluate_run(tmp_path / "tiny")
    assert finished_step(tmp_path / "tiny", config.train) == 3
    assert train(config)["step"] == 3
    assert "has finished at step 3" in caplog.text
    more = config.train.model_copy(update={"epochs": 2})
    assert finished_step(tmp_path / "tiny", more) is None


@pytest.fixture
def constant_dice(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every validation scores 0.5. The list counts the scored cases."""
    scored: list[int] = []

    def evaluate(*arguments: Any) -> Sequence[CaseResult]:
        scored.append(1)
        return [CaseResult("case", {"ball": Score(0.5, 1.0, 2.0, 2.0)})]

    monkeypatch.setattr("segresmamba.engine.held_out.evaluate_cases", evaluate)
    return scored


PATIENT = ("train.max_steps=9", "train.validate_every=1", "train.patience=2")


def test_patience_ends_a_run_as_finished_and_a_stop_in_between_changes_nothing(
    constant_dice: list[int], tiny_store: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_store, tmp_path, *PATIENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segresmamba.engine.trainer.stop_requested", lambda: len(constant_dice) == 2)
        assert train(config)["status"] == "preempted"
    result = train(config)
    assert (result["status"], result["step"]) == ("finished", 3)
    run = tmp_path / "tiny"
    assert read_history(run).tags[STOPPED_EARLY] == "step 3: no better Dice than 0.5000 of step 1"
    assert finished_step(run, config.train) == 3
    assert finished_step(run, config.train.model_copy(update={"patience": 5})) is None


@pytest.mark.parametrize(
    "words", [(*PATIENT, "train.validate_every=null"), (*PATIENT, "train.fold=none")]
)
def test_patience_without_validations_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="patience counts validations"):
        tiny_config(tmp_path, tmp_path, *words)
