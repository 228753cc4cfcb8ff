"""`make fuzz MINUTES=5`: all targets in turn, with fresh random inputs, and a table at the end."""

from __future__ import annotations

import faulthandler
import logging
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from segresmamba.data import convert
from segresmamba.errors import UserError
from segresmamba.tracking.memory import status_kib
from tests.data.raw import write_raw
from tests.fuzz.mutator import mutated
from tests.fuzz.targets import Target, all_targets

DOCUMENTS = 20
"""Documents of Hypothesis' in a round, which has one seed."""
MUTANTS = 19
"""Inputs that are made from each document, besides the document itself."""
TURN_S = 1.0
"""Processor time of a target's turn. A fast reader gets more inputs."""
SLOW_S = 10.0
"""Processor time above which an input is a finding."""
PEAK_GIB = 1.0
"""Memory beyond that of the process before, above which an input is a finding."""


@dataclass
class Count:
    """What became of the inputs of a target."""

    inputs: int = 0
    accepted: int = 0
    refused: set[str] = field(default_factory=set)
    """The places in the code where inputs were refused."""
    found: dict[str, int] = field(default_factory=dict)
    """The inputs that were findings, by kind and place."""

    def read(self, target: Target, written: bytes, number: int) -> None:
        """Read an input, count it, and show a finding that is new."""
        self.inputs += 1
        started_s, before_gib = time.process_time(), _peak_gib()
        try:
            target.read(written)
            self.accepted += 1
        except UserError as error:
            self.refused.add(_place(error))
        except Exception as error:  # a finding; go on, there may be others
            self._add(f"{target.name}: {_place(error)}", written, number)
        if time.process_time() - started_s > SLOW_S:
            self._add(f"{target.name}: slow", written, number)
        # The peak of the process only grows, so a later input of the same kind is not counted.
        if _peak_gib() > before_gib + PEAK_GIB:
            self._add(f"{target.name}: memory", written, number)

    def _add(self, kind: str, written: bytes, number: int) -> None:
        self.found[kind] = self.found.get(kind, 0) + 1
        if self.found[kind] == 1:
            print(f"finding: {kind}, seed {number}\n  input: {written!r:.2000}", flush=True)
            traceback.print_exc(limit=-4)


def _peak_gib() -> float:
    """The highest memory of this process so far."""
    return (status_kib("VmHWM") or 0.0) / 2**20


def _place(error: BaseException) -> str:
    """The kinds of an error and of its causes, each with the line that raised it."""
    places = []
    while error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        places.append(f"{type(error).__name__} at {last.filename}:{last.lineno}")
        error = error.__cause__
    return " from ".join(places)


def inputs(target: Target, seed: int, documents: int, mutants: int) -> Iterator[bytes]:
    """Documents of a seed, and inputs that are made from them; half of the checksums fit."""
    rng, made = random.Random(seed), list[bytes]()

    @hypothesis.seed(seed)
    @settings(
        max_examples=documents, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(document=target.strategy)
    def keep(document: bytes) -> None:
        made.append(document)

    keep()
    for document in made:
        yield target.seal(document)
        for place in range(mutants):
            mutant = mutated(document, rng)
            yield target.seal(mutant) if place % 2 else mutant


def fuzz_round(target: Target, number: int, count: Count) -> None:
    """Read all inputs of a seed."""
    for written in inputs(target, number, DOCUMENTS, MUTANTS):
        count.read(target, written, number)


def main() -> None:
    """Fuzz for so many minutes with an optional seed; exit code 1 if anything was found."""
    minutes = float(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**9)
    faulthandler.enable()  # if a library crashes, the last input stays in the folder
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        convert(write_raw(folder / "source", [(6, 7, 8), (8, 6, 7)]), folder / "store")
        targets = all_targets(folder, folder / "store")
        counts = {target.name: Count() for target in targets}
        end_s, number = time.monotonic() + 60 * minutes, first
        while time.monotonic() < end_s:
            for target in targets:
                turn_s = time.process_time() + TURN_S
                while time.process_time() < turn_s and time.monotonic() < end_s:
                    fuzz_round(target, number, counts[target.name])
                    number += 1
            print(f"{sum(count.inputs for count in counts.values()):,} inputs", flush=True)
    print(f"seeds {first} to {number - 1}\n")
    print("| target | inputs | accepted | places of refusal | findings |\n|---|--:|--:|--:|--:|")
    totals = [0, 0, 0, 0]
    for name, count in counts.items():
        row = [count.inputs, count.accepted, len(count.refused), sum(count.found.values())]
        totals = [total + one for total, one in zip(totals, row, strict=True)]
        print(f"| {name} | {' | '.join(f'{number:,}' for number in row)} |")
    print(f"| all | {' | '.join(f'{number:,}' for number in totals)} |")
    sys.exit(totals[-1] > 0)


if __name__ == "__main__":
    main()
