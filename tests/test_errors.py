from __future__ import annotations

import errno
import os
import pickle

import pytest
import torch

from segresmamba.errors import (
    BackendMissingError,
    CheckpointError,
    ConfigError,
    DataError,
    PassingError,
    StoreAwayError,
    sort_error,
)


def test_an_error_shows_problem_place_value_and_remedy_on_four_lines() -> None:
    error = ConfigError("unknown key", where="train.lrr", got=1, remedy="write train.lr")
    assert error.screen().splitlines() == [
        "error: unknown key",
        "  where:  train.lrr",
        "  got:    1",
        "  remedy: write train.lr",
    ]


def test_a_long_value_is_cut_on_the_screen_and_nowhere_else() -> None:
    labels = {f"region {value}": value for value in range(724)}
    error = DataError("labels", where="dataset.json", got=labels, remedy="declare " * 724)
    _, where, got, remedy = error.screen().splitlines()
    assert where == "  where:  dataset.json"
    assert got.startswith("  got:    {'region 0': 0, 'region 1': 1, ")
    assert got.endswith(f"'region 723': 723}} ({len(str(labels))} characters)")
    assert max(len(got), len(remedy)) < 1700
    assert error.got == str(labels)
    assert "region 400" in str(error)
    assert "region 400" not in got


def test_of_many_lines_the_screen_shows_the_first_and_the_last() -> None:
    error = DataError("refused", where="a", got="\n".join(map(str, range(99))), remedy="b")
    lines = error.screen().splitlines()
    assert len(lines) < 30
    assert lines[2] == "  got:    0"
    assert "... (74 more lines)" in [line.strip() for line in lines]
    assert lines[-2] == "98"


def test_a_path_and_a_value_that_fit_are_not_cut() -> None:
    path, value = "/deep" * 500, "v" * 600
    screen = DataError("unreadable", where=path, got=value, remedy="copy it again").screen()
    assert path in screen
    assert value in screen
    assert "characters" not in screen


def test_an_error_survives_the_way_back_from_a_process() -> None:
    error = BackendMissingError("not installed", where="x", got="y", remedy="pip install z")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is BackendMissingError
    assert isinstance(back, NotImplementedError)
    assert back.screen() == error.screen()


WORDS = {"where": "x", "got": "y", "remedy": "z"}
PASSING = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT, errno.EHOSTUNREACH)


def raised_from(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("unknown key", **WORDS), 2),
        (PassingError("the disk is full", **WORDS), 75),
        (StoreAwayError("no answer", **WORDS), 75),
        (raised_from(DataError("unreadable", **WORDS), OSError(errno.ESTALE, "stale")), 75),
        (raised_from(DataError("unreadable", **WORDS), FileNotFoundError(2, "not there")), 2),
        (raised_from(RuntimeError("unexpected pos"), OSError(errno.ENOSPC, "full")), 75),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 75),
        (TimeoutError(), 75),
        (torch.distributed.DistNetworkError("the store is away"), 75),
        (
            RuntimeError("[gloo/gloo/transport/tcp/pair.cc:525] Connection closed"),
            75,
        ),
        (OSError(errno.EACCES, "denied"), 1),
        (RuntimeError("shapes differ"), 1),
        (KeyError("a"), 1),
        *((OSError(code, os.strerror(code), "/f"), 75) for code in PASSING),
    ],
)
def test_an_error_is_sorted_by_whose_it_is(error: Exception, code: int) -> None:
    assert sort_error(error).exit_code == code


def test_a_passing_error_of_the_system_is_one_screen_that_names_the_file() -> None:
    text = sort_error(OSError(errno.EIO, "Input/output error", "/mnt/run/f")).text
    assert "  where:  /mnt/run/f\n  got:    Input/output error\n" in text


def test_an_error_of_ours_keeps_its_traceback() -> None:
    try:
        raise KeyError("lost")
    except KeyError as error:
        text = sort_error(error).text
    assert text.startswith("Traceback")
    assert text.endswith("KeyError: 'lost'")


def test_an_error_keeps_its_kind_on_the_way_back_from_a_process() -> None:
    error = raised_from(CheckpointError("unreadable", **WORDS), OSError(errno.EIO, "I/O"))
    assert sort_error(pickle.loads(pickle.dumps(error))).exit_code == 75
