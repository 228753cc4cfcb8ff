from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from segresmamba.report.groups import Group
from segresmamba.report.measures import CaseScore, MeasuredRun
from segresmamba.report.significance import ALL_PAIRS_UP_TO, compare, holm
from segresmamba.tracking import read_history
from tests.report.recorded import record_run


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> MeasuredRun:
    return MeasuredRun.from_history(
        read_history(record_run(tmp_path_factory.mktemp("example"), "one"))
    )


def group(example: MeasuredRun, label: str, *of_runs: dict[str, float]) -> Group:
    """A group with the given Dice of each case in each run."""
    runs = tuple(
        replace(example, cases={case: CaseScore(dice, 0.0, {}) for case, dice in cases.items()})
        for cases in of_runs
    )
    return Group(label, runs)


def test_two_groups_are_compared_on_the_cases_that_both_have(example: MeasuredRun) -> None:
    ours = {f"case{index}": 0.8 + 0.01 * index for index in range(8)}
    theirs = {case: dice - 0.02 - 0.01 * index for index, (case, dice) in enumerate(ours.items())}
    first = group(example, "first", ours, ours | {"case0": 0.6})
    second = group(example, "second", theirs | {"another": 0.1})
    (found,) = compare([first, second], None)
    differences = [(0.7 if case == "case0" else dice) - theirs[case] for case, dice in ours.items()]
    assert found.cases == 8
    assert found.difference == pytest.approx(
        sorted(differences)[3] / 2 + sorted(differences)[4] / 2
    )
    assert found.p == pytest.approx(wilcoxon(differences).pvalue)
    assert found.p_holm == found.p
    assert found.smallest_p == 2 / 2**8


def test_equal_scores_do_not_differ(example: MeasuredRun) -> None:
    cases = {"a": 0.5, "b": 0.6}
    (found,) = compare([group(example, "one", cases), group(example, "two", cases)], None)
    assert (found.p, found.difference) == (1.0, 0.0)


def test_groups_without_a_common_case_are_not_compared(
    example: MeasuredRun, tmp_path: Path
) -> None:
    assert (
        compare([group(example, "one", {"a": 1.0}), group(example, "two", {"b": 1.0})], None) == []
    )
    assert compare([group(example, "one", {}), group(example, "two", {"b": 1.0})], None) == []


def test_cases_of_one_name_in_two_datasets_are_two_cases(example: MeasuredRun) -> None:
    other = replace(example, settings={**example.settings, "dataset": "another"})
    assert compare([group(example, "one", {"a": 1.0}), group(other, "two", {"a": 1.0})], None) == []


def test_many_groups_are_each_compared_with_the_reference_or_the_best(example: MeasuredRun) -> None:
    groups = [
        Group(str(index), (replace(made.runs[0], dice=index / 10),))
        for index in range(ALL_PAIRS_UP_TO + 1)
        for made in [group(example, "", {"a": index / 10, "b": index / 20})]
    ]
    for reference, expected in ((None, groups[-1]), (groups[2], groups[2])):
        found = compare(groups, reference)
        assert len(found) == ALL_PAIRS_UP_TO
        assert {pair.second.label for pair in found} == {expected.label}
    assert len(compare(groups[:3], None)) == 3


def test_holm_on_an_example_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made monotonous.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(values: list[float]) -> None:
    corrected = holm(values)
    for value, result in zip(values, corrected, strict=True):
        assert value <= result <= min(1.0, value * len(values)) or result == max(corrected)
        assert result <= 1.0
    order = sorted(range(len(values)), key=values.__getitem__)
    assert [corrected[i] for i in order] == sorted(corrected)
