"""A few hundred inputs of `make fuzz`, the same in each run."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from segresmamba.data import convert
from segresmamba.errors import UserError
from tests.data.raw import write_raw
from tests.fuzz.__main__ import fuzz_round
from tests.fuzz.targets import Target, all_targets, survives

INPUTS = 30


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    convert(write_raw(folder / "source", [(6, 7, 8), (8, 6, 7)]), folder / "store")
    return all_targets(folder, folder / "store")


@pytest.mark.filterwarnings("ignore")  # libraries warn about what they are given
@pytest.mark.parametrize("number", range(13))
def test_what_others_wrote_is_read_or_refused(targets: list[Target], number: int) -> None:
    target = targets[number]

    @settings(
        derandomize=True, max_examples=INPUTS, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(written=target.strategy)
    def run(written: object) -> None:
        survives(target, written)

    run()


def test_every_target_is_fuzzed(targets: list[Target]) -> None:
    assert len({target.name for target in targets}) == 13


def test_a_round_counts_inputs_and_findings(targets: list[Target]) -> None:
    def read(written: object) -> None:
        raise KeyError(written)

    found = Counter[str]()
    count = fuzz_round(Target("broken", targets[0].strategy, read), 1, found)
    assert count["findings"] == count["inputs"] == sum(found.values()) > 100
    with pytest.raises(KeyError):
        survives(Target("broken", targets[0].strategy, read), [])


def test_a_refusal_is_no_finding() -> None:
    def refuse(_: object) -> None:
        raise UserError("no", where="x", got="y", remedy="z")

    assert not survives(Target("x", None, refuse), 1)  # type: ignore[arg-type]
