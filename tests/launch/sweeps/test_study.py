"""What Optuna is told, and what follows from it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.sweeps.search_space import SearchPoint, Space
from launch.sweeps.study import FILE, STARTUP_PRUNING, Standing, Study
from segresmamba.errors import LaunchError

SPACE = Space.from_overrides(["train.lr=tag(log,interval(1e-5,1e-1))", "model=unet,unetr"])
OpenStudy = Callable[..., Study]


@pytest.fixture
def open_study(tmp_path: Path) -> OpenStudy:
    return lambda space=SPACE, storage=None: Study("s", tmp_path, space, storage)


def anything(values: SearchPoint) -> bool:
    return True


def finished(number: int, *dice: float) -> Standing:
    values = {"train.lr": 10 ** -(number % 4 + 1), "model": "unet"}
    return Standing(number, values, dict(enumerate(dice, start=1)), "finished")


def test_a_proposal_follows_from_the_history_and_the_trials_number(tmp_path: Path) -> None:
    points = []
    for name in ("a", "b"):
        study = Study(name, tmp_path, SPACE, None)
        study.catch_up([finished(number, number / 20) for number in range(12)])
        points.append([study.propose(number, anything) for number in (12, 13)])
    assert points[0] == points[1]
    assert points[0][0] != points[0][1]
    assert 1e-5 <= float(points[0][0]["train.lr"]) <= 1e-1


def test_a_space_is_tried_to_its_last_point_and_no_point_twice(open_study: OpenStudy) -> None:
    study = open_study(Space.from_overrides(["seed=range(0,3)", "model=unet,unetr"]))
    tried: list[SearchPoint] = []
    for number in range(6):
        tried.append(study.propose(number, lambda values: values not in tried))
    assert len({tuple(values.values()) for values in tried}) == 6
    with pytest.raises(LaunchError, match="no point left"):
        study.propose(6, lambda values: values not in tried)


def test_a_trial_below_the_median_at_its_step_is_pruned(open_study: OpenStudy) -> None:
    study = open_study()
    history = [finished(number, 0.5, 0.6) for number in range(STARTUP_PRUNING - 1)]
    running = Standing(9, {"train.lr": 1e-2, "model": "unetr"})
    study.catch_up([*history, running])
    assert not study.should_prune(9, {1: 0.1})  # too few to compare with
    study.catch_up([*history, finished(7, 0.5, 0.6), running])
    assert study.should_prune(9, {1: 0.1})
    assert not study.should_prune(9, {1: 0.1, 2: 0.7})


def test_a_study_that_was_lost_comes_back_from_the_trials(
    open_study: OpenStudy, tmp_path: Path
) -> None:
    standings = [
        *(finished(number, 0.5) for number in range(STARTUP_PRUNING)),
        Standing(8, {"train.lr": 1e-3, "model": "unetr"}, {1: 0.1}, "pruned"),
        Standing(9, {"train.lr": 1e-2, "model": "unetr"}, {1: 0.2}),
    ]
    study = open_study()
    study.catch_up(standings)
    (tmp_path / FILE).unlink()
    for _ in range(2):  # the second time changes nothing
        study = open_study()
        study.catch_up(standings)
        assert study.should_prune(9, {1: 0.2})
    assert len(study._study.trials) == len(standings)


def test_a_choice_whose_process_died_before_it_wrote_it_down_is_given_up(
    open_study: OpenStudy,
) -> None:
    study = open_study()
    study.propose(0, anything)
    study.catch_up([])  # no record of trial 0
    again = study.propose(0, anything)
    study.catch_up([Standing(0, again, {1: 0.5}, "finished")])
    assert [trial.state.name for trial in study._study.trials] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    ("storage", "got"),
    [
        ("postgresql://me@127.0.0.1:1/none", "connect|psycopg"),
        ("nonsense://x", "nonsense"),
        ("sqlite:////absent/folder/study.db", "unable to open"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_screen(
    open_study: OpenStudy, storage: str, got: str
) -> None:
    with pytest.raises(LaunchError, match="cannot be used") as error:
        open_study(storage=storage)
    assert re.search(got, error.value.got), error.value.got
    assert len(error.value.screen().splitlines()) == 4


def test_a_database_keeps_searches_of_one_name_apart(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    Study("s", tmp_path / "a", SPACE, storage).catch_up([finished(0, 0.5)])
    with pytest.raises(LaunchError, match="another folder"):
        Study("s", tmp_path / "b", SPACE, storage)
    with pytest.raises(LaunchError, match="another space"):
        Study("s", tmp_path / "a", Space.from_overrides(["seed=1,2"]), storage)


def test_a_folder_that_cannot_be_made_is_one_screen(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="cannot be used"):
        Study("s", tmp_path / "file", SPACE, None)
