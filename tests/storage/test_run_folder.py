from __future__ import annotations

from pathlib import Path

from segresmamba.config import load_config
from segresmamba.storage.atomic import atomic_path
from segresmamba.storage.run_folder import RunFolder


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    for name in ("step-00000010", "step-00000004", ".writing-step-00000020"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert RunFolder(tmp_path).saved_steps() == [4, 10]


def test_a_users_copy_of_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    for name in ("step-00000010", "step-00000020.bak", "step-00000030 (copy)"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert RunFolder(tmp_path).saved_steps() == [10]


def test_a_run_without_checkpoints_has_no_saved_steps(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "nowhere").saved_steps() == []


def test_a_second_start_leaves_what_a_running_one_is_writing(tmp_path: Path) -> None:
    config = load_config(["data=custom", "data.store=x", f"run.root={tmp_path}", "run.name=run"])
    folder = RunFolder.from_config(config)
    folder.best.parent.mkdir(parents=True)
    with atomic_path(folder.best) as weights:
        weights.write_text("half of")
        folder.enter(config)
        weights.write_text("the weights")
    assert folder.best.read_text() == "the weights"


def test_best_weights_of_an_earlier_version_count_until_there_are_newer_ones(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    assert run.best == run.new_best
    former = tmp_path / "best" / "weights.pt"
    former.parent.mkdir()
    former.touch()
    run.remove_leftovers()
    assert run.best == former
    run.new_best.touch()
    assert run.best == run.new_best
    run.remove_leftovers()  # of a job that was killed between the two
    assert not former.exists()


def test_checkpoints_that_are_set_aside_are_kept_and_do_not_count(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for content in ("first", "second"):
        run.checkpoint(10).mkdir(parents=True)
        (run.checkpoint(10) / "meta.json").write_text(content)
        run.set_aside(10)
    assert run.saved_steps() == []
    names = ("step-00000010.damaged", "step-00000010.damaged-2")
    kept = [(run.checkpoints / name / "meta.json").read_text() for name in names]
    assert kept == ["first", "second"]
