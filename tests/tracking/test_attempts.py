from __future__ import annotations

from typing import Any

from segresmamba.tracking.attempts import (
    attempts_first,
    current,
    goes_back,
    marked,
    missing_steps,
)
from segresmamba.tracking.journal import JournalRecord


def start(lr: float = 0.1, log_every: int = 1, store: str = "a", digest: str = "d") -> list[Any]:
    """What a start records before it trains."""
    train = {"lr": lr, "log_every": log_every, "threads": lr}  # threads change no result
    return [
        ("params", {"values": {"train": train, "data": {"store": store}}}),
        ("dataset", {"digest": digest}),
    ]


def steps(*numbers: int) -> list[Any]:
    return [("metrics", {"step": step, "values": {"train/loss": 0.5}}) for step in numbers]


def journal(*records: tuple[str, dict[str, Any]]) -> list[JournalRecord]:
    return [JournalRecord(kind, 0, body, index) for index, (kind, body) in enumerate(records)]


FINISHED = ("status", {"status": "finished"})


def test_a_start_with_the_same_settings_goes_on_with_the_attempt() -> None:
    before = [*start(), *steps(1, 2, 3)]
    assert not goes_back(journal(*start()), 0)
    assert not goes_back(journal(*before, *start()), 2)
    assert not goes_back(journal(*before, *start(store="moved")), 2)


def test_other_settings_make_another_attempt_of_the_steps_trained_again() -> None:
    before = [*start(), *steps(1, 2, 3)]
    assert goes_back(journal(*before, *start(lr=0.2)), 2)
    assert goes_back(journal(*before, *start(digest="other")), 0)
    assert not goes_back(journal(*before, *start(lr=0.2)), 3)  # no step is trained again


def test_a_finished_run_whose_checkpoints_were_deleted_is_another_attempt() -> None:
    before = [*start(), *steps(1, 2, 3), FINISHED]
    assert goes_back(journal(*before, *start()), 0)
    assert not goes_back(journal(*before, *start()), 3)


def test_an_attempt_that_was_recorded_is_not_recorded_again() -> None:
    before = [*start(), *steps(1, 2, 3), *start(lr=0.2), ("attempt", {"step": 2}), *steps(3)]
    assert not goes_back(journal(*before, *start(lr=0.2)), 2)
    assert goes_back(journal(*before, *start(lr=0.3)), 2)


def test_what_is_shown_is_of_the_last_start_that_trained_the_step() -> None:
    records = journal(
        *steps(1, 2, 3, 4), ("attempt", {"step": 3}), *steps(4), ("attempt", {"step": 1}), *steps(2)
    )
    shown = [(record.end, record.body["step"]) for record in current(records)]
    assert shown == [(0, 1), (4, 3), (6, 1), (7, 2)]


def test_an_attempt_that_an_earlier_version_did_not_mark_is_found_by_its_settings() -> None:
    def shown(*after: Any) -> list[tuple[int, int]]:
        records = current(marked(journal(*start(), *steps(1, 2, 3), *after)))
        return [(r.end, r.body["step"]) for r in records if r.kind == "metrics"]

    assert shown(*start(lr=0.2), *steps(2, 3)) == [(2, 1), (7, 2), (8, 3)]
    same = [(2, 1), (3, 2), (4, 3), (7, 2), (8, 3)]
    assert shown(*start(), *steps(2, 3)) == same
    assert shown(*start(log_every=5), *steps(2, 3)) == same
    assert shown(*start(lr=0.2), *steps(4)) == [(2, 1), (3, 2), (4, 3), (7, 4)]
    with_mark = [*start(lr=0.2), ("attempt", {"step": 2}), *steps(3)]
    assert shown(*with_mark) == [(2, 1), (3, 2), (8, 3)]


def test_a_start_belongs_to_the_attempt_that_it_begins() -> None:
    run = ("status", {"status": "running"})
    records = journal(*steps(1), run, *start(), *steps(2), run, *start(), ("attempt", {"step": 1}))
    ends = [record.end for record in attempts_first(records, 9, wait=True)]
    assert ends == [0, 1, 2, 3, 4, 4, 5, 6, 7]
    kinds = [record.kind for record in attempts_first(records, 9, wait=True)]
    assert kinds[5:] == ["attempt", "status", "params", "dataset"]
    begun = journal(*steps(1), run, *start())
    assert [record.kind for record in attempts_first(begun, 9, wait=True)] == ["metrics"]
    assert list(attempts_first(begun, 9, wait=False)) == begun


def test_steps_that_the_journal_lacks_are_named() -> None:
    tens = start(log_every=10)
    assert missing_steps(journal(*start(), *steps(1, 2, 3)), 3) == ""
    assert missing_steps(journal(*start()), 3) == "1 to 3"
    assert missing_steps(journal(*tens, *steps(10, 20, 50, 53), *tens), 75) == "30 to 40, 60 to 70"
    # Steps 101 to 150 were trained while each hundredth was recorded.
    hundreds = start(log_every=100)
    assert missing_steps(journal(*hundreds, *steps(100), *tens, *steps(160)), 165) == ""
