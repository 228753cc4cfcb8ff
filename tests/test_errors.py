from __future__ import annotations

import pickle

from segresmamba.errors import BackendMissingError, ConfigError


def test_an_error_shows_problem_place_value_and_remedy_on_four_lines() -> None:
    error = ConfigError("unknown key", where="train.lrr", got=1, remedy="write train.lr")
    assert error.screen().splitlines() == [
        "error: unknown key",
        "  where:  train.lrr",
        "  got:    1",
        "  remedy: write train.lr",
    ]


def test_an_error_survives_the_way_back_from_a_process() -> None:
    error = BackendMissingError("not installed", where="x", got="y", remedy="pip install z")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is BackendMissingError
    assert isinstance(back, NotImplementedError)
    assert back.screen() == error.screen()
