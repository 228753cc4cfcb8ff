"""A few hundred inputs of `make fuzz`, the same in each run."""

from __future__ import annotations

import random

import pytest

from segresmamba.data import convert
from segresmamba.errors import UserError
from tests.data.raw import write_raw
from tests.fuzz.__main__ import Count, fuzz_round, inputs
from tests.fuzz.mutator import mutated
from tests.fuzz.targets import Target, all_targets

TARGETS = 22


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    convert(write_raw(folder / "source", [(6, 7, 8), (8, 6, 7)]), folder / "store")
    return all_targets(folder, folder / "store")


@pytest.mark.filterwarnings("ignore")  # libraries warn about what they are given
@pytest.mark.parametrize("number", range(TARGETS))
def test_what_others_wrote_is_read_or_refused(targets: list[Target], number: int) -> None:
    count = Count()
    for written in inputs(targets[number], seed=0, documents=8, mutants=4):
        count.read(targets[number], written, 0)
    assert not count.found
    assert count.inputs == 40


def test_every_target_is_fuzzed(targets: list[Target]) -> None:
    assert len({target.name for target in targets}) == TARGETS


def test_a_round_counts_inputs_and_findings(targets: list[Target]) -> None:
    def read(written: bytes) -> None:
        if len(written) % 2:
            raise KeyError(written)
        raise UserError("no", where="x", got="y", remedy="z")

    count = Count()
    fuzz_round(Target("broken", targets[0].strategy, read), 1, count)
    (found,) = count.found.values()
    assert count.inputs > found > 100
    assert (count.accepted, len(count.refused)) == (0, 1)


def test_a_seed_always_gives_the_same_inputs(targets: list[Target]) -> None:
    first, again, other = (list(inputs(targets[4], seed, 3, 5)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) > 10


def test_checksums_fit_after_a_change(targets: list[Target]) -> None:
    """Otherwise each changed document would be refused at its checksum, and nothing else tried."""
    for target in targets:
        if target.seal is not bytes:
            written = target.seal(next(inputs(target, 0, 1, 0)))
            target.read(written)
            assert target.seal(written) == written


def test_a_mutant_may_be_empty_and_of_any_length() -> None:
    rng = random.Random(0)
    mutants = [mutated(b'{"a": [1, "x"]}', rng) for _ in range(300)]
    assert len(set(mutants)) > 200
    for nothing in (b"", b"{}"):
        assert len({mutated(nothing, rng) for _ in range(300)}) > 30
