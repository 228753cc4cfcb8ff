"""Where a run stands, by what is known of it."""

import pytest

from launch.run_state import (
    FAILED,
    FINISHED,
    METRIC,
    PRUNED,
    QUEUED,
    RUNNING,
    STOPPED,
    UNKNOWN,
    WAITING,
    find_state,
)
from launch.slurm.squeue import JobState
from segresmamba.tracking import History
from segresmamba.tracking.mapping import MetricPoint


def recorded(status: str, **curves: list[MetricPoint]) -> History:
    return History("id", "run", "here", status, {}, {}, curves, {}, "", {})


@pytest.mark.parametrize(
    ("history", "job", "facts", "state"),
    [
        (None, None, {}, WAITING),
        (None, None, {"before": QUEUED}, STOPPED),
        (None, None, {"before": FAILED}, FAILED),
        (None, JobState("PENDING", 0), {}, QUEUED),
        (None, JobState("COMPLETING", 0), {}, RUNNING),
        (None, JobState("NODE_FAIL", 1), {}, FAILED),
        (None, JobState("UNKNOWN", 0), {"before": QUEUED}, UNKNOWN),
        (None, None, {"before": UNKNOWN}, STOPPED),
        (recorded("running"), JobState("UNKNOWN", 0), {}, UNKNOWN),
        (recorded("running"), JobState("UNKNOWN", 0), {"is_locked": True}, RUNNING),
        (recorded("finished"), JobState("UNKNOWN", 0), {}, FINISHED),
        (recorded("preempted"), JobState("PREEMPTED", 0), {}, STOPPED),
        (None, JobState("CANCELLED", 0), {"before": RUNNING}, STOPPED),
        (recorded("running"), None, {"is_locked": True}, RUNNING),
        (recorded("running"), None, {}, STOPPED),
        (recorded("failed"), None, {}, FAILED),
        (recorded("failed"), JobState("RUNNING", 0), {}, RUNNING),
        (recorded("preempted"), None, {"is_pruned": True}, PRUNED),
        (recorded("finished"), JobState("RUNNING", 0), {"is_pruned": True}, FINISHED),
        (recorded("finished"), None, {"must_measure": True}, FAILED),
    ],
)
def test_the_journal_comes_before_slurm_the_lock_and_what_was_known(
    history: History | None, job: JobState | None, facts: dict[str, object], state: str
) -> None:
    known = {"is_locked": False} | facts
    assert find_state(history, job, **known) == state  # type: ignore[arg-type]


@pytest.mark.parametrize(("dice", "state"), [(0.5, FINISHED), (float("nan"), FAILED)])
def test_a_trial_of_a_search_needs_a_number_to_compare(dice: float, state: str) -> None:
    history = recorded("finished", **{METRIC: [MetricPoint(METRIC, dice, 0, 1)]})
    assert find_state(history, None, is_locked=False, must_measure=True) == state
