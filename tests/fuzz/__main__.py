"""`make fuzz MINUTES=5`: all targets in turn, with fresh random inputs, and a table at the end."""

from __future__ import annotations

import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from segresmamba.data import convert
from tests.data.raw import write_raw
from tests.fuzz.targets import Target, all_targets, survives

ROUND = 400
"""Inputs of one seed."""
TURN_S = 2.0
"""How long it is a target's turn. A fast reader gets more inputs."""


def fuzz_round(target: Target, number: int, found: Counter[str]) -> Counter[str]:
    """One round of a target; count inputs, accepted ones and findings, and show new findings."""
    count = Counter[str]()

    @seed(number)
    @settings(
        max_examples=ROUND, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(written=target.strategy)
    def run(written: object) -> None:
        count["inputs"] += 1
        try:
            count["accepted"] += survives(target, written)
        except Exception as error:  # a finding; go on, there may be others
            count["findings"] += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{target.name}: {type(error).__name__} at {last.filename}:{last.lineno}"
            found[kind] += 1
            if found[kind] == 1:
                print(f"finding: {kind}, seed {number}\n  input: {written!r:.300}", flush=True)
                traceback.print_exc(limit=-4)

    run()
    return count


def main() -> None:
    """Fuzz for so many minutes with an optional seed; exit code 1 if anything was found."""
    minutes = float(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**9)
    warnings.simplefilter("ignore")
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        convert(write_raw(folder / "source", [(6, 7, 8), (8, 6, 7)]), folder / "store")
        targets = all_targets(folder, folder / "store")
        totals = {target.name: Counter[str]() for target in targets}
        end_s, number = time.monotonic() + 60 * minutes, first
        while time.monotonic() < end_s:
            for target in targets:
                turn_s = time.monotonic() + TURN_S
                while time.monotonic() < turn_s:
                    totals[target.name] += fuzz_round(target, number, found)
                    number += 1
    totals["all"] = sum(totals.values(), Counter())
    print(f"seeds {first} to {number - 1}\n")
    print("| target | inputs | accepted | findings |\n|---|--:|--:|--:|")
    for name, count in totals.items():
        numbers = (f"{count[key]:,}" for key in ("inputs", "accepted", "findings"))
        print(f"| {name} | {' | '.join(numbers)} |")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
