"""What Hydra's sweep grammar means to a search."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.sweeps.grammar import trials_of
from launch.sweeps.search_space import Choice, Number, Space
from segresmamba.errors import ConfigError


def only(word: str) -> Choice | Number:
    (dimension,) = Space.from_overrides([word]).dimensions
    return dimension


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        ("model=unet,unetr", Choice("model", ("unet", "unetr"))),
        ("seed=choice(1,2,1)", Choice("seed", ("1", "2"))),
        ("data.patch=[8,8,8],[4,8,8]", Choice("data.patch", ("[8,8,8]", "[4,8,8]"))),
        ("model=glob(segmam*)", Choice("model", ("segmamba",))),
        ("train.lr=interval(1e-5,1e-2)", Number("train.lr", 1e-5, 1e-2, None, log=False)),
        ("train.lr=tag(log,interval(1e-5,1e-2))", Number("train.lr", 1e-5, 1e-2, None, log=True)),
        ("train.batch_size=int(interval(2,8))", Number("train.batch_size", 2, 8, None, log=False)),
        ("seed=range(0,7,3)", Number("seed", 0, 6, 3, log=False)),
        ("seed=range(5,0,-2)", Number("seed", 1, 5, 2, log=False)),
        ("seed=shuffle(range(1,4))", Number("seed", 1, 3, 1, log=False)),
    ],
)
def test_the_grammar_of_a_sweep_is_a_space(word: str, dimension: Choice | Number) -> None:
    assert only(word) == dimension


@given(st.integers(-9, 9), st.integers(1, 20), st.integers(1, 5))
def test_a_range_has_the_points_of_its_grid(start: int, length: int, step: int) -> None:
    word = f"seed=range({start},{start + length},{step})"
    points = only(word).points
    assert points is not None
    assert [[f"seed={point}"] for point in points] == trials_of([word])


def test_fixed_words_come_with_every_point() -> None:
    space = Space.from_overrides(["data=custom", "train.lr=interval(1e-4,1e-2)", "seed=1,2"])
    assert space.overrides({"train.lr": 1e-05, "seed": "2"}) == [
        "data=custom",
        "train.lr=1e-05",
        "seed=2",
    ]
    assert space.points() is None
    corners = [[list(point.values()) for point in points] for points in space.corners()]
    low, high = [1e-4, "1"], [1e-2, "2"]
    assert corners == [
        [low, [1e-4, "2"]],
        [[1e-2, "1"], high],
        [low, [1e-2, "1"]],
        [[1e-4, "2"], high],
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["train.lr=1e-3"], "there is nothing to search"),
        (["train.lr=1e-3,1e-4", "train.lr=1"], "more than once"),
        (["cluster.nodes=1,2"], "changes no result"),
        (["tracking=none,sqlite"], "changes no result"),
        (["train.lr=tag(log,interval(0,1))"], "logarithm"),
        (["train.lr=interval(1,0)"], "no number in between"),
        (["train.lr=tag(lin,interval(0,1))"], "tag lin"),
        (["seed=range(3,3)"], "no value"),
        (["train.lr=interval(1e-4"], "does not parse"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_word(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        Space.from_overrides(words)
    assert len(error.value.screen().splitlines()) == 4
