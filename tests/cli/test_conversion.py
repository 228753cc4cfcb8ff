"""A command's progress: a bar where somebody watches, few lines where a log is kept."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from segresmamba.cli.conversion import counting


def shown(*, terminal: bool, parts: int, what: str = "converting") -> str:
    stream = io.StringIO()
    with counting(what, Console(file=stream, force_terminal=terminal)) as progress:
        for done in range(parts + 1):
            progress(done, parts)
    return stream.getvalue()


def test_a_log_gets_a_line_for_each_twentieth() -> None:
    lines = shown(terminal=False, parts=484).splitlines()
    assert lines[0] == "converting: 0 of 484 cases"
    assert lines[-1] == "converting: 484 of 484 cases"
    assert len(lines) == 21
    assert all(
        re.fullmatch(r"converting: \d+ of 484 cases, \d:\d\d:\d\d left", line)
        for line in lines[1:-1]
    )


def test_of_few_cases_each_has_its_line() -> None:
    assert len(shown(terminal=False, parts=3).splitlines()) == 4
    assert shown(terminal=False, parts=0) == "converting: 0 of 0 cases\n"


def test_a_terminal_shows_a_bar() -> None:
    assert "3/3" in shown(terminal=True, parts=3)
    assert "of 3 cases" not in shown(terminal=True, parts=3)
    assert "left" in shown(terminal=True, parts=3)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_name_is_shown_as_it_is(terminal: bool) -> None:
    assert "evaluating [run]" in shown(terminal=terminal, parts=1, what="evaluating [run]")
