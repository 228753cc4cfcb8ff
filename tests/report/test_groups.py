from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segresmamba.report.captions import lead
from segresmamba.report.groups import Group, by_dataset, differences, group_runs, pareto_front
from segresmamba.report.measures import MeasuredRun
from segresmamba.report.tables import runs_table
from segresmamba.tracking import PRUNED, read_history
from tests.report.recorded import record_run


def run_of(folder: Path) -> MeasuredRun:
    return MeasuredRun.from_history(read_history(folder))


def test_seeds_and_folds_are_one_group_with_mean_and_spread(tmp_path: Path) -> None:
    runs = [
        run_of(record_run(tmp_path, "a", seed=0, cases={"x": 0.8, "y": 0.6})),
        run_of(record_run(tmp_path, "b", seed=1, cases={"x": 0.9, "y": 0.7})),
        run_of(record_run(tmp_path, "c", fold=1, cases={"z": 0.9}, energy_kwh=None)),
    ]
    (group,) = group_runs(reversed(runs))
    assert [run.history.name for run in group.runs] == ["a", "b", "c"]
    dice = group.spread("dice")
    assert dice is not None
    assert dice.mean == pytest.approx((0.7 + 0.8 + 0.9) / 3)
    assert dice.deviation == pytest.approx(0.1)
    energy = group.spread("energy_wh")
    assert energy is not None
    assert energy.values == (3.0, 3.0)  # the third was not measured
    dataset = runs[0].dataset
    assert group.case_dice() == pytest.approx(
        {(dataset, "x"): 0.85, (dataset, "y"): 0.65, (dataset, "z"): 0.9}
    )


def test_a_label_names_the_network_and_what_differs_within_it(tmp_path: Path) -> None:
    runs = [
        run_of(record_run(tmp_path, "a", settings={"lr": 0.1})),
        run_of(record_run(tmp_path, "b", settings={"lr": 0.01})),
        run_of(record_run(tmp_path, "c", settings={"lr": 0.01}, model="segresnet")),
    ]
    again = [
        run_of(record_run(tmp_path / "seed 1", run.history.name, seed=1, model=run.model,
                          settings={"lr": float(run.settings["train.lr"])}))
        for run in runs
    ]  # fmt: skip
    groups = group_runs(runs + again)
    labels = [group.label for group in groups]
    assert labels == ["segresmamba (lr=0.01)", "segresmamba (lr=0.1)", "segresnet"]
    assert differences(groups) == {"train.lr": ["0.01", "0.1", "0.01"]}


def test_a_run_alone_keeps_the_name_that_the_user_gave_it(tmp_path: Path) -> None:
    named = [
        run_of(record_run(tmp_path, "first", settings={"lr": 0.1})),
        run_of(record_run(tmp_path, "second", settings={"lr": 0.2})),
    ]
    labels = [group.label for group in group_runs(named)]
    assert labels == ["first (segresmamba)", "second (segresmamba)"]
    twice = [*named, run_of(record_run(tmp_path / "elsewhere", "first", settings={"lr": 0.3}))]
    labels = [group.label for group in group_runs(twice)]
    assert labels == ["second (segresmamba)", "segresmamba (lr=0.1)", "segresmamba (lr=0.3)"]
    settings = {key: text for key, text in named[0].history.settings.items() if key != "run.name"}
    nameless = replace(named[0], history=replace(named[0].history, settings=settings))
    assert [group.label for group in group_runs([nameless])] == ["segresmamba"]


def test_runs_of_different_datasets_are_kept_apart(tmp_path: Path) -> None:
    runs = [
        run_of(record_run(tmp_path, "a", digest="b" * 16)),
        run_of(record_run(tmp_path, "b", digest="a" * 16)),
        run_of(record_run(tmp_path, "c", digest="b" * 16)),
    ]
    datasets = by_dataset(runs)
    assert [[run.history.name for run in dataset] for dataset in datasets] == [["b"], ["a", "c"]]
    assert datasets[1][0].dataset_label == "bbbb.zarr (bbbbbbbb)"


def test_settings_that_change_no_result_split_no_group(tmp_path: Path) -> None:
    runs = [
        run_of(record_run(tmp_path, "a", settings={"log_every": 1})),
        run_of(record_run(tmp_path, "b", settings={"log_every": 2})),
    ]
    assert len(group_runs(runs)) == 1


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> MeasuredRun:
    return run_of(record_run(tmp_path_factory.mktemp("example"), "one"))


@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(1, 6).map(float), st.none() | st.integers(1, 6).map(float)
        ),
        max_size=12,
    )
)
def test_the_front_is_what_no_other_group_beats(
    example: MeasuredRun, points: list[tuple[float | None, float | None]]
) -> None:
    groups = [
        Group(str(index), (replace(example, memory_gib=memory, dice=dice),))
        for index, (memory, dice) in enumerate(points)
    ]
    placed = [(m, d) for m, d in points if m is not None and d is not None]
    unbeaten = {
        (memory, dice)
        for memory, dice in placed
        if not any(m <= memory and d >= dice and (m, d) != (memory, dice) for m, d in placed)
    }
    front = pareto_front(groups, cost="memory_gib", gain="dice")
    found = [(group.mean("memory_gib"), group.mean("dice")) for group in front]
    assert set(found) == unbeaten
    assert found == sorted(found, key=str)


def test_a_copy_of_a_dataset_is_the_same_dataset(tmp_path: Path) -> None:
    runs = [run_of(record_run(tmp_path, name, digest="b" * 16)) for name in ("a", "c")]
    settings = runs[1].history.settings
    copied = replace(runs[1].history, settings={**settings, "data.store": "/copy/other.zarr"})
    runs[1] = replace(runs[1], history=copied)
    assert lead(runs) == "2 runs on cpu, dataset bbbb.zarr (bbbbbbbb)."


def test_a_trial_that_a_search_gave_up_is_no_preempted_run(tmp_path: Path) -> None:
    pruned = run_of(record_run(tmp_path, "a", status="preempted", tags={PRUNED: "at step 2"}))
    stopped = run_of(record_run(tmp_path, "b", status="preempted"))
    assert (pruned.status, stopped.status) == ("pruned", "preempted")
    assert lead([pruned, stopped]).endswith("; 1 pruned by the search; 1 not finished.")
    (group,) = group_runs([pruned, stopped])
    rows = runs_table([group], ["#000000"]).rows
    assert [row[4].text for row in rows] == ["pruned", "preempted"]
