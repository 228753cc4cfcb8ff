from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from segresmamba.config import load_config, read_config
from segresmamba.data import convert
from segresmamba.engine import request_stop, train
from segresmamba.engine.checkpoints import checkpoint
from segresmamba.engine.held_out import Scored, read_scored, write_scored
from segresmamba.engine.zero import ZeroEngine
from segresmamba.errors import BackendMissingError, CheckpointError, ConfigError, UserError
from segresmamba.evaluation.score_cases import CaseResult
from segresmamba.inference.sliding_window import SlidingWindow
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.weights import read_facts
from segresmamba.tracking import read_history
from tests.conftest import write_nnunet_dataset
from tests.damage import cut, flip, lose
from tests.engine.ranks import RankPool
from tests.engine.tiny import journal_losses, tiny_config


def curve(store: Path, root: Path, *overrides: str) -> dict[int, float]:
    """Train in this rank and give the loss curve that the main rank recorded."""
    folder = Path(train(tiny_config(store, root, *overrides))["folder"])
    return journal_losses(folder) if (folder / "journal.jsonl").exists() else {}


def assert_same_curve(one: dict[int, float], other: dict[int, float], tolerance: float) -> None:
    assert one.keys() == other.keys()
    assert one == pytest.approx(other, abs=tolerance)


SIX_STEPS = ("train.max_steps=6", "train.checkpoint_every=3")


@pytest.fixture(scope="module")
def runs_by_stage(
    two_ranks: RankPool, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """A run of two ranks at each ZeRO stage, of `SIX_STEPS`."""
    root = tmp_path_factory.mktemp("stages")
    for stage in range(4):
        words = (*SIX_STEPS, f"train.zero_stage={stage}")
        two_ranks.run(curve, tiny_store, root / str(stage), *words)
    return [root / str(stage) / "tiny" for stage in range(4)]


def test_all_zero_stages_on_two_ranks_give_the_same_loss_curve(runs_by_stage: list[Path]) -> None:
    first, *others = map(journal_losses, runs_by_stage)
    assert len(first) == 6
    for other in others:
        assert_same_curve(first, other, 1e-4)


def test_accumulation_on_two_ranks_equals_the_larger_batch_on_one(
    two_ranks: RankPool, tiny_store: Path, tmp_path: Path
) -> None:
    stage_2 = ("train.zero_stage=2", "train.batch_size=4")
    two_ranks.run(curve, tiny_store, tmp_path / "two", *stage_2, "train.accumulation=2")
    one = curve(tiny_store, tmp_path / "one", *stage_2)
    assert_same_curve(one, journal_losses(tmp_path / "two" / "tiny"), 1e-4)
    memory = json.loads((tmp_path / "two" / "tiny" / "memory.json").read_text())
    assert [set(rank) for rank in memory["ranks"]] == 2 * [{"load", "train", "save", "validate"}]


def test_a_resumed_run_continues_as_if_never_stopped(
    finished_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    whole = journal_losses(finished_run)
    shutil.rmtree(finished_run / "checkpoints" / "step-00000004")
    (finished_run / "journal.jsonl").unlink()
    rest = curve(tiny_store, tmp_path)
    assert_same_curve({step: whole[step] for step in (3, 4)}, rest, 1e-5)


def test_a_resumed_run_with_a_sharded_optimizer_continues_too(
    tiny_store: Path, tmp_path: Path
) -> None:
    settings = ("train.zero_stage=2", *SIX_STEPS)
    whole = curve(tiny_store, tmp_path / "whole", *settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "tiny" / "checkpoints" / "step-00000006")
    (tmp_path / "cut" / "tiny" / "journal.jsonl").unlink()
    rest = curve(tiny_store, tmp_path / "cut", *settings)
    assert_same_curve({step: whole[step] for step in (4, 5, 6)}, rest, 1e-5)


def test_a_resumed_run_on_two_ranks_with_sharded_weights_continues_too(
    two_ranks: RankPool, runs_by_stage: list[Path], tiny_store: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs_by_stage[3], tmp_path / "tiny"))
    whole = journal_losses(run)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    (run / "journal.jsonl").unlink()
    two_ranks.run(curve, tiny_store, tmp_path, "train.zero_stage=3", *SIX_STEPS)
    assert_same_curve({step: whole[step] for step in (4, 5, 6)}, journal_losses(run), 1e-5)


def test_a_stop_request_saves_the_step_and_the_rest_continues_from_it(
    finished_run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segresmamba.engine.trainer import Trainer

    whole = journal_losses(finished_run)
    record_step = Trainer._log_step

    def stop_at_two(trainer: Trainer, *arguments: object) -> None:
        record_step(trainer, *arguments)  # type: ignore[arg-type]
        if trainer.step == 2:
            signal.raise_signal(signal.SIGUSR2)

    monkeypatch.setattr(Trainer, "_log_step", stop_at_two)
    before = signal.signal(signal.SIGUSR2, lambda *_: request_stop())
    try:
        result = train(tiny_config(tiny_store, tmp_path / "cut"))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (result["status"], result["step"]) == ("preempted", 3)  # asked after its first two
    result = train(tiny_config(tiny_store, tmp_path / "cut"))
    assert (result["status"], result["step"]) == ("finished", 4)
    assert_same_curve(whole, journal_losses(tmp_path / "cut" / "tiny"), 1e-5)


def test_every_checkpoint_forces_the_journal_to_the_disk_before_it_counts(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, forced, fsync = RunFolder(tmp_path / "tiny"), list[tuple[int, list[int]]](), os.fsync
    journal = run.journal

    def watched(descriptor: int) -> None:
        if journal.exists() and os.path.samestat(os.fstat(descriptor), journal.stat()):
            forced.append((max(journal_losses(run.path), default=0), run.saved_steps()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", watched)
    train(tiny_config(tiny_store, tmp_path, "train.checkpoint_every=2"))
    for before, step in (([], 2), ([2], 4)):
        assert max(recorded for recorded, saved in forced if saved == before) >= step


def test_a_finished_run_that_is_started_again_says_so_and_uses_nothing(
    finished_run: Path, tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = RunFolder(finished_run).journal.read_bytes()
    result = train(tiny_config(tiny_store, tmp_path, "tracking.emissions=true"))
    assert (result["status"], result["step"]) == ("finished", 4)
    assert result["dice_mean"] == read_facts(RunFolder(finished_run).best).dice
    assert RunFolder(finished_run).journal.read_bytes() == first
    assert not RunFolder(finished_run).emissions.exists()
    assert "run.name=tiny train.max_steps=N (more than 4)" in caplog.text


def test_steps_trained_again_with_other_settings_become_another_attempt(
    finished_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    run = RunFolder(finished_run)
    before = journal_losses(finished_run)
    shutil.rmtree(run.checkpoint(4))
    train(tiny_config(tiny_store, tmp_path, "train.lr=0.01", "run.allow_config_change=true"))
    shown = read_history(finished_run).curves["train/loss"]
    assert [point.step for point in shown] == [1, 2, 3, 4]
    assert [point.value for point in shown[:3]] == [before[step] for step in (1, 2, 3)]
    assert shown[3].value != before[4]  # step 3 had the weights of step 2
    assert read_facts(finished_run / "earlier-1" / "best" / "weights.safetensors").step == 4
    (dice,) = read_history(finished_run).curves["validation/dice/mean"]
    assert read_facts(run.best).dice == dice.value
    assert records(finished_run, "train/loss")[:4] == list(before.values())


def test_a_run_that_lost_its_journal_says_which_steps_are_missing(
    finished_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    shutil.rmtree(RunFolder(finished_run).checkpoint(4))
    RunFolder(finished_run).journal.write_bytes(b"")
    train(tiny_config(tiny_store, tmp_path))
    assert tags(finished_run, "missing_steps") == ["1 to 2"]
    assert sorted(journal_losses(finished_run)) == [3, 4]


def test_only_the_last_checkpoints_and_the_best_weights_are_kept(
    tiny_store: Path, tmp_path: Path
) -> None:
    train(
        tiny_config(
            tiny_store, tmp_path, "train.checkpoint_every=1", "train.keep_last=2",
            "train.validate_every=2",
        )
    )  # fmt: skip
    run = tmp_path / "tiny"
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [
        "step-00000003",
        "step-00000004",
    ]
    assert not list((run / "checkpoints").glob(".writing-*"))
    assert (run / "best" / "weights.safetensors").exists()


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 0), ("fp16", 0), ("fp16", 2)])
def test_half_precision_autocast_trains_close_to_fp32(
    finished_run: Path, tiny_store: Path, tmp_path: Path, precision: str, stage: int
) -> None:
    exact = journal_losses(finished_run)
    half = curve(
        tiny_store, tmp_path / "half", f"train.precision={precision}", f"train.zero_stage={stage}"
    )
    assert_same_curve(exact, half, 0.03)


def tags(run: Path, key: str) -> list[str]:
    """Every value of a tag in the journal."""
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    return [line["values"][key] for line in lines if key in line.get("values", {})]


def records(run: Path, metric: str) -> list[float]:
    """Every value of a metric in the journal."""
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    return [line["values"][metric] for line in lines if metric in line.get("values", {})]


def test_a_validation_that_was_killed_is_made_up_for_by_the_same_command(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("segresmamba.engine.held_out.evaluate_cases", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(tiny_store, tmp_path))
    assert RunFolder(tmp_path / "tiny").saved_steps()[-1] == 4
    result = train(tiny_config(tiny_store, tmp_path))
    assert result["status"] == "finished"
    assert result["dice_mean"] is not None
    assert (tmp_path / "tiny" / "best" / "weights.safetensors").exists()
    assert sorted(journal_losses(tmp_path / "tiny")) == [1, 2, 3, 4]


def test_a_stop_before_validation_is_heeded_and_the_validation_done_later(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = ZeroEngine.weights
    with monkeypatch.context() as patch:
        patch.setattr(ZeroEngine, "weights", lambda engine: (request_stop(), weights(engine))[1])
        assert train(tiny_config(tiny_store, tmp_path))["status"] == "preempted"
    result = train(tiny_config(tiny_store, tmp_path))
    assert (result["status"], result["step"]) == ("finished", 4)
    assert len(records(tmp_path / "tiny", "validation/dice/mean")) == 1


def validations(run: Path) -> list[dict[str, float]]:
    """The scores of every validation in the journal."""
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    found = [line["values"] for line in lines if "time/validation_s" in line.get("values", {})]
    return [{key: one[key] for key in one if key.startswith("validation/")} for one in found]


def test_a_stop_in_the_middle_of_a_volume_is_heeded_at_the_next_window(
    finished_run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, windows = SlidingWindow._logits, list[int]()

    def stop_at_two(sliding: SlidingWindow, *arguments: object) -> object:
        windows.append(len(windows))
        if len(windows) == 2:
            request_stop()
        return logits(sliding, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SlidingWindow, "_logits", stop_at_two)
    assert train(tiny_config(tiny_store, tmp_path / "cut"))["status"] == "preempted"
    assert len(windows) == 2
    assert train(tiny_config(tiny_store, tmp_path / "cut"))["status"] == "finished"
    assert validations(tmp_path / "cut" / "tiny") == validations(finished_run)


def stop_in_the_case_of_rank_1(store: Path, root: Path) -> str:
    """Validate three cases on two ranks, the second of which is warned in its first one."""
    logits = SlidingWindow._logits

    def stopping(sliding: SlidingWindow, *arguments: object) -> object:
        if os.environ["RANK"] == "1":
            request_stop()
        return logits(sliding, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlidingWindow, "_logits", stopping)
        return str(train(tiny_config(store, root))["status"])


@pytest.fixture(scope="module")
def three_held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases, three of which are held out."""
    folder = tmp_path_factory.mktemp("three")
    names = [f"case{number}" for number in range(5)]
    splits = folder / "splits.json"
    splits.write_text(json.dumps([{"train": names[:2], "val": names[2:]}]))
    convert(write_nnunet_dataset(folder / "raw"), folder / "store", splits=splits)
    return folder / "store"


def test_a_validation_that_was_stopped_goes_on_with_the_cases_that_are_left(
    two_ranks: RankPool, three_held_out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert two_ranks.run(stop_in_the_case_of_rank_1, three_held_out, tmp_path) == 2 * ["preempted"]
    with caplog.at_level(logging.INFO):
        assert train(tiny_config(three_held_out, tmp_path))["status"] == "finished"
    assert "step 4: validating 2 case(s) (1 others are scored)" in caplog.text
    (found,) = validations(tmp_path / "tiny")
    assert len(found) == 6
    assert not RunFolder(tmp_path / "tiny").scored(4).exists()
    train(tiny_config(three_held_out, tmp_path / "whole"))
    assert validations(tmp_path / "whole" / "tiny") == [pytest.approx(found, rel=2e-3)]


@pytest.mark.parametrize("damage", ["", '{"settings": ["other", 0.0], "results": [1]}', "{"])
def test_what_a_stopped_validation_has_left_is_not_used_if_it_is_damaged(
    killed_run: Path, tiny_store: Path, tmp_path: Path, damage: str
) -> None:
    run = RunFolder(killed_run)
    expected = validations(killed_run)
    run.validation(4).unlink()
    run.scored(4).write_text(damage)
    assert train(tiny_config(tiny_store, tmp_path))["status"] == "finished"
    assert validations(killed_run) == 2 * expected


def test_scores_of_other_windows_do_not_count(
    killed_run: Path, tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = RunFolder(killed_run), tiny_config(tiny_store, tmp_path, "validation.overlap=0.1")
    run.validation(4).unlink()
    former = Scored(read_scored(run.scored(4), config).settings, [CaseResult("case0", {})], 1.0)
    write_scored(run.scored(4), former)
    with caplog.at_level(logging.INFO):
        train(tiny_config(tiny_store, tmp_path))
    assert "step 4: validating 1 case(s)\n" in caplog.text


def test_a_network_that_cannot_be_built_leaves_nothing(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="divisible by 8"):
        train(tiny_config(tiny_store, tmp_path / "runs", "model.dims=[10,20]"))
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_cannot_be_written_is_refused(tiny_store: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written.*/proc/runs"):
        train(tiny_config(tiny_store, Path("/proc/runs")))


def test_a_scan_backend_that_does_not_run_here_is_refused_by_key(
    tiny_store: Path, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, BackendMissingError)) as refusal:
        train(tiny_config(tiny_store, tmp_path / "runs", "model.scan_backend=mamba_ssm"))
    assert "mamba_ssm" in refusal.value.screen()
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_a_checkpoint_takes_other_settings(
    tiny_store: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "tiny")
    folder.enter(tiny_config(tiny_store, tmp_path))
    folder.enter(tiny_config(tiny_store, tmp_path, "train.lr=0.01"))
    assert read_config(folder.config).train.lr == 0.01


def test_a_run_goes_on_with_a_moved_store_but_not_with_another_one(
    killed_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_store, moved)
    other = tmp_path / "other"
    shutil.copytree(tiny_store, other)
    manifest = json.loads((other / "dataset.json").read_text())
    manifest["digest"] = "0" * 64
    del manifest["checksum"]
    (other / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="content of the dataset"):
        train(tiny_config(other, tmp_path))
    assert train(tiny_config(moved, tmp_path))["status"] == "finished"


def test_overlapping_regions_train_with_deep_supervision_and_validate_by_name(
    tiny_store: Path, tmp_path: Path
) -> None:
    regions = "data.regions={any: [1, 2], ball: [1]}"
    losses = curve(
        tiny_store, tmp_path, regions, "model.dims=[8,8,8]", "model.deep_supervision=true"
    )
    assert len(losses) == 4
    assert "validation/dice/any" in (tmp_path / "tiny" / "journal.jsonl").read_text()


def test_the_baseline_trains_on_the_same_path(tiny_store: Path, tmp_path: Path) -> None:
    segresnet = ("model=segresnet", "model.init_filters=8", "train.max_steps=2")
    words = [
        "data=custom", f"data.store={tiny_store}", "data.patch=[32,32,32]", "data.workers=0",
        *segresnet, "train.warmup_steps=0", "train.precision=fp32", "train.threads=1",
        "validation.overlap=0", "validation.overlays=0", "tracking=none",
        f"run.root={tmp_path}", "run.name=baseline",
    ]  # fmt: skip
    assert train(load_config(words))["status"] == "finished"


def test_a_checkpoint_of_another_architecture_is_refused_by_name_and_shape(
    killed_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    (killed_run / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"downs\.0\.weight: \[8, 2, 7, 7, 7\].*\[16, 2"):
        train(tiny_config(tiny_store, tmp_path, "model.dims=[16,16]"))
    assert RunFolder(tmp_path / "tiny").saved_steps()[-1] == 4


@pytest.mark.parametrize("file", ["rank-00000.pt", "meta.json"])
@pytest.mark.parametrize("damage", [flip, cut, lose])
def test_a_damaged_newest_checkpoint_is_skipped_loudly_and_kept_aside(
    killed_run: Path,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    damage: Callable[[Path], None],
) -> None:
    whole, said = journal_losses(killed_run), list[str]()
    newest = killed_run / "checkpoints" / "step-00000004"
    damage(newest / file)
    left = {path.name: path.read_bytes() for path in newest.iterdir()}
    monkeypatch.setattr(checkpoint.logger, "error", lambda text, *a: said.append(text % a))
    result = train(tiny_config(tiny_store, tmp_path, "train.keep_last=1"))
    assert (result["status"], result["step"]) == ("finished", 4)
    assert_same_curve(whole, journal_losses(killed_run), 1e-5)
    assert RunFolder(killed_run).saved_steps() == [4]
    aside = newest.with_name("step-00000004.damaged")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == left
    (tag,) = tags(killed_run, "damaged_checkpoints")
    assert tag.startswith("step-00000004.damaged: ")
    assert tag.endswith("continued from step 2")
    for word in ("step 4", str(newest / file), aside.name, "step 2"):
        assert word in said[0]


def test_a_run_whose_only_checkpoint_is_damaged_stops_and_names_the_file(
    killed_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    shutil.rmtree(killed_run / "checkpoints" / "step-00000002")
    share = killed_run / "checkpoints" / "step-00000004" / "rank-00000.pt"
    flip(share)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"none of them is sound.*{share}"):
            train(tiny_config(tiny_store, tmp_path))
    shutil.rmtree(killed_run / "checkpoints" / "step-00000004")
    assert train(tiny_config(tiny_store, tmp_path))["status"] == "finished"


def test_best_weights_that_were_deleted_come_back_by_a_validation(
    finished_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    best = RunFolder(finished_run).best
    before = read_facts(best)
    best.unlink()
    assert train(tiny_config(tiny_store, tmp_path))["status"] == "finished"
    assert read_facts(best) == before


def test_another_experiment_in_the_same_folder_is_refused_key_by_key(
    finished_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.001 -> 0\.01"):
        train(tiny_config(tiny_store, tmp_path, "train.lr=0.01"))


def test_a_batch_that_the_ranks_do_not_divide_is_refused_before_anything_is_written(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"train\.batch_size: 2.*multiple of 3"):
        train(tiny_config(tiny_store, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_fold_that_the_store_lacks_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.fold: 7.*choose 0 to 4"):
        train(tiny_config(tiny_store, tmp_path, "train.fold=7"))
