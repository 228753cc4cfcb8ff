from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segresmamba.evaluation.decide_rules import Decision, KeptCase, decide_rules
from segresmamba.evaluation.metrics import score
from segresmamba.inference.postprocessing import Rule, apply

SPACING = (1.0, 2.0, 1.5)
Labels = NDArray[np.uint8]
BALL, BOX = {"ball": (1,)}, {"ball": (1,), "box": (2,)}


def cubes(*places: tuple[int, int, int]) -> Labels:
    """Cubes of a value, from a corner, with a size."""
    label = np.zeros((24, 24, 24), np.uint8)
    for value, start, size in places:
        label[(slice(start, start + size),) * 3] = value
    return label


def decide(folder: Path, pairs: list[tuple[Labels, Labels]], members: Any) -> Decision:
    cases = [
        KeptCase.write(folder / f"{number}.npz", *pair, SPACING)
        for number, pair in enumerate(pairs)
    ]
    return decide_rules(cases, members)


def mean_dice(pairs: list[tuple[Labels, Labels]], rules: tuple[Rule, ...], members: Any) -> float:
    return float(
        np.mean(
            [
                one.dice
                for prediction, reference in pairs
                for one in score(
                    apply(prediction, rules, SPACING), reference, members, SPACING
                ).values()
            ]
        )
    )


def test_a_false_component_is_removed_where_the_truth_is_one_piece(tmp_path: Path) -> None:
    pairs = [(cubes((1, 2, 6), (1, 15, 2)), cubes((1, 2, 6)))] * 2
    decision = decide(tmp_path, pairs, BALL)
    assert decision.rules == (Rule(name="ball", values=(1,), keep_largest=True),)
    assert mean_dice(pairs, decision.rules, BALL) == 1
    assert "only the largest component: Dice from 0.9" in decision.reasons[0]
    assert "to 1.0000 (2 cases)" in decision.reasons[0]


def test_specks_are_removed_by_size_where_the_truth_has_several_pieces(tmp_path: Path) -> None:
    two = cubes((1, 2, 6), (1, 14, 5))
    pairs = [(two | cubes((1, 21, 2)), two)]
    (rule,) = decide(tmp_path, pairs, BALL).rules
    assert not rule.keep_largest
    assert 8 * 3 < rule.minimum_mm3 <= 125 * 3
    assert mean_dice(pairs, (rule,), BALL) == 1


def test_nothing_is_done_where_it_does_not_help(tmp_path: Path) -> None:
    two = cubes((1, 2, 6), (1, 14, 5))
    decision = decide(tmp_path, [(two, two), (two, two)], BALL)
    assert decision.rules == ()
    assert "no rule raises" in decision.reasons[0]


def test_a_rule_that_helps_one_case_and_harms_the_others_more_is_not_taken(
    tmp_path: Path,
) -> None:
    two = cubes((1, 2, 6), (1, 14, 6))
    speck = (cubes((1, 2, 6), (1, 14, 6)), cubes((1, 2, 6)))
    assert decide(tmp_path, [speck, (two, two), (two, two)], BALL).rules == ()


def test_all_classes_together_come_first_and_must_harm_none(tmp_path: Path) -> None:
    reference = cubes((1, 2, 6), (2, 8, 4))
    together = decide(tmp_path, [(reference | cubes((1, 16, 3)), reference)], BOX)
    assert [rule.name for rule in together.rules] == ["foreground"]
    # Here the smaller class lies apart, and the largest component would not have it.
    apart = cubes((1, 2, 6), (2, 12, 4))
    pairs = [(apart | cubes((1, 18, 3)), apart)]
    alone = decide(tmp_path, pairs, BOX)
    assert [rule.name for rule in alone.rules] == ["ball"]
    assert mean_dice(pairs, alone.rules, BOX) == 1


def test_a_region_is_not_cleaned_at_the_cost_of_another(tmp_path: Path) -> None:
    regions = {"whole": (1, 2), "core": (2,)}
    reference = cubes((1, 2, 8), (2, 4, 2), (2, 14, 2))  # a core outside the largest piece
    prediction = reference | cubes((1, 19, 4))
    decision = decide(tmp_path, [(prediction, reference)], regions)
    before, after = (
        score(apply(prediction, rules, SPACING), reference, regions, SPACING)
        for rules in ((), decision.rules)
    )
    assert all(after[name].dice >= before[name].dice for name in regions)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_promised_is_what_the_rules_give(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = cubes((1, 2, 7), (2, 12, 8))
    noise = rng.random(reference.shape) < 0.002
    prediction = np.where(noise, rng.integers(0, 3, reference.shape), reference).astype(np.uint8)
    pairs = [(prediction, reference)]
    decision = decide(tmp_path, pairs, BOX)
    assert decision.rules
    assert mean_dice(pairs, decision.rules, BOX) > mean_dice(pairs, (), BOX)
    np.testing.assert_array_equal(
        KeptCase(tmp_path / "0.npz").read()[0], apply(prediction, decision.rules, SPACING)
    )
